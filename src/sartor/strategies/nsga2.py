# SPDX-License-Identifier: Apache-2.0
"""NSGA-II, the non-dominated sorting genetic algorithm.

Deb, Pratap, Agarwal and Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE
Transactions on Evolutionary Computation 6(2), 2002.

Idea: of parents and children together the best fronts survive, the last one thinned out where it is crowded;
parents are chosen by binary tournaments on (front, crowding).

Differs from the paper: choices are recombined by uniform crossover and mutated by drawing another option,
since they are categorical; one child per mating; an architecture that lives already is not made again. A
generation ends when `population` children were told, whichever generation asked for them: nothing waits, so
that several workers are always busy, and one worker does exactly the generations of the paper.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.pareto import Indices, Points, crowding_distance, front_numbers
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, mutated, sampled_new
from sartor.trial import Trial

_MATINGS = 10


class NSGA2:
    """Searches the Pareto front of all objectives within their bounds.

    population: parents, and children of a generation, N (100: section IV).
    crossover: probability that a child has two parents (0.9).
    mutation: probability that a choice of a child changes (default 1/n for n choices).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        population: int = 100,
        crossover: float = 0.9,
        mutation: float | None = None,
    ) -> None:
        """Start without parents; ValueError for numbers out of range."""
        check_names(objectives)
        free = sum(len(options) > 1 for options in space.choices.values()) or 1
        mutation = 1 / free if mutation is None else mutation
        if population < 2:
            raise ValueError(f"population is {population}: it must be at least 2")
        if not (0 <= crossover <= 1 and 0 <= mutation <= 1):
            raise ValueError(f"crossover is {crossover} and mutation {mutation}: both are probabilities, from 0 to 1")
        self.space = space
        self.objectives = tuple(objectives)
        self.size = population
        self.crossover = crossover
        self.mutation = mutation
        self.parents: list[Architecture] = []
        self._order: list[int] = []  # by parent: its place by front, then crowding; equals share a place
        self._members: list[_Member] = []  # parents, then the children told so far
        self._alive: set[Architecture] = set()
        self._told = 0  # in this generation
        self._changes = 1 - (1 - mutation) ** free  # chance that a child mutates at all

    def ask(self, rng: random.Random) -> Architecture:
        """Sample the first generation, then mate; a new architecture if a few attempts find one."""
        if not self.parents:
            return sampled_new(self.space, rng, self._alive)
        for _ in range(_MATINGS):
            child = self._child(rng)
            if child not in self._alive:
                return child
        return sampled_new(self.space, rng, self._alive)

    def tell(self, trial: Trial) -> None:
        """Add a child, unless it lives already; with the last of a generation, select who survives."""
        self._told += 1
        if trial.arch not in self._alive:
            self._alive.add(trial.arch)
            self._members.append(_Member(trial.arch, costs(trial, self.objectives), excess(trial, self.objectives)))
        if self._told == self.size:
            self._survive()

    def _child(self, rng: random.Random) -> Architecture:
        child = self._winner(rng)
        if rng.random() < self.crossover:
            child = self.space.crossover(child, self._winner(rng), rng)
        if rng.random() < self._changes:
            child = mutated(self.space, child, rng, self.mutation)
        return child

    def _winner(self, rng: random.Random) -> Architecture:
        """Return the better of two random parents: by front, then by crowding."""
        count = len(self.parents)
        one, other = int(rng.random() * count), int(rng.random() * count)
        return self.parents[one if self._order[one] <= self._order[other] else other]

    def _survive(self) -> None:
        """Keep the best N of parents and children, front by front, the last front by crowding."""
        points = np.array([member.costs for member in self._members])
        fronts = _constrained_fronts(points, np.array([member.excess for member in self._members]))
        crowding = crowding_distance(points, fronts)
        survivors = np.lexsort((-crowding, fronts))[: self.size]
        fronts, crowding = fronts[survivors], crowding[survivors]
        worse = (fronts[1:] != fronts[:-1]) | (crowding[1:] != crowding[:-1])
        self._order = [0, *np.cumsum(worse).tolist()]
        self._members = [self._members[i] for i in survivors.tolist()]
        self.parents = [member.arch for member in self._members]
        self._alive = set(self.parents)
        self._told = 0


class _Member(NamedTuple):
    arch: Architecture
    costs: tuple[float, ...]
    excess: float


def _constrained_fronts(points: Points, excesses: Points) -> Indices:
    """Number the front of each point under the constrained dominance of section VI, from 0.

    Feasible points come first, front by front, then those of ever larger violations.
    """
    fronts = np.zeros(len(points), dtype=np.intp)
    feasible = excesses == 0
    fronts[feasible] = front_numbers(points[feasible])
    fronts[~feasible] = len(points) + np.unique(excesses[~feasible], return_inverse=True)[1]
    return fronts
