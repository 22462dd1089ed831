# SPDX-License-Identifier: Apache-2.0
"""Multi-layer coordinate descent of NetAdaptV2.

Yang, Liao and Sze, "NetAdaptV2: Efficient Neural Architecture Search with Fast Super-Network Training and
Architecture Optimization", CVPR 2021, arXiv:2104.00031. No public code.

Idea: start at the largest network and lower a resource (latency, energy) in steps. In each step, many candidates
shrink a few random choices each until they meet the step's target, and the most accurate goes on. Several choices at
once take larger steps than one, so that fewer steps are needed, and find what no single choice can reach.

Differs from the paper: its number of candidates, choices and step sizes could not be verified; these are ours.
A shrink is any option with less of the resource, so that options need no order. No candidate shrinks further than
its last choice must. When the budget is reached, or nothing can be shrunk, the next descent begins at the top. Where
the number of queries is known, steps and candidates are chosen so that the first descent fits into it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

from sartor.architecture import Architecture
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.sizes import ascending
from sartor.space import SearchSpace
from sartor.strategies._operators import excess
from sartor.trial import Trial

_ATTEMPTS = 10


class CoordinateDescent:
    """Descends in a resource along the best networks by the first objective; others count through their bounds.

    resource: of an architecture, before it is evaluated, such as a latency from a look-up table (default: the first
        objective behind the first that is cheap and to be minimised; without one, the mean place of the options).
    budget: where a descent ends (default: the upper bound of that objective, else 0). Prefer it to a bound: networks
        beyond a bound are not evaluated, so that there is nothing to choose by on the way, and the first step must
        go down to the bound at once.
    samples: candidates of a step, J (100: ours).
    layers: share of the choices that each shrinks, at least one choice, L (default: 0.1, but at least two choices,
        without which nothing is multi-layer: ours).
    step: first reduction as a share of the largest network's resource (0.03: ours), which each step multiplies by
        decay (0.98: ours).
    keep: which candidate goes on: that of the least "cost", or of the least "ratio" of what the cost rises by to what
        the resource falls by.
    queries: the number of evaluations, if it is known: they make one descent of T steps with J = 2 T candidates, in
        place of `samples` and `step`, with which a descent to nothing takes some 5,400.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        resource: Callable[[Architecture], float] | None = None,
        budget: float | None = None,
        samples: int = 100,
        layers: float | None = None,
        step: float = 0.03,
        decay: float = 0.98,
        keep: Literal["cost", "ratio"] = "cost",
        queries: int | None = None,
    ) -> None:
        """Start above the largest network; ValueError for numbers out of range."""
        check_names(objectives)
        if queries is not None and queries < 1:
            raise ValueError(f"queries is {queries}: give at least 1, or None where it is not known")
        free = sum(len(options) > 1 for options in space.choices.values())
        layers = min(1.0, max(0.1, 2 / max(1, free))) if layers is None else layers
        if samples < 1 or not 0 <= layers <= 1:
            raise ValueError(f"samples is {samples} and layers {layers}: give at least 1, and a share from 0 to 1")
        if not (0 < step <= 1 and 0 < decay <= 1):
            raise ValueError(f"step is {step} and decay {decay}: both must be above 0 and at most 1")
        if keep not in ("cost", "ratio"):
            raise ValueError(f"keep={keep!r} is unknown: give 'cost' or 'ratio'")
        self.space = space
        self.objectives = tuple(objectives)
        self.bound = math.inf
        if resource is None:
            usable = (one for one in objectives[1:] if one.cheap and one.goal == "min" and not one.fidelity)
            cheap = next(usable, None)
            resource = cheap.measure if cheap else _MeanPlace(space)
            self.bound = cheap.at_most if cheap and cheap.at_most is not None else math.inf
        self.resource = resource
        self.budget = (0.0 if self.bound == math.inf else self.bound) if budget is None else budget
        self.samples, self.layers, self.step, self.decay, self.keep = samples, layers, step, decay, keep
        self._planned = 0  # steps of a descent, where the queries are known
        if queries is not None:
            self._planned = max(1, round(math.sqrt(queries / 2)))
            self.samples = max(1, (queries - 1) // self._planned)
        self.current: Architecture | None = None
        """Where the candidates of this step start from; None until the largest network was told."""
        self.target = math.inf
        """What the candidates of this step may use of the resource."""
        self.steps = 0
        """Steps of this descent that ended."""
        self._top = self._cost = math.inf  # first objective of the largest network, and of `current`
        self._largest: Architecture | None = None
        self._candidates: list[tuple[float, float, Architecture]] = []  # excess, cost; those that meet the target
        self._told = 0  # in this step
        self._seen: set[Architecture] = set()

    def ask(self, rng: random.Random) -> Architecture:
        """Return the largest network first, then candidates of the step, new ones if a few attempts find any."""
        if self.current is None:
            return self.largest()
        for _ in range(_ATTEMPTS):
            arch = self._candidate(self.current, rng)
            if arch not in self._seen:
                break
        return arch

    def tell(self, trial: Trial) -> None:
        """Take in a candidate; the last of the step decides where the next one starts."""
        self._seen.add(trial.arch)
        cost = costs(trial, self.objectives[:1])[0]
        if self.current is None:
            self._top = cost
            self._begin()
            return
        self._told += 1
        if self.resource(trial.arch) <= self.target:
            self._candidates.append((excess(trial, self.objectives), cost, trial.arch))
        if self._told == self.samples:
            self._end_step(self.current)

    def largest(self) -> Architecture:
        """Return the start: no change of one choice uses more of the resource (worked out once)."""
        if self._largest is None:
            arch = self.space.largest()
            if arch not in self.space or not math.isfinite(self.resource(arch)):
                rng = random.Random(0)  # only to get inside the constraint, at the same place every time
                arch = max((self.space.sample(rng) for _ in range(100)), key=self._known)
            while (more := max([arch, *self.space.neighbours(arch)], key=self._known)) != arch:
                arch = more
            self._largest = arch
        return self._largest

    def _known(self, arch: Architecture) -> float:
        """Return the resource, below all others where it is not known."""
        used = self.resource(arch)
        return used if math.isfinite(used) else -math.inf

    def _begin(self) -> None:
        """Go to the top, and set the first target."""
        self.current, self.steps = self.largest(), 0
        self._cost = self._top
        self._aim(self.current)

    def _aim(self, current: Architecture) -> None:
        """Set the target of the next step: R_t = R_(t-1) - dR_t, not below the budget nor above a bound."""
        reduction = self._first_reduction() * self.decay**self.steps
        self.target = min(max(min(self.target, self.resource(current)) - reduction, self.budget), self.bound)
        self._candidates, self._told = [], 0

    def _first_reduction(self) -> float:
        """Return dR_1, in units of the resource."""
        top = self.resource(self.largest())
        if not self._planned:
            return self.step * top
        return (top - min(self.budget, top)) / sum(self.decay**step for step in range(self._planned))

    def _end_step(self, current: Architecture) -> None:
        """Keep the best candidate; the descent is over where none met the target or the budget is met."""
        if not self._candidates or self.target <= self.budget:
            self.target = math.inf
            self._begin()
            return
        beyond, cost, best = min(self._candidates, key=lambda one: (one[0], self._merit(current, one[1], one[2])))
        if math.isfinite(beyond):
            current, self._cost = best, cost
        self.current = current
        self.steps += 1
        self._aim(current)

    def _merit(self, current: Architecture, cost: float, arch: Architecture) -> float:
        """Return what the best candidate has least of."""
        if self.keep == "cost" or not math.isfinite(self._cost):
            return cost
        return (cost - self._cost) / (self.resource(current) - self.resource(arch))

    def _candidate(self, arch: Architecture, rng: random.Random) -> Architecture:
        """Shrink random choices by random amounts; from the last on, by the least that meets the target."""
        names = [name for name, options in self.space.choices.items() if len(options) > 1]
        left = max(1, round(self.layers * len(names)))
        for name in rng.sample(names, len(names)):
            smaller = self._smaller(arch, name)
            if not smaller:
                continue
            left -= 1
            arch = smaller[-1] if left <= 0 else rng.choice(smaller)
            if self.resource(arch) <= self.target:
                return arch
        return arch

    def _smaller(self, arch: Architecture, name: str) -> list[Architecture]:
        """Return `arch` with less of the resource by one choice: not further than to meet the target, largest first."""
        if not self.space.is_active(name, arch):
            return []
        now = self.resource(arch)
        others = (self.space.canonical(arch.replace({name: option})) for option in self.space.choices[name])
        allowed = [one for one in others if self.space.constraint is None or self.space.constraint(one)]
        less = [(used, one) for one in allowed if (used := self.resource(one)) < now]  # which NaN is not
        shrunk = sorted(less, key=lambda pair: -pair[0])
        above = [one for used, one in shrunk if used > self.target]
        return above + [one for used, one in shrunk if used <= self.target][:1]


class _MeanPlace:
    """A resource of last resort: how far up among its options each choice is, 0 to 1; 0 where it is not active."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.places = {
            name: {key(option): place / max(1, len(options) - 1) for place, option in enumerate(ascending(options))}
            for name, options in space.choices.items()
        }

    def __call__(self, arch: Architecture) -> float:
        is_active, gates = self.space.is_active, self.space.gates
        places = [
            self.places[name][key(option)]
            for name, option in arch.items()
            if name not in gates or is_active(name, arch)
        ]
        return sum(places) / len(arch)
