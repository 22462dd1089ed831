# SPDX-License-Identifier: Apache-2.0
"""Regularized (aging) evolution.

Real, Aggarwal, Huang and Le, "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019,
arXiv:1802.01548, Algorithm 1.

Idea: the best of a random tournament has a child that differs in one choice; the child joins the population,
and the oldest individual dies, not the worst. A lucky evaluation is then forgotten unless its children are
good as well.

Differs from the paper: the mutation changes one choice of any search space, never to itself (the paper's,
made for its cells, keeps the parent with probability 0.05); infeasible and failed individuals join the
population too, and lose every tournament against feasible ones (Deb's rules).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, mutated
from sartor.trial import Trial


class RegularizedEvolution:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    population: individuals alive, P (100: the paper's experiments).
    tournament: draws with replacement, S (25).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 100,
        tournament: int = 25,
    ) -> None:
        """Start with nobody alive; ValueError for sizes below 1."""
        check_names(objectives)
        if population < 1 or tournament < 1:
            raise ValueError(f"population is {population} and tournament {tournament}: both must be at least 1")
        self.space = space
        self.objectives = tuple(objectives)
        self.size = population
        self.tournament = tournament
        self.population: deque[Trial] = deque(maxlen=population)
        self._fitness: deque[tuple[float, float]] = deque(maxlen=population)  # smaller is better

    def ask(self, rng: random.Random) -> Architecture:
        """Sample until the population is full, then mutate the winner of a tournament."""
        if len(self.population) < self.size:
            return self.space.sample(rng)
        sample = [int(rng.random() * self.size) for _ in range(self.tournament)]
        parent = min(sample, key=self._fitness.__getitem__)
        return mutated(self.space, self.population[parent].arch, rng)

    def tell(self, trial: Trial) -> None:
        """Add the individual; the oldest dies (by order of completion, if several are evaluated at once)."""
        self.population.append(trial)
        self._fitness.append((excess(trial, self.objectives), costs(trial, self.objectives[:1])[0]))
