# SPDX-License-Identifier: Apache-2.0
"""Pareto local search, hill climbing for several objectives.

The multi-objective form of the local search of White, Nolen and Savani, "Exploring the Loss Landscape in
Neural Architecture Search", UAI 2021.

Idea: keep the architectures that no other dominates; evaluate a neighbour of a random one of them that has
neighbours left. Where none has, the archive is a Pareto local optimum, and a random architecture is added.

Differs from the paper: the paper has one objective; an archive takes the place of the present architecture.
While nothing feasible is known, the archive holds those of the least violation (Deb's rules).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, sampled_new
from sartor.trial import Trial


class ParetoLocalSearch:
    """Searches the Pareto front of all objectives within their bounds.

    initial: random architectures that are evaluated first (10, as the authors' code for one objective).
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], *, initial: int = 10) -> None:
        """Start with an empty archive; ValueError for less than one initial architecture."""
        check_names(objectives)
        if initial < 1:
            raise ValueError(f"initial is {initial}: a search starts from at least 1 architecture")
        self.space = space
        self.objectives = tuple(objectives)
        self.initial = initial
        self.archive: dict[Architecture, tuple[float, ...]] = {}
        """Costs by architecture, none dominated by another."""
        self._known: set[Architecture] = set()
        self._violation = np.inf  # of the archive
        self._open: dict[Architecture, list[Architecture]] = {}  # unknown neighbours of members that have any

    def ask(self, rng: random.Random) -> Architecture:
        """Take a random unknown neighbour of a random member that has any, or sample."""
        if len(self._known) < self.initial or not self._open:
            return sampled_new(self.space, rng, self._known)
        return rng.choice(self._open[rng.choice(list(self._open))])

    def tell(self, trial: Trial) -> None:
        """Add what no member dominates, and drop the members that it dominates."""
        if trial.arch in self._known:
            return
        self._known.add(trial.arch)
        for member, neighbours in list(self._open.items()):
            if trial.arch in neighbours:
                neighbours.remove(trial.arch)
                if not neighbours:
                    del self._open[member]
        violation = excess(trial, self.objectives)
        if violation < self._violation:
            self._violation = violation
            self.archive, self._open = {}, {}
        if violation == self._violation and violation < np.inf:
            self._add(trial.arch, costs(trial, self.objectives))

    def _add(self, arch: Architecture, cost: tuple[float, ...]) -> None:
        if self._violation == 0:
            if any(_dominates(other, cost) for other in self.archive.values()):
                return
            for member in [member for member, other in self.archive.items() if _dominates(cost, other)]:
                del self.archive[member]
                self._open.pop(member, None)
        self.archive[arch] = cost
        if unknown := [other for other in self.space.neighbours(arch) if other not in self._known]:
            self._open[arch] = unknown


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
