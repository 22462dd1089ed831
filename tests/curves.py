# SPDX-License-Identifier: Apache-2.0
"""Searches on the NAS-Bench-201 table: 12-epoch validation accuracy is the signal, the incumbent's test is reported."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.objective import Objective
from sartor.protocols import Strategy
from sartor.space import SearchSpace
from sartor.tables import Table, load
from sartor.trial import Candidate, Trial

Make = Callable[[SearchSpace, Sequence[Objective]], Strategy]

INDEX_ORDER = ("op_01", "op_02", "op_12", "op_03", "op_13", "op_23")
"""The edges as NAS-Bench-201 counts its architectures."""


def incumbents(make: Make, *, seeds: int, at: Sequence[int]) -> NDArray[np.float64]:
    """Return the (seeds, len(at)) test accuracies, in percent, of the best by the signal after so many queries."""
    table = load("nasbench201")
    objective = table.objective("cifar10_val12")
    return np.array([_incumbents(make(table.space, [objective]), table, objective, seed, at) for seed in range(seeds)])


def _incumbents(strategy: Strategy, table: Table, objective: Objective, seed: int, at: Sequence[int]) -> list[float]:
    best, tests = (-np.inf, 0), []
    for number in range(max(at)):
        arch = Candidate.of(strategy.ask(random.Random(f"{seed}/{number}"))).arch
        value = objective.measure(arch)
        best = max(best, (value, table.row(arch)), key=lambda one: one[0])
        strategy.tell(Trial(number, arch, {objective.name: value}, state="done"))
        if number + 1 in at:
            tests.append(float(table.column("cifar10")[best[1]]))
    return tests


def differs(found: NDArray[np.float64], mean: Sequence[float], deviation: Sequence[float], seeds: int) -> list[float]:
    """Return how many standard errors of the difference lie between our means and others of as many `seeds`."""
    error = np.sqrt(found.var(axis=0, ddof=1) / len(found) + np.square(deviation) / seeds)
    return list((found.mean(axis=0) - np.array(mean)) / error)
