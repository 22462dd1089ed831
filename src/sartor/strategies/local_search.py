# SPDX-License-Identifier: Apache-2.0
"""Local search (hill climbing).

White, Nolen and Savani, "Exploring the Loss Landscape in Neural Architecture Search", UAI 2021.

Idea: evaluate the architectures that differ from the present one in one choice, and move where it is better;
where no neighbour is, start again. Where evaluations carry little noise there are few local optima, and then
this is hard to beat; it degrades with noise and on large spaces.

Differs from the paper: a climb starts from one random architecture instead of the best of ten (the default of
the authors' code); a neighbour that an earlier climb evaluated is not asked for again but counts, so that a
local optimum has no better neighbour; infeasible and failed neighbours are worse than all feasible ones (Deb's
rules).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sartor.architecture import Architecture
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, sampled_new
from sartor.trial import Trial


class LocalSearch:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    initial: random architectures of which the best starts a climb (the authors' code: 10).
    steepest: move to the best neighbour once all are evaluated, instead of to the first that is better.
    restart: at a local optimum, start again; without, go on from the best architecture that has neighbours
        left to evaluate (a best-first search).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        initial: int = 1,
        steepest: bool = False,
        restart: bool = True,
    ) -> None:
        """Start nowhere; ValueError for less than one initial architecture."""
        check_names(objectives)
        if initial < 1:
            raise ValueError(f"initial is {initial}: a climb starts from at least 1 architecture")
        self.space = space
        self.objectives = tuple(objectives)
        self.initial = initial
        self.steepest = steepest
        self.restart = restart
        self.current: Architecture | None = None
        self.optima: dict[Architecture, None] = {}
        """Local optima in the order in which they were found: no neighbour is better."""
        self._known: dict[Architecture, tuple[float, float]] = {}  # smaller is better
        self._expanded: set[Architecture] = set()  # left for good, in a best-first search
        self._starts: list[Architecture] = []
        self._neighbours: list[Architecture] = []
        self._open: list[Architecture] = []  # those of them that were not evaluated

    def ask(self, rng: random.Random) -> Architecture:
        """Sample where a climb starts, then take a random neighbour that was not evaluated."""
        if self.current is None:
            return sampled_new(self.space, rng, self._known)
        return rng.choice(self._open)

    def tell(self, trial: Trial) -> None:
        """Remember the value, and move as far as what is known allows."""
        self._known[trial.arch] = (excess(trial, self.objectives), costs(trial, self.objectives[:1])[0])
        if self.current is None:
            self._starts.append(trial.arch)
            if len(self._starts) < self.initial:
                return
            self._move(min(self._starts, key=self._known.__getitem__))
        elif not self.steepest and self._known[trial.arch] < self._known[self.current]:
            self._move(trial.arch)
        else:
            self._open = [arch for arch in self._open if arch not in self._known]
        while self.current is not None and not self._open:
            better = self._better(self.current)
            if better is not None:
                self._move(better)
            else:
                self._leave(self.current)

    def _better(self, current: Architecture) -> Architecture | None:
        """Return the best neighbour that is known and can be moved to, if it is better."""
        known = [arch for arch in self._neighbours if arch in self._known and arch not in self._expanded]
        best = min(known, key=self._known.__getitem__, default=current)
        return best if self._known[best] < self._known[current] else None

    def _leave(self, current: Architecture) -> None:
        """Start again from a random architecture, or go on from the best that was not left yet."""
        if all(self._known[current] <= self._known[arch] for arch in self._neighbours):
            self.optima.setdefault(current)
        self.current = None
        self._starts = []
        if not self.restart:
            self._expanded.add(current)
            if left := self._known.keys() - self._expanded:
                self._move(min(left, key=lambda arch: (self._known[arch], arch.to_json())))

    def _move(self, arch: Architecture) -> None:
        self.current = arch
        self._neighbours = self.space.neighbours(arch)
        self._open = [other for other in self._neighbours if other not in self._known]
