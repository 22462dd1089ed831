"""Five ways to take a limit: the best network within it that each finds, on NAS-Bench-201.

The searches read the 12-epoch validation accuracy of CIFAR-10 and the latency on a device (HW-NAS-Bench), with a limit
that half or a tenth of the connected networks keep. The value is the 200-epoch test accuracy of the trial that is best
by what was read, among those within the limit; so is that of the best network within the limit in the whole table.
Population 30, tournaments of 10; for "pareto" NSGA-II with a population of 20 instead, which has several objectives.
p is Wilcoxon's, two-sided, against "hard", paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from sartor.limits import FORMS, Form, under_limits
from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.tables import load
from sartor.tables.table import Table

Row = Mapping[str, str | float | int | None]

READ, VALUE = "cifar10_val12", "cifar10"


def rows(quick: bool) -> Iterator[Row]:
    """A row per device, share of the space, form and number of queries."""
    seeds, devices = (3, ("pixel3",)) if quick else (50, ("pixel3", "eyeriss"))
    table = load("nasbench201")
    table = table.where(table.column("connected") > 0)
    for device in devices:
        column = f"cifar10_{device}_latency_ms"
        for share in (0.5, 0.1):
            limit = float(np.quantile(table.column(column), share))
            yield from compared(table, column, limit, share, seeds)


def compared(table: Table, column: str, limit: float, share: float, seeds: int) -> Iterator[Row]:
    """A row per form and number of queries, for one limit."""
    goals = [table.objective(READ, goal="max"), table.objective(column, goal="min", at_most=limit)]
    kept = table.column(column) <= limit
    oracle = float(table.column(VALUE)[kept][np.argmax(table.column(READ)[kept])])
    found = {name: np.array([searched(table, goals, name, seed) for seed in range(seeds)]) for name in (*FORMS, "none")}
    for place, after in enumerate((100, 300)):
        for name, values in found.items():
            ours, hard = values[:, place], found["hard"][:, place]
            same = name == "hard" or np.array_equal(ours, hard)
            yield {
                "latency": column,
                "within ms": limit,
                "of the space": share,
                "limit as": "hard, random search" if name == "none" else name,
                "queries": after,
                "mean": float(ours.mean()),
                "deviation": float(ours.std(ddof=1)),
                "p": None if same else float(wilcoxon(ours, hard).pvalue),
                "whole table": oracle,
            }


def searched(table: Table, goals: Sequence[Objective], form: str, seed: int) -> list[float]:
    """Return the test accuracy of the best network within the limit after 100 and 300 queries; 10 if there is none."""
    strategy, searched_for = strategy_under(table.space, goals, form)
    log = search(table.space, strategy, searched_for, trials=300, seed=seed)
    within = [trial for trial in log if trial.state == "done" and not goals[1].excess(trial.values[goals[1].name])]
    found = []
    for after in (100, 300):
        tried = [trial for trial in within if trial.number < after]
        best = max(tried, key=lambda trial: trial.values[READ], default=None)
        found.append(10.0 if best is None else float(values(table, best.arch)[0]))
    return found


def values(table: Table, arch: object) -> NDArray[np.float64]:
    """Return the test accuracy of one architecture, (1,)."""
    return np.asarray(table.values(VALUE, [arch]))  # type: ignore[list-item]


def strategy_under(space: SearchSpace, goals: Sequence[Objective], form: str) -> tuple[Strategy, Sequence[Objective]]:
    """Return a strategy that takes the limit as `form`, and its objectives."""
    if form == "none":
        return under_limits(RandomSearch, space, goals)
    evolution = partial(RegularizedEvolution, population=30, tournament=10)
    as_form: Form = form  # type: ignore[assignment]
    return under_limits(partial(NSGA2, population=20) if form == "pareto" else evolution, space, goals, as_form)
