# SPDX-License-Identifier: Apache-2.0
"""Greedy slimming of AutoSlim: of all choices, shrink the one that costs the least accuracy, until the budget.

Yu and Huang, "AutoSlim: Towards One-Shot Architecture Search for Channel Numbers", 2019, arXiv:1903.11728.

Idea: start at the largest network of trained shared weights. In each step, evaluate the networks that have one group of
channels less in one layer, and go on from the one with the least error, until the budget is met.

Differs from the paper: a group of channels is one option, and every choice can shrink, not widths alone. A step takes
its networks in random order. When the descent is over, networks that differ from the best in one choice are evaluated.

Unlike NetAdaptV2's descent (`coordinate_descent`), which draws candidates that shrink several choices, a step takes all
networks with one choice one option smaller.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from sartor.architecture import Architecture
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.sizes import ascending
from sartor.space import SearchSpace
from sartor.strategies._operators import excess, mutated, sampled_new
from sartor.trial import Trial


class AutoSlim:
    """Descends from the largest network by the first objective; others count where it is not known, and at the end.

    resource: of an architecture, such as its FLOPs (default: the first objective behind the first that is cheap and to
        be minimised).
    budget: where the descent ends (default: the upper bound of that objective, or where nothing can shrink). Prefer it
        to a bound: networks beyond the bound of a cheap objective are not evaluated, so that the descent goes by what
        they exceed it by.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        resource: Callable[[Architecture], float] | None = None,
        budget: float | None = None,
    ) -> None:
        """Start above the largest network; ValueError for a budget without a resource."""
        check_names(objectives)
        cheap = next((o for o in objectives[1:] if o.cheap and o.goal == "min" and not o.fidelity), None)
        if resource is None and budget is not None and cheap is None:
            raise ValueError(f"the budget {budget} is of no resource: give resource=, or a cheap objective to minimise")
        self.space, self.objectives = space, tuple(objectives)
        self.resource = resource or (cheap.measure if cheap else None)
        bound = cheap.at_most if cheap and resource is None else None
        self.budget = budget if budget is not None else -math.inf if bound is None else bound
        self.current: Architecture | None = None
        """Where the step under way starts from; None until the first network was told."""
        self.path: list[Architecture] = []
        """The networks of the descent, from the largest."""
        self._known: dict[Architecture, tuple[float, float]] = {}  # error and excess
        self._best: tuple[tuple[bool, float, float], Architecture] | None = None  # beyond the budget, excess, error
        self._open: list[Architecture] = []  # candidates of this step that were not told; none when it is over

    def ask(self, rng: random.Random) -> Architecture:
        """Return the largest network, then a candidate of the step; after the descent, a neighbour of the best."""
        if self.current is None:
            largest = self.space.largest()
            return largest if largest in self.space else self.space.sample(rng)
        if self._open:
            return rng.choice(self._open)
        assert self._best is not None
        near = mutated(self.space, self._best[1], rng)
        return near if near not in self._known else sampled_new(self.space, rng, self._known)

    def tell(self, trial: Trial) -> None:
        """Take in a network; where it was the last of the step, go on from the best of them."""
        error, beyond = costs(trial, self.objectives[:1])[0], excess(trial, self.objectives)
        self._known[trial.arch] = error, beyond
        rank = self.budget > -math.inf and not self._is_over(trial.arch), beyond, error
        if self._best is None or rank < self._best[0]:
            self._best = rank, trial.arch
        if self.current is None:
            self._move(trial.arch)
        elif trial.arch in self._open:
            self._open.remove(trial.arch)
        else:
            return
        while not self._open and self.current is not None:
            candidates = [] if self._is_over(self.current) else list(self._shrunk(self.current))
            if not candidates:
                return
            self._move(min(candidates, key=self._known.__getitem__))

    def _move(self, arch: Architecture) -> None:
        self.current = arch
        self.path.append(arch)
        candidates = [] if self._is_over(arch) else self._shrunk(arch)
        self._open = [other for other in candidates if other not in self._known]

    def _is_over(self, arch: Architecture) -> bool:
        return self.resource is not None and self.resource(arch) <= self.budget

    def _shrunk(self, arch: Architecture) -> Iterator[Architecture]:
        """Yield `arch` with each active choice at the next smaller option that the space allows."""
        for name, options in self.space.choices.items():
            ordered = ascending(options)
            place = [key(option) for option in ordered].index(key(arch[name]))
            if self.space.is_active(name, arch):
                smaller = (self.space.canonical(arch.replace({name: option})) for option in ordered[:place][::-1])
                yield from [one for one in smaller if one in self.space][:1]
