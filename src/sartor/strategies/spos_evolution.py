# SPDX-License-Identifier: Apache-2.0
"""The evolution of SPOS: children of the ten best that were ever found, none of them evaluated twice.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun: "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
ECCV 2020, arXiv:1904.00420, Algorithm 1. Official code: megvii-model/SinglePathOneShot.

Idea: an evaluation with shared weights is inference alone, so that a plain genetic search with hard limits suffices.
Each generation has as many crossovers as mutations of the best of all generations; what is beyond a limit or was seen
before is drawn again.

Differs from the paper: any search space; a mutation changes at least one choice, and never to itself. Each child is
drawn again up to 10 times, where the authors' code allows 10 times as many draws as children for all together; then a
random network takes its place, as there. A generation ends when `population` trials were told: nothing waits for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess, sampled_within
from sartor.strategies._operators import excess, mutated
from sartor.trial import Trial

_TRIES = 10


class SPOSEvolution:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    population: networks of a generation (50).
    best: how many of the best so far have children (10).
    mutations, crossovers: children of each kind in a generation (25 and 25; the rest is random).
    rate: chance that a mutation changes a choice (0.1).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 50,
        best: int = 10,
        mutations: int = 25,
        crossovers: int = 25,
        rate: float = 0.1,
    ) -> None:
        """Start with nobody known; ValueError for numbers out of range."""
        check_names(objectives)
        if min(best, mutations + crossovers) < 1 or min(mutations, crossovers) < 0:
            raise ValueError(
                f"best is {best}, mutations {mutations}, crossovers {crossovers}: give parents and children"
            )
        if mutations + crossovers > population:
            raise ValueError(
                f"{mutations} mutations and {crossovers} crossovers do not fit in a population of {population}"
            )
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate}: it is a probability, from 0 to 1")
        self.space, self.objectives = space, tuple(objectives)
        self.population, self.best, self.rate = population, best, rate
        self.mutations, self.crossovers = mutations, crossovers
        self.parents: list[Architecture] = []
        self._fitness: dict[Architecture, tuple[float, float]] = {}  # of the best, and of this generation
        self._seen: set[Architecture] = set()
        self._told = 0  # in this generation

    def ask(self, rng: random.Random) -> Architecture:
        """Sample the first generation; of the later ones mutate first, then cross, then sample."""
        for _ in range(_TRIES if self.parents and self._told < self.mutations + self.crossovers else 0):
            child = self._mutant(rng) if self._told < self.mutations else self._crossed(rng)
            if child not in self._seen and cheap_excess(child, self.objectives) == 0:
                return child
        return sampled_within(self.space, rng, self._seen, self.objectives)

    def tell(self, trial: Trial) -> None:
        """Remember the network; with the last of a generation, let the best of all so far be the parents."""
        self._seen.add(trial.arch)
        self._fitness.setdefault(trial.arch, (excess(trial, self.objectives), costs(trial, self.objectives[:1])[0]))
        self._told += 1
        if self._told == self.population:
            self.parents = sorted(self._fitness, key=self._fitness.__getitem__)[: self.best]
            self._fitness = {arch: self._fitness[arch] for arch in self.parents}
            self._told = 0

    def _mutant(self, rng: random.Random) -> Architecture:
        return mutated(self.space, rng.choice(self.parents), rng, self.rate)

    def _crossed(self, rng: random.Random) -> Architecture:
        return self.space.crossover(rng.choice(self.parents), rng.choice(self.parents), rng)
