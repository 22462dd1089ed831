"""Regularized evolution of Syne Tune on a table, one process, for `benchmarks/peer.py`: JSON in, JSON out.

The searcher is called directly, without a tuner or a backend, which is the fastest way through the library.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from syne_tune.config_space import choice  # type: ignore[import-not-found]
from syne_tune.optimizer.schedulers.searchers.regularized_evolution import (  # type: ignore[import-not-found]
    RegularizedEvolution,
)


def searched(values: Any, request: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return one search: what it evaluated, in order, and its CPU time."""
    names = [f"v{place}" for place in range(values.ndim - 1)]
    space = {name: choice(list(range(count))) for name, count in zip(names, values.shape, strict=False)}
    searcher = RegularizedEvolution(
        space, population_size=request["population"], sample_size=request["tournament"], random_seed=seed
    )
    start = time.process_time()
    found: list[list[int]] = []
    for number in range(request["queries"]):
        suggested = searcher.suggest()
        options = [suggested[name] for name in names]
        searcher.on_trial_complete(number, suggested, float(values[(*options, 0)]))
        found.append(options)
    return {"seed": seed, "cpu_s": time.process_time() - start, "found": found}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    table = np.load(asked["table"])
    json.dump([searched(table, asked, seed) for seed in asked["seeds"]], sys.stdout)
