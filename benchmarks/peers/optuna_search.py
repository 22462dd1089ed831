"""Samplers of Optuna on a table, one process, for `benchmarks/peer.py`: a JSON request in, a JSON answer out.

Categorical variables, ask and tell. Networks without a value cost nothing. They are failed trials for NSGA-II; TPE
would forget those and ask for them again, hundreds of times, so it is told the worst of all values.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna  # type: ignore[import-not-found]

SAMPLERS = {
    "nsga2": lambda request, seed: optuna.samplers.NSGAIISampler(population_size=request["population"], seed=seed),
    "tpe": lambda request, seed: optuna.samplers.TPESampler(seed=seed),
}


def searched(values: Any, request: dict[str, Any], seed: int, folder: str) -> dict[str, Any]:
    """Return one search: what it evaluated, in order, and its CPU time."""
    *options, objectives = values.shape
    names = {f"v{place}": list(range(count)) for place, count in enumerate(options)}
    storage = f"sqlite:///{Path(folder) / f'{seed}.db'}" if request["sqlite"] else None
    study = optuna.create_study(
        directions=["minimize"] * objectives, sampler=SAMPLERS[request["algorithm"]](request, seed), storage=storage
    )
    start = time.process_time()
    worst = np.nanmax(values.reshape(-1, objectives), axis=0).tolist()
    found: list[list[int]] = []
    for _ in range(20 * request["queries"]):
        trial = study.ask()
        choice = [trial.suggest_categorical(name, counts) for name, counts in names.items()]
        row = values[tuple(choice)]
        if np.isnan(row).any():
            if request["algorithm"] == "tpe":
                study.tell(trial, worst)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, row.tolist())
        found.append(choice)
        if len(found) == request["queries"]:
            break
    return {"seed": seed, "cpu_s": time.process_time() - start, "found": found}


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked = json.load(sys.stdin)
    table = np.load(asked["table"])
    with tempfile.TemporaryDirectory() as place:
        json.dump([searched(table, asked, seed, place) for seed in asked["seeds"]], sys.stdout)
