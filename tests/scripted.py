# SPDX-License-Identifier: Apache-2.0
"""A strategy that asks for what it is told to, the space that it asks in, and objectives of one number."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.space import SearchSpace
from sartor.trial import Trial

SPACE = SearchSpace({"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)})


class Scripted:
    """Asks for what it is told to."""

    def __init__(self, *values: tuple[int, int]) -> None:
        self.archs = [Architecture({"a": a, "b": b}) for a, b in values]
        self.told: list[Trial] = []
        self.asked = 0

    def ask(self, rng: random.Random) -> Architecture:
        self.asked += 1
        return self.archs[self.asked - 1]

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


def one(measure: Callable[[Architecture], float], **fields: Any) -> list[Objective]:
    return [Objective("x", measure, **fields)]
