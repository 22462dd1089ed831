# SPDX-License-Identifier: Apache-2.0
"""The question a search answers: what is measured, in which direction it is good, and within which bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sartor.trial import Trial


@dataclass(frozen=True)
class Objective:
    """A named number of an architecture, its goal, and the bounds within which a candidate is feasible.

    `cheap` says that measuring takes no training or running of the candidate; cheap objectives are measured
    first, in the process of the search, so that an infeasible candidate costs nothing more.

    `fidelity` says that less than the full budget can be spent on it: it is then called as
    `measure(arch, budget)`, with a budget in (0, 1]. Without, it is `measure(arch)`, which every budget shares:
    a value that was measured at one is used at all. Bounds are bounds of full values: a smaller budget's value
    beyond one makes no candidate infeasible.
    """

    name: str
    measure: Callable[..., float]
    goal: Literal["min", "max"] = "min"
    at_most: float | None = None
    at_least: float | None = None
    cheap: bool = False
    fidelity: bool = False

    def __post_init__(self) -> None:
        """Check the fields; ValueError names the objective."""
        if not self.name:
            raise ValueError(f"the name of an objective is {self.name!r}: use a text such as 'error'")
        if not callable(self.measure):
            raise ValueError(f"objective {self.name!r}: measure is {self.measure!r}, which cannot be called")
        if self.goal not in ("min", "max"):
            raise ValueError(f"objective {self.name!r}: goal is {self.goal!r}: use 'min' or 'max'")
        for bound in (self.at_most, self.at_least):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"objective {self.name!r}: the bound {bound} is not finite: use None for no bound")
        if self.at_most is not None and self.at_least is not None and self.at_most < self.at_least:
            raise ValueError(f"objective {self.name!r}: at_most {self.at_most} is below at_least {self.at_least}")

    @cached_property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return self.at_most is not None or self.at_least is not None

    def excess(self, value: float) -> float:
        """Return how far `value` is beyond a bound, relative to it (to 1 for a bound of 0); inf for NaN."""
        beyond = 0.0
        if math.isnan(value):
            return math.inf if self.bounded else 0.0
        if self.at_most is not None and value > self.at_most:
            beyond = (value - self.at_most) / (abs(self.at_most) or 1.0)
        elif self.at_least is not None and value < self.at_least:
            beyond = (self.at_least - value) / (abs(self.at_least) or 1.0)
        return beyond


def costs(trial: Trial, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return one number per objective, all to be minimised; inf where the value is missing or not finite."""
    return tuple([_cost(trial.values.get(objective.name), objective.goal) for objective in objectives])


def _cost(value: float | None, goal: str) -> float:
    if value is None or not math.isfinite(value):
        return math.inf
    return value if goal == "min" else -value


def violation(trial: Trial, objectives: Sequence[Objective]) -> float:
    """Return the sum of the relative excesses: 0.0 if feasible; a missing value exceeds nothing."""
    return sum(
        [
            objective.excess(trial.values[objective.name])
            for objective in objectives
            if objective.bounded and objective.name in trial.values
        ],
        0.0,
    )


def check_names(objectives: Sequence[Objective]) -> None:
    """Raise ValueError if there is no objective, or two have one name."""
    names = [objective.name for objective in objectives]
    if not names:
        raise ValueError("there is no objective: give at least one")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two objectives are named {name!r}: give each its own name")
