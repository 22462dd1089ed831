"""Regularized evolution and NSGA-II beside random search, on NAS-Bench-201 and NAS-Bench-Macro.

NAS-Bench-201: populations of 30, tournaments of 10; the search reads the 12-epoch validation accuracy of CIFAR-10, the
value is the 200-epoch test accuracy of the incumbent, and p is Wilcoxon's, one-sided, of evolution above random search;
100 seeds. NAS-Bench-Macro: accuracy and FLOPs, populations of 40, hypervolume as a share of the whole table's from its
worst values, and the share of 30 seeds in which NSGA-II has more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.pareto import hypervolume
from sartor.protocols import Strategy
from sartor.search import search
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.tables import load

Row = Mapping[str, str | float | int | None]
Make = Callable[..., Strategy]
Values = NDArray[np.float64]


def rows(quick: bool) -> Iterator[Row]:
    """A row per table, strategy and number of evaluations."""
    one, several = (10, 5) if quick else (100, 30)
    evolution = partial(RegularizedEvolution, population=30, tournament=10)
    chance, found = (np.array([incumbents(make, s) for s in range(one)]) for make in (RandomSearch, evolution))
    for place, after in enumerate((100, 200)):
        yield _row("NAS-Bench-201", "random search", after, chance[:, place], None)
        p = float(wilcoxon(found[:, place], chance[:, place], alternative="greater").pvalue)
        yield {**_row("NAS-Bench-201", "regularized evolution", after, found[:, place], None), "p": p}
    genetic = partial(NSGA2, population=40)
    chance, found = (np.array([volumes(make, s) for s in range(several)]) for make in (RandomSearch, genetic))
    for place, after in enumerate((200, 400)):
        yield _row("NAS-Bench-Macro", "random search", after, chance[:, place], None)
        ahead = float((found[:, place] > chance[:, place]).mean())
        yield _row("NAS-Bench-Macro", "NSGA-II", after, found[:, place], ahead)


def incumbents(make: Make, seed: int) -> list[float]:
    """Return the test accuracy of the incumbent after 100 and 200 queries."""
    table = load("nasbench201")
    objectives = (table.objective("cifar10_val12", goal="max"),)
    log = search(table.space, make(table.space, objectives), objectives, trials=200, seed=seed)
    read = [trial.values["cifar10_val12"] for trial in log]
    best: list[Architecture] = [log[int(np.argmax(read[:after]))].arch for after in (100, 200)]
    return [float(value) for value in table.values("cifar10", best)]


def volumes(make: Make, seed: int) -> list[float]:
    """Return the hypervolume after 200 and 400 evaluations, as a share of the whole table's."""
    table = load("nasbench_macro")
    objectives = [table.objective("accuracy", goal="max"), table.objective("flops_m", goal="min")]
    log = search(table.space, make(table.space, objectives), objectives, trials=400, seed=seed)
    points = _points(objectives, [dict(trial.values) for trial in log])
    every = np.stack([-table.column("accuracy"), table.column("flops_m")], axis=1)
    worst, whole = every.max(axis=0), hypervolume(every, every.max(axis=0))
    return [hypervolume(points[:after], worst) / whole for after in (200, 400)]


def _points(objectives: list[Objective], values: list[dict[str, float]]) -> Values:
    signs = [-1.0 if objective.goal == "max" else 1.0 for objective in objectives]
    return np.array([[sign * value[o.name] for sign, o in zip(signs, objectives, strict=True)] for value in values])


def _row(table: str, strategy: str, after: int, values: Values, ahead: float | None) -> dict[str, str | float | None]:
    return {
        "table": table,
        "strategy": strategy,
        "evaluations": after,
        "mean": float(values.mean()),
        "deviation": float(values.std(ddof=1)),
        "p": None,
        "ahead": ahead,
    }
