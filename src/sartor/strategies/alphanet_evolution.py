# SPDX-License-Identifier: Apache-2.0
"""AlphaNet's evolution: keep the best architecture of each cost, mutate and cross what is kept.

Wang, Gong, Li, Liu and Chandra: "AlphaNet: Improved Training of Supernets with Alpha-Divergence", ICML 2021,
arXiv:2102.07954; the search is that of the official code, facebookresearch/AlphaNet.

The idea: costs are rounded to bins, and of each bin the best architecture is kept, whether or not that of another bin
dominates it. Parents are drawn from all bins alike, so that every cost is searched. A bin's best never gets worse.

Differs from the code:
- A child is a mutation or a crossing with equal chance, as a round has as many of both. Nothing waits for a round to
  end, so that several workers are always busy.
- Without a `width`, bins are a 40th of the range of costs in the first population (the code: 10 MFLOPs).
- What is beyond a bound of an objective is not kept; the code draws again before it evaluates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, mutated, sampled_new
from sartor.trial import Trial

__all__ = ["AlphaNetEvolution"]

_BINS, _MATINGS = 40, 20


class AlphaNetEvolution:
    """Searches the best value of the first objective at each value of the second; with one objective, its best.

    population: random architectures first, the smallest among them (512). mutation: chance that a choice changes (0.2).
    width: of a bin, in the unit of the second objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 512,
        mutation: float = 0.2,
        width: float | None = None,
    ) -> None:
        """Start without architectures; ValueError for numbers out of range."""
        check_names(objectives)
        if population < 1 or not 0 <= mutation <= 1 or (width is not None and width <= 0):
            raise ValueError(
                f"population is {population}, mutation {mutation} and width {width}: "
                "at least 1, a probability, and a size above 0"
            )
        self.space, self.objectives = space, tuple(objectives)
        self.population, self.mutation, self.width = population, mutation, width
        self.archive: dict[int, tuple[float, Architecture]] = {}
        """By bin: the best value of the first objective, to be minimised, and its architecture."""
        self._known: set[Architecture] = set()
        self._first: list[tuple[float, float, Architecture]] = []  # of the first population: value, cost, architecture
        self._told = 0

    def ask(self, rng: random.Random) -> Architecture:
        """Sample the first population; then mutate one that is kept, or cross two."""
        if self._told < self.population or not self.archive:
            smallest = self.space.smallest()
            fits = self.space.constraint is None or self.space.constraint(smallest)
            return smallest if not self._known and fits else sampled_new(self.space, rng, self._known)
        kept = [arch for _, (_, arch) in sorted(self.archive.items())]
        for _ in range(_MATINGS):
            if rng.random() < 0.5:
                child = mutated(self.space, rng.choice(kept), rng, self.mutation)
            else:
                child = self.space.crossover(rng.choice(kept), rng.choice(kept), rng)
            if child not in self._known:
                return child
        return sampled_new(self.space, rng, self._known)

    def tell(self, trial: Trial) -> None:
        """Keep the architecture if it is the best of its bin."""
        self._told += 1
        self._known.add(trial.arch)
        if trial.state == "done" and excess(trial, self.objectives) == 0:
            value, *others = costs(trial, self.objectives)
            cost = others[0] if others else 0.0
            if max(value, cost) < float("inf"):
                self._keep(value, cost, trial.arch)
        if self._told == self.population and self.width is None:
            self._rebin()

    def _keep(self, value: float, cost: float, arch: Architecture) -> None:
        if self.width is None:
            self._first.append((value, cost, arch))
        place = round(cost / (self.width or 1.0))
        if place not in self.archive or value < self.archive[place][0]:
            self.archive[place] = value, arch

    def _rebin(self) -> None:
        """Choose the width of bins by the costs of the first population."""
        found = [cost for _, cost, _ in self._first]
        self.width = (max(found) - min(found)) / _BINS if found else None
        self.width = self.width or 1.0
        first, self._first, self.archive = self._first, [], {}
        for value, cost, arch in first:
            self._keep(value, cost, arch)
