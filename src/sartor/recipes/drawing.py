# SPDX-License-Identifier: Apache-2.0
"""The trials of a differentiable search: what it reads out, what its distribution gives, and what lies near."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from sartor.architecture import Architecture, Option
from sartor.objective import Objective, costs, violation
from sartor.pareto import non_dominated_sort
from sartor.space import SearchSpace
from sartor.trial import Trial

__all__ = ["Drawn"]

NEAR = 3  # every third trial is a neighbour of the front
DRAWS = 60  # in search of a network that was not told; each from a flatter distribution
RARE = 1e-3  # the least probability of an option here: what was learned may be wrong, and one-hot
OTHER = 1 / 4  # chance that a choice without probabilities leaves the read-out


class Drawn:
    """A `Strategy` that looks where a learned distribution points, so that a front can be verified.

    The first trial is the architecture that was read out. Then of every three two are drawn from the distribution,
    which is flattened until the draw is new, and one is a neighbour of the front so far.

    Args:
        space, objectives: of the search.
        first: the architecture that was read out.
        probabilities: of the options of choices, by name. Of other choices, such as the inputs of nodes, the read-out's
            option is taken three times out of four, and any other else.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        first: Architecture,
        probabilities: Mapping[str, Sequence[float]],
    ) -> None:
        self.space, self.objectives, self.first = space, objectives, first
        self.probabilities = {name: row for name, row in probabilities.items() if name in space.choices}
        self.told: dict[Architecture, Trial] = {}

    def ask(self, rng: random.Random) -> Architecture:
        """Return the next architecture; one that was told already only where hardly any other is left."""
        if self.first not in self.told:
            return self.first
        near = len(self.told) % NEAR == 0
        for attempt in range(DRAWS):
            arch = self.space.mutate(rng.choice(self.front()), rng) if near else self.drawn(rng, attempt / DRAWS)
            if arch not in self.told:
                return arch
        return self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        """Take in a trial that ended."""
        self.told.setdefault(trial.arch, trial)

    def drawn(self, rng: random.Random, flatness: float) -> Architecture:
        """Return a draw from the distribution to the power 1 - flatness, uniform at 1."""
        found: dict[str, Option] = {}
        for name, options in self.space.choices.items():
            row = self.probabilities.get(name)
            if row is None or len(row) != len(options):
                found[name] = rng.choice(options) if rng.random() < OTHER else self.first[name]
            else:
                found[name] = rng.choices(options, [max(float(one), RARE) ** (1.0 - flatness) for one in row])[0]
        return self.space.canonical(found)

    def front(self) -> list[Architecture]:
        """Return the told architectures that no other dominates; the read-out where none is feasible."""
        done = [
            trial for trial in self.told.values() if trial.state == "done" and not violation(trial, self.objectives)
        ]
        if not done:
            return [self.first]
        points = np.array([costs(trial, self.objectives) for trial in done])
        return [done[i].arch for i in non_dominated_sort(points)[0]]
