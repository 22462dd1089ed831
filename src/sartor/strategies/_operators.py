# SPDX-License-Identifier: Apache-2.0
"""Steps that several strategies share."""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, violation
from sartor.space import NothingFound, SearchSpace
from sartor.trial import Trial


def excess(trial: Trial, objectives: Sequence[Objective]) -> float:
    """Return the constraint violation of Deb's rules: 0.0 if feasible, inf for a failed trial."""
    return math.inf if trial.state == "failed" else violation(trial, objectives)


def sampled_new(
    space: SearchSpace, rng: random.Random, seen: Container[Architecture], attempts: int = 100
) -> Architecture:
    """Sample an architecture that is not in `seen`; after so many attempts, one that is."""
    for _ in range(attempts):
        arch = space.sample(rng)
        if arch not in seen:
            break
    return arch


def mutated(space: SearchSpace, arch: Architecture, rng: random.Random, rate: float | None = None) -> Architecture:
    """Mutate; sample where nothing else is near, for the constraint or for lack of options."""
    try:
        return space.mutate(arch, rng, rate)
    except NothingFound:
        return space.sample(rng)
