# SPDX-License-Identifier: Apache-2.0
"""What measuring a candidate gave, or why it gave nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.trial import State

_LINE = 200


class Outcome(NamedTuple):
    """All values until the end, how it ended ("asked" if more is to be measured), why, and the time it took."""

    values: Mapping[str, float]
    state: State = "done"
    note: str = ""
    seconds: float = 0.0

    def then(self, rest: Outcome) -> Outcome:
        """Return this outcome continued by that of the remaining objectives."""
        if not self.values:
            return rest
        return rest._replace(values={**self.values, **rest.values}, seconds=self.seconds + rest.seconds)


def measured(
    objectives: Sequence[Objective], arch: Architecture, budget: float = 1.0, known: Mapping[str, float] | None = None
) -> Outcome:
    """Measure the objectives in order; stop at the first that fails or exceeds a bound.

    The bound of an objective with `fidelity` is one of its full value and ends nothing of a smaller budget.

    known: values by the name of the objective, which are used instead of measuring it.
    """
    start = time.perf_counter()
    values: dict[str, float] = {}
    state: State = "done"
    note = ""
    for objective in objectives:
        try:
            if known and objective.name in known:
                value = known[objective.name]
            else:
                value = float(objective.measure(arch, budget) if objective.fidelity else objective.measure(arch))
        except (Exception, SystemExit) as error:
            state, note = "failed", one_line(f"{objective.name}: {type(error).__name__}: {error}")
            break
        if not math.isfinite(value):
            state, note = "failed", f"{objective.name} is {value}"
            break
        values[objective.name] = value
        binding = objective.bounded and (budget == 1.0 or not objective.fidelity)
        if binding and objective.excess(value) > 0:
            state, note = "infeasible", _exceeded(objective, value)
            break
    return Outcome(values, state, note, time.perf_counter() - start)


def one_line(text: str) -> str:
    """Return the text without line breaks, cut to a length that a log and a terminal can show."""
    text = " ".join(text.split())
    return text if len(text) <= _LINE else text[: _LINE - 3] + "..."


def _exceeded(objective: Objective, value: float) -> str:
    above = objective.at_most is not None and value > objective.at_most
    side, bound = ("above at_most", objective.at_most) if above else ("below at_least", objective.at_least)
    by = f"{objective.excess(value):.1%}" if bound else f"{abs(value):.6g}"
    return f"{objective.name} {value:.6g} is {side} {bound:.6g} by {by}"
