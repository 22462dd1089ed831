# SPDX-License-Identifier: Apache-2.0
"""Generative architecture search under a constraint indicator (TurboViT).

Wong, Abbasi and Nair, "TurboViT: Generating Fast Vision Transformers via Generative Architecture Search",
arXiv:2308.11421 (2023).

Idea: do not pick architectures, learn a generator G of them. G is to maximise a performance score U of what it
generates, subject to 1_r(G(s)) = 1: whatever the seed s, the result meets the operational requirements r. G is
improved in rounds, each from the scores of what it generated before.

Differs from the paper: the paper states the problem and leaves the generator and its update unpublished; what
is here is in its spirit and claims none of its results. G is a product of categorical distributions, one per
choice, and the update is that of the cross-entropy method. A bound on a cheap objective is the indicator 1_r
and is tested before an architecture leaves `ask`; the other bounds are seen only after a trial, and pull the
generator by Deb's rules: feasible before infeasible, then by the excess. There is no transition from loose
to tight bounds, because an infeasible candidate is not trained and so has no score to learn from.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence

from sartor.architecture import Architecture, Option
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.space import SearchSpace
from sartor.strategies._indicator import cheap_excess
from sartor.strategies._operators import excess
from sartor.trial import Trial

_ATTEMPTS = 2000
_REPEATS = 200


class TurboViT:
    """Improves the first objective, U; the others count through their bounds. `netscore` makes one U of several.

    batch: new architectures told between two updates of the generator.
    elite: part of all architectures told so far that the generator is fitted to; at most `elites` of them.
    smoothing: weight of the new fit against the probabilities before.
    floor: the least probability of an option. Without one the generator collapses; options that are more than
        1/floor share the probability evenly.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        batch: int = 20,
        elite: float = 0.2,
        elites: int = 10,
        smoothing: float = 0.7,
        floor: float = 0.02,
    ) -> None:
        """Start with the uniform generator; ValueError for numbers out of range."""
        check_names(objectives)
        if batch < 1 or elites < 1:
            raise ValueError(f"batch is {batch} and elites {elites}: both must be at least 1")
        if not (0 < elite <= 1 and 0 < smoothing <= 1 and 0 <= floor < 1):
            raise ValueError(
                f"elite is {elite}, smoothing {smoothing} and floor {floor}: parts of 1, the first two not 0"
            )
        self.space = space
        self.objectives = tuple(objectives)
        self.batch = batch
        self.elite = elite
        self.elites = elites
        self.smoothing = smoothing
        self.floor = floor
        self.generator = {name: [1 / len(options)] * len(options) for name, options in space.choices.items()}
        """G: for each choice, the probability of each of its options."""
        self._index = {name: {key(o): i for i, o in enumerate(options)} for name, options in space.choices.items()}
        self._seen: set[Architecture] = set()
        self._best: list[tuple[float, float, int, Architecture]] = []  # by excess, then cost, then age

    def ask(self, rng: random.Random) -> Architecture:
        """Generate until an architecture is new and meets 1_r; else return the one that was nearest to it."""
        nearest: tuple[tuple[float, bool], Architecture] | None = None
        repeats = 0
        for _ in range(_ATTEMPTS):
            arch = self._generated(rng)
            if self.space.constraint is not None and not self.space.constraint(arch):
                continue
            fault = (cheap_excess(arch, self.objectives), arch in self._seen)
            if fault == (0.0, False):
                return arch
            if nearest is None or fault < nearest[0]:
                nearest = fault, arch
            repeats += fault == (0.0, True)
            if repeats == _REPEATS:
                break
        return self.space.sample(rng) if nearest is None else nearest[1]

    def tell(self, trial: Trial) -> None:
        """Score the architecture; after each batch of new ones, update the generator."""
        if trial.arch in self._seen:
            return
        self._seen.add(trial.arch)
        beyond = excess(trial, self.objectives)
        if math.isfinite(beyond):
            bisect.insort(self._best, (beyond, costs(trial, self.objectives[:1])[0], len(self._seen), trial.arch))
            del self._best[self.elites :]
        if len(self._seen) % self.batch == 0 and self._best:
            self._update()

    def _generated(self, rng: random.Random) -> Architecture:
        """Return G(s), the seed s being what `rng` draws."""
        drawn: dict[str, Option] = {}
        for name, options in self.space.choices.items():
            (drawn[name],) = rng.choices(options, self.generator[name])
        return self.space.canonical(drawn)

    def _update(self) -> None:
        """Move G towards the frequencies of the elite; a choice that is active in none of them stays."""
        elite = [best[-1] for best in self._best[: max(1, int(self.elite * len(self._seen)))]]
        for name, probabilities in self.generator.items():
            index = self._index[name]
            chosen = [index[key(arch[name])] for arch in elite if self.space.is_active(name, arch)]
            if not chosen:
                continue
            mixed = [
                self.smoothing * chosen.count(i) / len(chosen) + (1 - self.smoothing) * probability
                for i, probability in enumerate(probabilities)
            ]
            self.generator[name] = floored(mixed, self.floor)


def floored(probabilities: Sequence[float], floor: float) -> list[float]:
    """Raise probabilities to at least `floor` (or to 1/n, if n options leave less) and let them sum to 1.

    What lies above the floor is scaled down to make room, so that none ends below it.
    """
    floor = min(floor, 1 / len(probabilities))
    above = [max(0.0, probability - floor) for probability in probabilities]
    room = 1 - floor * len(probabilities)
    total = sum(above)
    return [floor + (room * one / total if total else room / len(above)) for one in above]


def netscore(
    accuracy: float, params: float, macs: float, *, alpha: float = 2.0, beta: float = 0.5, gamma: float = 0.5
) -> float:
    """Return NetScore, 20 log10(accuracy^alpha / (params^beta macs^gamma)): a U of accuracy and complexity.

    accuracy: above 0, in per cent or as a part of 1; params and macs: above 0, in any unit that is kept to (a
        unit shifts all scores alike). ValueError for numbers that have no logarithm.
    """
    for name, value in (("accuracy", accuracy), ("params", params), ("macs", macs)):
        if not value > 0:
            raise ValueError(f"{name} is {value}: NetScore needs a number above 0")
    return 20 * (alpha * math.log10(accuracy) - beta * math.log10(params) - gamma * math.log10(macs))
