"""The default strategy, `auto`, on what it was tuned on and on what was kept from it, beside four others.

Tuned on: NAS-Bench-201 with CIFAR-10 and CIFAR-100, and NAS-Bench-Macro. Kept: ImageNet16-120 of NAS-Bench-201, and
NAS-Bench-Graph, on which it was first run when nothing was to be changed any more. One objective: the searches of
NAS-Bench-201 read the 12-epoch validation accuracy, those of NAS-Bench-Graph the validation accuracy; the value is the
test accuracy of the incumbent after 50, 100 and 200 queries. NAS-Bench-Macro: accuracy and FLOPs, the hypervolume from
the worst of both as a share of the whole space's. GBDT-NAS runs each budget by itself. `ms` is CPU time of a search
with one thread, table look-ups included, for each query.

SARTOR_AUTO names the tables, as "nasbench201:cifar10,nasbench_macro", SARTOR_ENTRIES the strategies, as "auto,NSGA-II",
SARTOR_SEEDS the number of seeds (30).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from sartor.bench import Problem, table_problem
from sartor.objective import costs
from sartor.pareto import hypervolume
from sartor.protocols import Strategy
from sartor.recipes.auto import Auto
from sartor.search import search
from sartor.strategies.gbdt_nas import GBDTNAS
from sartor.strategies.local_search import LocalSearch
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.pareto_local_search import ParetoLocalSearch
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.trial import TrialLog

Row = Mapping[str, str | float | int | None]
Make = Callable[..., Strategy]

AFTER = (50, 100, 200)
TUNED = ("nasbench201:cifar10", "nasbench201:cifar100", "nasbench_macro")
KEPT = (
    "nasbench201:imagenet16",
    *(f"nasbench_graph:{name}" for name in ("cora", "citeseer", "pubmed", "cs", "photo")),
)
ONE: dict[str, Callable[..., Strategy]] = {
    "auto": Auto,
    "random search": RandomSearch,
    "local search": LocalSearch,
    "regularized evolution": partial(RegularizedEvolution, population=30, tournament=10),
    "GBDT-NAS": GBDTNAS,
}
SEVERAL: dict[str, Callable[..., Strategy]] = {
    "auto": Auto,
    "random search": RandomSearch,
    "Pareto local search": ParetoLocalSearch,
    "NSGA-II": partial(NSGA2, population=20),
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per table and strategy: means over seeds, and standard deviations."""
    seeds = 2 if quick else int(os.environ.get("SARTOR_SEEDS", "30"))
    tables = os.environ.get("SARTOR_AUTO", ",".join(TUNED[-1:] if quick else TUNED + KEPT)).split(",")
    wanted = os.environ.get("SARTOR_ENTRIES", ",".join(ONE | SEVERAL)).split(",")
    for name in tables:
        problem = problem_of(name)
        known = problem.known(1)
        strategies = SEVERAL if len(problem.objectives) > 1 else ONE
        for strategy in [one for one in strategies if one in wanted]:
            make = strategies[strategy]
            start = time.process_time()
            found = np.array([values(problem, known, strategy, make, seed) for seed in range(seeds)])
            spent = time.process_time() - start
            queries = seeds * (sum(AFTER) if strategy == "GBDT-NAS" else AFTER[-1])
            yield {
                "table": name,
                "kept": "yes" if name in KEPT else "no",
                "strategy": strategy,
                **{f"at {step}": float(mean) for step, mean in zip(AFTER, found.mean(axis=0), strict=True)},
                **{f"sd {step}": float(sd) for step, sd in zip(AFTER, found.std(axis=0, ddof=1), strict=True)},
                "ms": 1000 * spent / queries,
            }


def problem_of(name: str) -> Problem:
    """Return the problem of a table, by `table:column` or `nasbench_graph:data set`."""
    table, _, column = name.partition(":")
    if table == "nasbench_macro":
        return table_problem(table, "accuracy", costs=["flops_m"])
    if table == "nasbench_graph":
        return table_problem(name, "test", signal="valid")
    return table_problem(table, column)


def values(
    problem: Problem, known: Mapping[str, Any], name: str, make: Callable[..., Strategy], seed: int
) -> list[float]:
    """Return what one search holds after each number of queries."""
    if name == "GBDT-NAS":
        return [at(problem, known, found(problem, partial(make, queries=step), step, seed), step) for step in AFTER]
    log = found(problem, make, AFTER[-1], seed)
    return [at(problem, known, log, step) for step in AFTER]


def found(problem: Problem, make: Callable[..., Strategy], queries: int, seed: int) -> TrialLog:
    """Return the log of one search."""
    strategy = make(problem.space, problem.objectives)
    return search(problem.space, strategy, problem.objectives, trials=queries, seed=seed)


def at(problem: Problem, known: Mapping[str, Any], log: TrialLog, step: int) -> float:
    """Return the reported value of the incumbent, or the share of the hypervolume, after `step` queries."""
    points = np.array([costs(trial, problem.objectives) for trial in log[:step]])
    if len(problem.objectives) == 1:
        best = log[int(np.argmin(points[:, 0]))]
        return float(problem.reported_values([best.arch], np.array([best.values[problem.objectives[0].name]]))[0])
    signs = np.array([1.0 if one.goal == "min" else -1.0 for one in problem.objectives])
    return hypervolume(points, np.array(known["reference"]) * signs) / float(known["volume"])
