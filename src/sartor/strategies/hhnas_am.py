# SPDX-License-Identifier: Apache-2.0
"""HHNAS-AM: hill climbing on two levels, with mutation probabilities learnt by Q-learning.

Tripathi et al., "HHNAS-AM: Hierarchical Hybrid Neural Architecture Search using Adaptive Mutation Policies", 2025,
arXiv:2508.14946. No public code.

Idea: macro choices pick a template, and each template has its own micro choices. Every choice mutates with its own
probability, which tabular Q-learning raises where mutations helped before and lowers where they hurt. Nothing is
ever certain: probabilities keep away from 0 and 1.

Differs from the paper, of which only the outline could be had: the constants of the learning are ours. Each choice
has two actions, to mutate and to keep, and both learn from the gain of the child, so that a choice is not blamed for
what others did; its probability is the softmax of the two. A template is entered at the best network known of it.
Gains are divided by the median of their sizes and clipped to -1..1, so that one setting serves all objectives.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sartor.architecture import Architecture, Option, same
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._decisions import traversal
from sartor.strategies._operators import excess, mutated
from sartor.trial import Trial

_ATTEMPTS = 100

Template = tuple[Option, ...]


class HHNASAM:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    A choice that must never mutate is fixed by `space.restrict`.

    macro: names of the choices that make the template (default: those that gates ask for; none where the space has
        no gates, and the search then has one level).
    rate: probability of each choice to mutate before anything is learnt (default: 1/n for n choices).
    learning_rate: alpha of Q-learning; with 0 the mutation stays uniform (0.1: ours).
    discount: gamma (0.9: ours).
    temperature: of the softmax over the two actions of a choice (0.1: ours).
    least: probabilities stay within least..1 - least (default: 0.05, or 1/n if that is less: ours).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        macro: Collection[str] | None = None,
        rate: float | None = None,
        learning_rate: float = 0.1,
        discount: float = 0.9,
        temperature: float = 0.1,
        least: float | None = None,
    ) -> None:
        """Start without a network; ValueError for unknown names and numbers out of range."""
        check_names(objectives)
        asked = {other for gate in space.gates.values() for one in gate for other, _ in one}
        macro = asked if macro is None else set(macro)
        if unknown := sorted(macro - space.choices.keys()):
            raise ValueError(f"macro names {unknown[0]!r}, but the choices are {', '.join(space.choices)}")
        free = [name for name in traversal(space) if len(space.choices[name]) > 1]
        rate = 1 / max(2, len(free)) if rate is None else rate
        least = min(0.05, 1 / max(2, len(free))) if least is None else least
        if not (0 < rate < 1 and 0 < least <= 0.5):
            raise ValueError(f"rate is {rate} and least {least}: give one between 0 and 1, and one above 0 to 0.5")
        if not (0 <= learning_rate <= 1 and 0 <= discount < 1 and temperature > 0):
            raise ValueError(
                f"learning_rate is {learning_rate}, discount {discount} and temperature {temperature}: "
                "give one from 0 to 1, one from 0 to below 1, and one above 0"
            )
        self.space = space
        self.objectives = tuple(objectives)
        self.macro = tuple(name for name in free if name in macro)
        self.micro = tuple(name for name in free if name not in macro)
        self.learning_rate, self.discount = learning_rate, discount
        self.temperature, self.least = temperature, least
        self._bias = math.log(rate / (1 - rate))
        self.best: dict[Template, Found] = {}
        """The best network of each template that was told."""
        self.template: Template | None = None
        """That of the network from which the search goes on, the best of all."""
        self._values: dict[tuple[Template, str], list[float]] = {}  # Q of keeping and of mutating
        self._gains: list[float] = []  # sizes of all finite ones, in order

    def ask(self, rng: random.Random) -> Architecture:
        """Mutate the best network; a random one before any is known."""
        if self.template is None:
            return self.space.sample(rng)
        current = self.best[self.template].arch
        for _ in range(_ATTEMPTS):
            child = self._child(current, rng)
            if child != current and (self.space.constraint is None or self.space.constraint(child)):
                return child
        return mutated(self.space, current, rng)

    def tell(self, trial: Trial) -> None:
        """Learn from the gain over the networks it was made of, and go on from it if it is no worse."""
        found = Found(excess(trial, self.objectives), costs(trial, self.objectives[:1])[0], trial.arch)
        template = self._template(trial.arch)
        if self.template is None:
            self.best[template], self.template = found, template
            return
        before, current = self.template, self.best[self.template]
        is_better = found[:2] <= current[:2]
        self.template = template if is_better else before
        self._learn(self.macro, before, self.template, current, found)
        if template in self.best:
            self._learn(self.micro, template, template, self.best[template], found)
        if template not in self.best or found[:2] <= self.best[template][:2]:
            self.best[template] = found

    def probability(self, template: Template, name: str) -> float:
        """Return the chance that the choice mutates in networks of the template."""
        keep, mutate = self._values.get((template, name), (0.0, 0.0))
        exponent = self._bias + (mutate - keep) / self.temperature
        chance = 1 / (1 + math.exp(-exponent)) if exponent > -700 else 0.0
        return min(max(chance, self.least), 1 - self.least)

    def _child(self, arch: Architecture, rng: random.Random) -> Architecture:
        """Mutate the macro choices, enter the template, mutate its micro choices."""
        child = self._flipped(arch, self.macro, self._template(arch), rng)
        template = self._template(child)
        if template in self.best:
            child = self.best[template].arch
        elif child is not arch:
            fresh = self.space.sample(rng)
            new = {name: fresh[name] for name in self.micro if not self.space.is_active(name, arch)}
            child = self.space.canonical(child.replace(new))
        return self._flipped(child, self.micro, template, rng)

    def _flipped(
        self, arch: Architecture, names: Sequence[str], template: Template, rng: random.Random
    ) -> Architecture:
        changes = {}
        for name in names:
            if rng.random() < self.probability(template, name) and self.space.is_active(name, arch):
                changes[name] = rng.choice([one for one in self.space.choices[name] if not same(one, arch[name])])
        return self.space.canonical(arch.replace(changes)) if changes else arch

    def _learn(self, names: Sequence[str], state: Template, after: Template, parent: Found, child: Found) -> None:
        """Take a step of Q-learning for each choice: Q += alpha (r + gamma max Q' - Q)."""
        active = [name for name in names if self.space.is_active(name, parent.arch)]
        reward = self._reward(parent, child) if active else 0.0
        for name in active:
            action = int(not same(child.arch[name], parent.arch[name]))
            following = max(self._values.get((after, name), (0.0, 0.0)))
            values = self._values.setdefault((state, name), [0.0, 0.0])
            values[action] += self.learning_rate * (reward + self.discount * following - values[action])

    def _reward(self, parent: Found, child: Found) -> float:
        """Return the gain in -1..1; where one of them is infeasible, only its sign."""
        if parent.excess or child.excess or not math.isfinite(parent.cost - child.cost):
            return float(child[:2] < parent[:2]) - float(child[:2] > parent[:2])
        gain = parent.cost - child.cost
        bisect.insort(self._gains, abs(gain))
        scale = self._gains[len(self._gains) // 2]
        return max(-1.0, min(1.0, gain / scale)) if scale else 0.0

    def _template(self, arch: Architecture) -> Template:
        return tuple(arch[name] for name in self.macro)


class Found(NamedTuple):
    """A network with what it violates and costs; less is better, in this order."""

    excess: float
    cost: float
    arch: Architecture
