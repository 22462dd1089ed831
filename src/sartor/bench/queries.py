# SPDX-License-Identifier: Apache-2.0
"""Every query of a scoreboard: from the logs to one parquet file, and from there to arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.atomic import write_bytes
from sartor.bench.entries import Entry
from sartor.bench.problem import Problem
from sartor.bench.running import log_path
from sartor.objective import Objective, violation
from sartor.trial import Trial, TrialLog

FILE = "queries.parquet"
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Searches:
    """What one entry did, in arrays of (seeds, queries); `values` has a last axis of objectives.

    values: in the unit of each objective; NaN where the trial was not done within all bounds.
    reported: of the architecture of each query; NaN as `values`.
    budgets: the share of a full evaluation that each query took.
    incumbent: the query, from 0, whose architecture the search holds; -1 while there is none.
    different: architectures met, by seed.
    """

    values: Floats
    reported: Floats
    budgets: Floats
    incumbent: Indices
    different: Indices

    def held(self, values: Floats) -> Floats:
        """Return the (seeds, queries) values of the incumbents; NaN while there is none."""
        found = np.take_along_axis(values, np.maximum(self.incumbent, 0), axis=1)
        return np.where(self.incumbent < 0, np.nan, found)


def incumbents(signal: Floats, budgets: Floats, goal: str) -> Indices:
    """Return for each of Q queries, (Q,), which is the best so far by its signal; -1 while none has one.

    Only queries of the largest budget so far compare, since a signal of fewer epochs is another quantity. Of
    equals the first is kept.
    """
    signed = signal if goal == "max" else -signal
    found = np.full(len(signal), -1, dtype=np.intp)
    best = -1
    for place in np.flatnonzero(np.isfinite(signed)):
        better = best < 0 or (budgets[place], signed[place]) > (budgets[best], signed[best])
        best = int(place) if better else best
        found[place:] = best
    return found


def write_queries(out: Path, problem: Problem, entries: Sequence[Entry], queries: int, seeds: int) -> Path:
    """Write a row per query of every entry and seed, in order, and return the path."""
    library, parquet = arrow()
    columns: dict[str, list[Any]] = {}
    for entry in entries:
        for seed in range(seeds):
            with TrialLog(log_path(out, entry.folder(queries), seed), readonly=True) as log:
                for name, values in _columns(problem, entry.name, seed, log[:queries]).items():
                    columns.setdefault(name, []).extend(values)
    file = io.BytesIO()
    parquet.write_table(library.table(columns), file, compression="zstd")
    write_bytes(out / FILE, file.getvalue())
    return out / FILE


def _columns(problem: Problem, entry: str, seed: int, trials: Sequence[Trial]) -> dict[str, Sequence[Any]]:
    """Return the columns of one seed; a value is null where it was not measured."""
    values = {one.name: _measured(trials, one) for one in problem.objectives}
    feasible = np.array([one.state == "done" and not violation(one, problem.objectives) for one in trials])
    signal = np.where(feasible, values[problem.objectives[0].name], np.nan)
    reported = problem.reported_values([one.arch for one in trials], signal)
    budgets = np.array([one.budget for one in trials])
    best = incumbents(signal, budgets, problem.objectives[0].goal)
    known = {} if problem.reported is None else {problem.reported_name: _nullable(reported)}
    return {
        "entry": [entry] * len(trials),
        "seed": [seed] * len(trials),
        "query": [*range(1, len(trials) + 1)],
        "trial": [one.number for one in trials],
        "architecture": [one.arch.to_json() for one in trials],
        "state": [one.state for one in trials],
        "feasible": feasible.tolist(),
        "budget": budgets.tolist(),
        "seconds": [one.seconds for one in trials],
        **{name: _nullable(column) for name, column in values.items()},
        **known,
        "incumbent": (best + 1).tolist(),
        "note": [one.note for one in trials],
    }


def _measured(trials: Sequence[Trial], objective: Objective) -> Floats:
    return np.array([one.values.get(objective.name, np.nan) for one in trials], dtype=float)


def _nullable(values: Floats) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def read_queries(out: Path, problem: dict[str, Any]) -> dict[str, Searches]:
    """Return what each entry did, from the file that `write_queries` wrote; `problem` is that of the record."""
    _, parquet = arrow()
    table = parquet.read_table(out / FILE)
    names = [one["name"] for one in problem["objectives"]]
    entries = np.array(table.column("entry").to_pylist())
    seeds = len(set(table.column("seed").to_pylist()))
    columns = {
        name: np.array(table.column(name).to_pylist(), dtype=float)
        for name in {*names, problem["reported"], "budget", "incumbent", "feasible"}
    }
    archs = np.array(table.column("architecture").to_pylist())
    return {
        str(entry): _searches(columns, archs, entries == entry, seeds, names, problem["reported"])
        for entry in dict.fromkeys(entries.tolist())
    }


def _searches(
    columns: dict[str, Floats], archs: NDArray[Any], own: NDArray[np.bool_], seeds: int, names: list[str], reported: str
) -> Searches:
    shaped = {name: values[own].reshape(seeds, -1) for name, values in columns.items()}
    feasible = shaped["feasible"] == 1
    return Searches(
        values=np.where(feasible[..., None], np.stack([shaped[name] for name in names], axis=-1), np.nan),
        reported=np.where(feasible, shaped[reported], np.nan),
        budgets=shaped["budget"],
        incumbent=shaped["incumbent"].astype(np.intp) - 1,
        different=np.array([len(set(row)) for row in archs[own].reshape(seeds, -1)], dtype=np.intp),
    )


def check_parquet() -> None:
    """Raise ImportError, with what to install, where parquet files cannot be written."""
    arrow()


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and its parquet module; ImportError, with what to install, without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"a scoreboard is kept as parquet, which needs pyarrow ({error}): pip install 'sartor[bench]'"
        ) from None
    return pyarrow, pyarrow.parquet
