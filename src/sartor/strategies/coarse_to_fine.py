# SPDX-License-Identifier: Apache-2.0
"""Coarse-to-fine architecture selection of BigNAS.

Yu, Jin, Liu, Bender, Kindermans, Tan, Huang, Song, Pang and Le, "BigNAS: Scaling Up Neural Architecture Search with Big
Single-Stage Models", ECCV 2020, arXiv:2003.11142, section 3.3.

Idea: the dimensions of a network (resolution, depth, width, kernel) first take a few values each, the same in all its
stages: this grid finds the skeletons of the front. Then every stage of a good skeleton varies by itself, a little, at
random.

Differs from the paper: a dimension is what the last part of a choice's name says, and its values are evenly spaced
options; a grid that is larger than `coarse` is drawn from; the skeletons are those of the front of all objectives
within their bounds, which moves as the fine trials go on, instead of one for each budget.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from sartor.architecture import Architecture, Option
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.pareto import non_dominated_sort
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess, sampled_within
from sartor.strategies._operators import excess
from sartor.trial import Trial

_ATTEMPTS = 100


class CoarseToFine:
    """Evaluates a grid of skeletons, then small changes of the best.

    levels: values of each dimension in the grid.
    coarse: the most skeletons that are evaluated.
    rate: probability that a choice of a skeleton moves to a neighbouring option, at least one does.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        levels: int = 3,
        coarse: int = 60,
        rate: float = 0.1,
    ) -> None:
        """Start with nothing known; ValueError for fewer than 2 levels, no skeleton, or a rate beyond 0 to 1."""
        check_names(objectives)
        if levels < 2 or coarse < 1 or not 0.0 <= rate <= 1.0:
            raise ValueError(f"levels {levels}, coarse {coarse}, rate {rate}: at least 2 and 1, and from 0 to 1")
        self.space, self.objectives = space, tuple(objectives)
        self.levels, self.rate = levels, rate
        self.dimensions = list(dict.fromkeys(map(dimension, space.choices)))
        self.coarse = min(coarse, math.prod(map(self._values, self.dimensions)))
        self.told: dict[Architecture, Trial] = {}

    def ask(self, rng: random.Random) -> Architecture:
        """Return a skeleton of the grid that was not told; when enough were, or none is left, a neighbour of the front.

        Where neither is found, a random architecture.
        """
        for _ in range(_ATTEMPTS if len(self.told) < self.coarse else 0):
            if (skeleton := self._skeleton(rng)) is not None and self._is_new(skeleton):
                return skeleton
        parents = self.front() if self.told else []
        for _ in range(_ATTEMPTS if parents else 0):
            if (fine := self._fine(rng.choice(parents), rng)) is not None and self._is_new(fine):
                return fine
        return sampled_within(self.space, rng, self.told, self.objectives)

    def _is_new(self, arch: Architecture) -> bool:
        return arch not in self.told and cheap_excess(arch, self.objectives) == 0

    def _values(self, name: str) -> int:
        """Return how many values a dimension has in the grid: fewer than levels where its options are."""
        several = [options for choice, options in self.space.choices.items() if dimension(choice) == name]
        levels = [place / (self.levels - 1) for place in range(self.levels)]
        return len({tuple(key(_at(level, options)) for options in several) for level in levels})

    def tell(self, trial: Trial) -> None:
        """Take in a trial that ended."""
        self.told.setdefault(trial.arch, trial)

    def _skeleton(self, rng: random.Random) -> Architecture | None:
        """Draw a point of the grid; None for one that the constraint forbids."""
        level = {name: rng.randrange(self.levels) / (self.levels - 1) for name in self.dimensions}
        values = {name: _at(level[dimension(name)], options) for name, options in self.space.choices.items()}
        return self._allowed(values)

    def _fine(self, parent: Architecture, rng: random.Random) -> Architecture | None:
        """Draw a small change of a skeleton: some choices move to a neighbouring option."""
        active = [name for name in self.space.choices if self.space.is_active(name, parent)]
        moved = [name for name in active if rng.random() < self.rate] or [rng.choice(active)]
        values: dict[str, Option] = dict(parent)
        for name in moved:
            options = self.space.choices[name]
            place = [*map(key, options)].index(key(parent[name])) + rng.choice((-1, 1))
            values[name] = options[min(max(place, 0), len(options) - 1)]
        return self._allowed(values)

    def front(self) -> list[Architecture]:
        """Return what no other dominates of all that keep the bounds; of the least excess where none does."""
        trials = list(self.told.values())
        beyond = [excess(trial, self.objectives) for trial in trials]
        least = [trial for trial, over in zip(trials, beyond, strict=True) if over == min(beyond)]
        if math.isinf(min(beyond)):
            return [trial.arch for trial in least]
        points = np.nan_to_num(np.array([costs(trial, self.objectives) for trial in least]), nan=np.inf)
        return [least[place].arch for place in non_dominated_sort(points)[0]]

    def _allowed(self, values: dict[str, Option]) -> Architecture | None:
        arch = self.space.canonical(values)
        return arch if arch in self.space else None


def dimension(name: str) -> str:
    """Return what a choice is about, by the last part of its name: `stages.0.1.kernel` is a kernel."""
    return name.rpartition(".")[2]


def _at(level: float, options: Sequence[Option]) -> Option:
    return options[round(level * (len(options) - 1))]
