"""Regularized evolution and NSGA-II beside random search, on NAS-Bench-201 and NAS-Bench-Macro.

NAS-Bench-201: populations of 30, tournaments of 10; the search reads the 12-epoch validation accuracy of CIFAR-10, the
value is the 200-epoch test accuracy of the incumbent, and p is Wilcoxon's, one-sided, of evolution above random search;
100 seeds. NAS-Bench-Macro: accuracy and FLOPs, populations of 40, hypervolume as a share of the whole table's from its
worst values, and the share of 30 seeds in which NSGA-II has more.

Ageing: the same search on NAS-Bench-201 with Gaussian noise of 1 % accuracy, fresh at each query, beside one in which
the worst individual dies instead of the oldest; the value is the true test accuracy of the incumbent, which is the best
by its noisy value. A network may be asked for again, and has then another value. p is Wilcoxon's, one-sided.
"""

from __future__ import annotations

import random
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
from sartor.trial import Trial

Row = Mapping[str, str | float | int | None]
Make = Callable[..., Strategy]
Values = NDArray[np.float64]

NOISY = (100, 200, 400, 1000)  # queries


def rows(quick: bool) -> Iterator[Row]:
    """A row per table, strategy and number of evaluations."""
    one, several = (10, 5) if quick else (100, 30)
    evolution = partial(RegularizedEvolution, population=30, tournament=10)
    chance, found = (np.array([incumbents(make, s) for s in range(one)]) for make in (RandomSearch, evolution))
    for place, after in enumerate((100, 200)):
        yield _row("NAS-Bench-201", "random search", after, chance[:, place], None)
        p = float(wilcoxon(found[:, place], chance[:, place], alternative="greater").pvalue)
        yield {**_row("NAS-Bench-201", "regularized evolution", after, found[:, place], None), "p": p}
    yield from ageing(one)
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


class WorstDies(RegularizedEvolution):
    """The same evolution, but for who dies: the individual of the worst value."""

    def tell(self, trial: Trial) -> None:
        """Let the worst die before the new one comes."""
        if len(self.population) == self.size:
            worst = max(range(self.size), key=self._fitness.__getitem__)
            del self.population[worst], self._fitness[worst]
        super().tell(trial)


def ageing(seeds: int) -> Iterator[Row]:
    """A row for who dies and after how many queries, under noise."""
    found = {
        name: np.array([noisy_incumbents(kind, seed) for seed in range(seeds)])
        for name, kind in (("the worst dies", WorstDies), ("the oldest dies", RegularizedEvolution))
    }
    for place, after in enumerate(NOISY):
        worst, oldest = (values[:, place] for values in found.values())
        yield _row("NAS-Bench-201, noise of 1 %", "the worst dies", after, worst, None)
        p = float(wilcoxon(oldest, worst, alternative="greater").pvalue)
        yield {**_row("NAS-Bench-201, noise of 1 %", "the oldest dies", after, oldest, None), "p": p}


def noisy_incumbents(kind: type[RegularizedEvolution], seed: int) -> list[float]:
    """Return the true test accuracy of the incumbent after each of `NOISY` queries of a noisy signal."""
    table, rng, noise = load("nasbench201"), random.Random(seed), np.random.default_rng(seed)
    strategy = kind(table.space, (table.objective("cifar10_val12", goal="max"),), population=30, tournament=10)
    archs: list[Architecture] = []
    read = np.empty(max(NOISY))
    for query in range(max(NOISY)):
        arch = strategy.ask(rng)
        read[query] = table.values("cifar10_val12", [arch])[0] + noise.normal()
        strategy.tell(Trial(query, arch, {"cifar10_val12": float(read[query])}, state="done"))
        archs.append(arch)
    best = [archs[int(np.argmax(read[:after]))] for after in NOISY]
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
