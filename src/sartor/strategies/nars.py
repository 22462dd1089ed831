# SPDX-License-Identifier: Apache-2.0
"""NARS, the joint search of architecture and training recipe of FBNetV3.

Dai, Wan, Zhang, Wu, He, Wei, Chen, Tian, Yu, Vajda and Gonzalez, "FBNetV3: Joint Architecture-Recipe Search using
Predictor Pretraining", CVPR 2021, arXiv:2006.02049, sections 3.2 to 3.4.

Idea: which recipe is best depends on the architecture, so that both are choices of one space and one predictor serves
them. It is pretrained on statistics that are free, then learns from batches that it chose itself within the constraint
(constrained iterative optimisation); at last an evolution on the predictor finds what to train.

Differs from the paper: sizes are ours, for tens of trainings instead of hundreds; a batch is half the best predicted
and half the next points of a Sobol sequence; bounds of cheap objectives are measured, others are predicted; a space
that can be listed is predicted whole, which is what Sobol pool and evolution approximate; after the iterations, what
the evolution finds is measured and learnt from, batch by batch, for as long as is asked. How long a training may be
for its ranking to hold is for the objective to say.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import architectures
from sartor.objective import Objective, check_names
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.strategies._indicator import sampled_within
from sartor.strategies._operators import mutated
from sartor.strategies._surrogate import (
    MakePredictor,
    allowed,
    believed,
    distinct,
    everything,
    judged,
    learnt,
    sampled,
    seeded,
)
from sartor.trial import Trial


class NARS:
    """Optimises the first objective; the others count through their bounds only.

    recipe: names of the choices that are of the training recipe.
    statistics: from N architectures to (N, K) numbers that are free, such as FLOPs and parameters (default: how often
        each option occurs).
    initial, batch: Sobol points to begin with, and the size of an iteration.
    iterations: of the constrained optimisation before the evolution takes over (4: section 3.3).
    pool: Sobol points of an iteration, rounded up to a power of 2, where the space is too large to predict whole.
    population, patience: of the evolution, which ends when the best has not improved for so many generations.
    predictor: from a space to a predictor; instead of the paper's, made of `recipe` and `statistics`.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        recipe: Collection[str] = (),
        statistics: Callable[[Sequence[Architecture]], NDArray[np.float64]] | None = None,
        initial: int = 20,
        batch: int = 20,
        iterations: int = 4,
        pool: int = 4096,
        population: int = 100,
        patience: int = 10,
        predictor: MakePredictor | None = None,
    ) -> None:
        """Start with nothing known; ValueError for sizes out of range or names in `recipe` that are no choice."""
        check_names(objectives)
        if min(initial, batch, pool, population) < 2 or iterations < 0 or patience < 1:
            raise ValueError(
                f"initial {initial}, batch {batch}, pool {pool}, population {population}: at least 2 each; "
                f"iterations {iterations}, patience {patience}: at least 0 and 1"
            )
        self.space = space
        self.objectives = judged(objectives)
        self.initial, self.batch, self.iterations = initial, batch, iterations
        self.pool, self.population, self.patience = pool, population, patience
        self.predictor = predictor or _pretrained(space, recipe, statistics)
        self._trials: list[Trial] = []
        self._seen: set[Architecture] = set()
        self._proposed: list[Architecture] = []
        self._whole = everything(space)

    def ask(self, rng: random.Random) -> Architecture:
        """Return one of the batch that is still to be trained, in random order."""
        waiting = [arch for arch in self._proposed if arch not in self._seen]
        if waiting:
            return waiting[int(rng.random() * len(waiting))]
        return sampled_within(self.space, rng, self._seen, self.objectives)

    def tell(self, trial: Trial) -> None:
        """Learn; when a batch is complete, propose the next. The Sobol sequence follows from the first trial."""
        self._trials.append(trial)
        self._seen.add(trial.arch)
        count = len(self._trials)
        if count == 1:
            self._proposed = self._allowed(self._sobol(4 * self.initial), self.initial - 1)
        elif count >= self.initial and (count - self.initial) % self.batch == 0:
            self._propose((count - self.initial) // self.batch)

    def _propose(self, iteration: int) -> None:
        """Fill the batch: in the iterations half of it is predicted and half is spread, then all is predicted."""
        predictors = learnt(self.predictor, self.space, self.objectives, distinct(self._trials))
        exploring = iteration < self.iterations
        spread = self._sobol(self.pool if self._whole is None else 4 * self.batch) if exploring else []
        if self._whole is not None:
            candidates = self._whole
        else:
            candidates = spread if exploring else self._evolved(predictors)
        candidates = [arch for arch in candidates if arch not in self._seen]
        order = believed(predictors, self.objectives, candidates).order()
        exploited = self._allowed((candidates[i] for i in order), self.batch // 2 if exploring else self.batch)
        chosen = set(exploited)
        fresh = (arch for arch in spread if arch not in chosen)
        self._proposed = exploited + self._allowed(fresh, self.batch - len(exploited))

    def _allowed(self, archs: Iterable[Architecture], count: int) -> list[Architecture]:
        return allowed((arch for arch in archs if arch not in self._seen), self.objectives, count)

    def _sobol(self, count: int) -> list[Architecture]:
        """Return up to `count`, rounded up to a power of 2, different points of a scrambled Sobol sequence."""
        from scipy.stats.qmc import Sobol

        counts = np.array([len(options) for options in self.space.choices.values()])
        rng = np.random.default_rng(seeded(self._trials).getrandbits(64))
        points = Sobol(len(counts), rng=rng).random_base2(max(1, (count - 1).bit_length()))
        found = dict.fromkeys(architectures(self.space, (points * counts).astype(np.intp)))
        constraint = self.space.constraint
        return [arch for arch in found if constraint is None or constraint(arch)]

    def _evolved(self, predictors: Sequence[Predictor | None]) -> list[Architecture]:
        """Return all that an evolution on the predictor met (section 3.4): the best and random ones, mutated."""
        rng = seeded(self._trials)
        archs = list(
            dict.fromkeys([*(trial.arch for trial in self._trials), *sampled(self.space, self.population, rng)])
        )
        met = dict.fromkeys(archs)
        best, idle = np.inf, 0
        while idle < self.patience and archs:
            belief = believed(predictors, self.objectives, archs)
            order = belief.order()[: self.population]
            top = float(belief.costs[order[0], 0]) if belief.excess[order[0]] == 0 else np.inf
            idle = 0 if top < best else idle + 1
            best = min(best, top)
            parents = [archs[i] for i in order]
            children = dict.fromkeys(mutated(self.space, self._mated(parents, rng), rng) for _ in parents)
            met |= children
            archs = list(dict.fromkeys([*parents, *children]))
        return list(met)

    def _mated(self, parents: Sequence[Architecture], rng: random.Random) -> Architecture:
        mother, father = rng.choice(parents), rng.choice(parents)
        return self.space.crossover(mother, father, rng) if rng.random() < 0.5 else mother


def _pretrained(
    space: SearchSpace,
    recipe: Collection[str],
    statistics: Callable[[Sequence[Architecture]], NDArray[np.float64]] | None,
) -> MakePredictor:
    """Return what makes the paper's predictor: pretrained once, and copied for each fit."""
    from sartor.predictors.pretrained_mlp import PretrainedMLP

    first = PretrainedMLP(space, recipe=recipe, statistics=statistics)

    def make(space: SearchSpace) -> Predictor:
        if not first.is_pretrained:
            first.pretrain()
        return copy.copy(first)

    return make
