# SPDX-License-Identifier: Apache-2.0
"""EEEA-Net: evolution that starts among cheap networks (early-exit population initialisation).

Termritthikun, Jamtsho, Ieamsaard, Muneesawang and Lee, "EEEA-Net: An Early Exit Evolutionary Neural Architecture
Search", Engineering Applications of Artificial Intelligence, 2021, arXiv:2108.06156.

Idea: a network of the first generation whose cost is not below a threshold is thrown away before any training, and
drawn again. Evolution then starts among cheap networks and mostly stays there, so that every evaluation is cheaper
and the cheap end of the front is covered well. Only the first generation is bounded; no network exits early.

Differs from the paper: the cost is any function of an architecture (the paper: parameters of the full-size network,
below 3, 4 or 5 million). One child per mating. The inversion exchanges two choices; in the authors' code it copies
one onto the other. Crowding is counted within a front. Networks beyond a bound are ranked by Deb's rules.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from sartor.architecture import Architecture
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.pareto import crowding_distance, non_dominated_sort
from sartor.protocols import Strategy
from sartor.space import NothingFound, SearchSpace
from sartor.strategies._operators import excess, mutated, sampled_new
from sartor.trial import Candidate, Trial

_MATINGS = 20
_MUTATIONS = 20
_SAMPLES = 500


class EEEANet:
    """Searches the Pareto front of all objectives within their bounds.

    cost: what the first generation is bounded by, of an architecture, before it is evaluated (default: the first
        objective behind the first that is cheap and to be minimised; without one, nothing is thrown away).
    threshold: the first generation costs less than this, the paper's beta (default: the median of the cost over 500
        random networks; the paper's 3, 4 and 5 million parameters are for its space). With `inf` nothing is thrown
        away, and the search is that of `evolution`.
    population: size of the first generation (40).
    evolution: what goes on from the first generation, a new strategy that draws as many at first itself, such as
        `NSGA2(space, objectives, population=40)` (default: `EliteGenetics`, the paper's).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        cost: Callable[[Architecture], float] | None = None,
        threshold: float | None = None,
        population: int = 40,
        evolution: Strategy | None = None,
    ) -> None:
        """Start without networks; ValueError for a population below 2 or a threshold without a cost."""
        check_names(objectives)
        if population < 2:
            raise ValueError(f"population is {population}: it must be at least 2")
        cheap = (one.measure for one in objectives[1:] if one.cheap and one.goal == "min" and not one.fidelity)
        cost = next(cheap, None) if cost is None else cost
        if cost is None and threshold not in (None, math.inf):
            raise ValueError(f"threshold is {threshold}, but nothing says of what: give cost, or a cheap objective")
        self.space = space
        self.population = population
        if evolution is None:
            evolution = EliteGenetics(space, objectives, population=population)
        self.evolution = evolution
        self.threshold = math.inf
        self._early = space
        if cost is not None:
            self.threshold = _median(space, cost) if threshold is None else threshold
            self._early = SearchSpace(
                space.choices, space.gates, partial(_is_early, cost, self.threshold, space.constraint)
            )
        self._first: set[Architecture] = set()
        self._told = 0

    def ask(self, rng: random.Random) -> Architecture | Candidate:
        """Draw the first generation below the threshold, then leave it to the evolution.

        Raises NothingFound if 10,000 networks in a row are not below the threshold.
        """
        if self._told >= self.population:
            return self.evolution.ask(rng)
        try:
            return sampled_new(self._early, rng, self._first)
        except NothingFound:
            raise NothingFound(
                f"none of 10,000 random networks is allowed and costs less than {self.threshold:g}: raise the threshold"
            ) from None

    def tell(self, trial: Trial) -> None:
        """Pass the trial on, and count."""
        if self._told < self.population:
            self._first.add(trial.arch)
        self._told += 1
        self.evolution.tell(trial)


