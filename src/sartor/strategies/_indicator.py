# SPDX-License-Identifier: Apache-2.0
"""The constraint indicator: what the bounds say of an architecture that was not run yet."""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.space import SearchSpace
from sartor.strategies._operators import sampled_new

_ATTEMPTS = 300


def cheap_excess(arch: Architecture, objectives: Sequence[Objective]) -> float:
    """Return how far an architecture is beyond the bounds of its cheap objectives: 0.0 if within all.

    Only objectives that are cheap and bounded are measured, and never the first one, which is what is searched: a
    look at it would be a query. One that raises, or gives no finite number, counts as inf: the search would end
    such a candidate as failed.
    """
    beyond = 0.0
    for objective in objectives[1:]:
        if not (objective.cheap and objective.bounded):
            continue
        try:
            value = float(objective.measure(arch, 1.0) if objective.fidelity else objective.measure(arch))
        except Exception:
            return math.inf
        if not math.isfinite(value):
            return math.inf
        beyond += objective.excess(value)
    return beyond


def sampled_within(
    space: SearchSpace, rng: random.Random, seen: Container[Architecture], objectives: Sequence[Objective]
) -> Architecture:
    """Sample what is not in `seen` and within the cheap bounds; after 300 attempts, what may be beyond them."""
    for _ in range(_ATTEMPTS):
        arch = sampled_new(space, rng, seen)
        if cheap_excess(arch, objectives) == 0:
            break
    return arch
