"""Evaluations per CPU-second through whole searches on NAS-Bench-201, beside Syne Tune, pymoo and Optuna.

Regularized evolution (P 100, S 25; Syne Tune's the same) searches the 12-epoch validation accuracy of CIFAR-10,
NSGA-II (population 100) that and the latency of Pixel 3. Ours run through `search` in this process, with the log in
memory and in an SQLite file; the peers in environments of their own, the table as an array in their memory. Only the
search itself is timed, in CPU seconds with one thread; what is repeated is interleaved. Optuna, which is slower by
factors, runs fewer evaluations. `.peers/` is made by `benchmarks/peers/setup`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from peer import Library, grid_of
from sartor.bench import Problem, table_problem
from sartor.protocols import Strategy
from sartor.search import search
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.trial import TrialLog

Row = Mapping[str, str | float | int | None]
Timed = Callable[[int], float]  # from a seed to evaluations per CPU-second

EVOLUTION = {"population": 100, "tournament": 25}
PEERS = (
    (Library("Syne Tune, regularized evolution", "syne-tune", "syne_tune_evolution.py", EVOLUTION), 1, 1.0),
    (Library("pymoo, NSGA-II", "pymoo", "pymoo_nsga2.py", {"population": 100}), 2, 1.0),
    (Library("Optuna, NSGA-II", "optuna", "optuna_search.py", {"algorithm": "nsga2", "population": 100}), 2, 0.1),
    (
        Library(
            "Optuna, NSGA-II, SQLite", "optuna", "optuna_search.py",
            {"algorithm": "nsga2", "population": 100, "sqlite": True},
        ), 2, 0.01,
    ),
    (Library("Optuna, TPE", "optuna", "optuna_search.py", {"algorithm": "tpe", "population": 0}), 2, 0.03),
)  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """A row per library and way of keeping trials: median and range of the repeats."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    evaluations, repeats = (2_000, 2) if quick else (10_000, 7)
    one = table_problem("nasbench201", "cifar10")
    two = table_problem("nasbench201", "cifar10", device="pixel3")
    grids = {1: grid_of(one), 2: grid_of(two)}
    timed: dict[str, tuple[Timed, float | None, int]] = {}
    for name, problem, make, goal in (
        ("ours, regularized evolution", one, RegularizedEvolution, 20_000.0),
        ("ours, NSGA-II", two, NSGA2, 20_000.0),
    ):
        timed[name] = (ours(problem, make, evaluations, file=False), goal, evaluations)
        timed[f"{name}, SQLite"] = (ours(problem, make, evaluations, file=True), goal / 2, evaluations)
    for library, objectives, share in PEERS:
        count = int(evaluations * share)
        timed[library.name] = (theirs(library, grids[objectives], count), None, count)
    speeds: dict[str, list[float]] = {name: [] for name in timed}
    for seed in range(repeats):
        for name, (call, _, _) in timed.items():
            speeds[name].append(call(seed))
    for name, (_, wanted, count) in timed.items():
        own = speeds[name]
        yield {
            "what": name,
            "evaluations": count,
            "per CPU-second": round(statistics.median(own)),
            "lowest": round(min(own)),
            "highest": round(max(own)),
            "goal": wanted,
        }


def ours(problem: Problem, make: Callable[..., Strategy], evaluations: int, *, file: bool) -> Timed:
    """Return what times one of our searches."""

    def timed(seed: int) -> float:
        strategy = make(problem.space, problem.objectives)
        with tempfile.TemporaryDirectory() as folder, TrialLog(Path(folder) / "run.sqlite" if file else None) as log:
            start = time.process_time()
            search(problem.space, strategy, problem.objectives, trials=evaluations, seed=seed, log=log)
            return evaluations / (time.process_time() - start)

    return timed


def theirs(library: Library, grid: object, evaluations: int) -> Timed:
    """Return what times one search of a peer."""
    library.check()

    def timed(seed: int) -> float:
        (found,) = library.searched(grid, [seed], evaluations)  # type: ignore[arg-type]
        return len(found["found"]) / float(found["cpu_s"])

    return timed