class EliteGenetics:
    """The paper's genetic algorithm: few survivors, and children that were never seen before.

    population: networks of a generation, its parents included (40).
    survivors: part of them that become parents (0.1; "crossover probability" in the authors' code).
    mutation: probability that one choice of a child is drawn again (0.1).
    inversion: probability that two neighbouring choices of a child are exchanged (0.1).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 40,
        survivors: float = 0.1,
        mutation: float = 0.1,
        inversion: float = 0.1,
    ) -> None:
        """Start without parents; ValueError for numbers out of range."""
        check_names(objectives)
        if population < 2 or not 0 < survivors < 1:
            raise ValueError(f"population is {population} and survivors {survivors}: at least 2, and between 0 and 1")
        if not (0 <= mutation <= 1 and 0 <= inversion <= 1):
            raise ValueError(f"mutation is {mutation} and inversion {inversion}: both are probabilities, from 0 to 1")
        self.space = space
        self.objectives = tuple(objectives)
        self.population = population
        self.survivors = max(1, round(survivors * population))
        self.mutation = mutation
        self.inversion = inversion
        self.parents: list[Architecture] = []
        self._fronts: list[int] = []  # of the parents
        self._members: list[_Member] = []  # parents, then the children told so far
        self._seen: set[Architecture] = set()

    def ask(self, rng: random.Random) -> Architecture:
        """Sample the first generation, then mate until the child was never seen, mutating it in the end."""
        if not self.parents:
            return sampled_new(self.space, rng, self._seen)
        for _ in range(_MATINGS):
            child = self._child(rng)
            if child not in self._seen:
                return child
        for _ in range(_MUTATIONS):
            child = mutated(self.space, child, rng)
            if child not in self._seen:
                return child
        return sampled_new(self.space, rng, self._seen)

    def tell(self, trial: Trial) -> None:
        """Add a member; with the last of a generation, select the parents of the next."""
        self._seen.add(trial.arch)
        self._members.append(_Member(trial.arch, costs(trial, self.objectives), excess(trial, self.objectives)))
        if len(self._members) == self.population:
            self._select()

    def _child(self, rng: random.Random) -> Architecture:
        child = self.space.crossover(self._winner(rng), self._winner(rng), rng)
        if rng.random() < self.mutation:
            child = mutated(self.space, child, rng)
        return self._inverted(child, rng) if rng.random() < self.inversion else child

    def _winner(self, rng: random.Random) -> Architecture:
        """Return the least dominated of a tournament of half the parents."""
        drawn = rng.sample(range(len(self.parents)), max(1, len(self.parents) // 2))
        return self.parents[min(drawn, key=self._fronts.__getitem__)]

    def _inverted(self, arch: Architecture, rng: random.Random) -> Architecture:
        """Exchange two neighbouring choices of equal options; the same network if the constraint refuses it."""
        names = list(arch)
        pairs = [(a, b) for a, b in itertools.pairwise(names) if _options(self.space, a, b)]
        if not pairs:
            return arch
        a, b = rng.choice(pairs)
        exchanged = self.space.canonical(arch.replace({a: arch[b], b: arch[a]}))
        return exchanged if self.space.constraint is None or self.space.constraint(exchanged) else arch

    def _select(self) -> None:
        """Keep the best by front, then by crowding."""
        points = np.array([member.costs for member in self._members])
        excesses = np.array([member.excess for member in self._members])
        feasible = np.flatnonzero(excesses == 0)
        fronts = [feasible[front] for front in non_dominated_sort(points[feasible])]
        fronts += [np.flatnonzero(excesses == value) for value in np.unique(excesses[excesses > 0])]
        order = [
            (rank, int(index))
            for rank, front in enumerate(fronts)
            for index in front[np.argsort(-crowding_distance(points[front]), kind="stable")]
        ]
        self._members = [self._members[index] for _, index in order[: self.survivors]]
        self._fronts = [rank for rank, _ in order[: self.survivors]]
        self.parents = [member.arch for member in self._members]


class _Member(NamedTuple):
    arch: Architecture
    costs: tuple[float, ...]
    excess: float


def _is_early(
    cost: Callable[[Architecture], float],
    threshold: float,
    constraint: Callable[[Architecture], bool] | None,
    arch: Architecture,
) -> bool:
    """Tell whether the first generation may hold `arch`."""
    return (constraint is None or constraint(arch)) and cost(arch) < threshold


def _median(space: SearchSpace, cost: Callable[[Architecture], float]) -> float:
    """Return the median cost of random networks of which it is known, inf if none is below it.

    The networks are always the same ones, so that this is a number of the space.
    """
    rng = random.Random(0)
    found = np.array([cost(space.sample(rng)) for _ in range(_SAMPLES)])
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) and found.min() < np.median(found) else math.inf


def _options(space: SearchSpace, a: str, b: str) -> bool:
    return [*map(key, space.choices[a])] == [*map(key, space.choices[b])]
