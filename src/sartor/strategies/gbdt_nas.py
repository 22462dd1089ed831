# SPDX-License-Identifier: Apache-2.0
"""GBDT-NAS, and GBDT-NAS-3S: search by boosted trees, with pruning of the search space.

Luo, Tan, Wang, Qin, Chen and Liu, "Accuracy Prediction with Non-neural Model for Neural Architecture Search", 2020,
arXiv:2007.04785.

Idea: boosted trees learn accuracy from one-hot options of random architectures; the best predicted ones are
evaluated and learnt from, round by round. In the 3S form, options that lower the prediction wherever they occur (mean
TreeSHAP value) are pruned from the space that further candidates come from.

Differs from the paper: bad architectures count as queries (the authors' code drops those below 85 %); pruning looks at
single options (first order), each once, and keeps at least one of every choice, and candidates for five rounds; bounds
are predicted too (measured, if they are cheap), and candidates ranked by Deb's rules. The K architectures of a round
are evaluated in random order, so that parallel workers find different ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from sartor.architecture import Architecture
from sartor.encodings import onehot, onehot_names
from sartor.gates import key
from sartor.objective import Objective, check_names
from sartor.predictors.gbdt import GBDT
from sartor.protocols import Predictor
from sartor.space import NothingFound, SearchSpace
from sartor.strategies._indicator import sampled_within
from sartor.strategies._surrogate import (
    Floats,
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

_TREES = partial(GBDT, members=0)


@runtime_checkable
class Explains(Protocol):
    """A predictor that says what each option added to a prediction, as pruning needs."""

    def contributions(self, archs: Sequence[Architecture]) -> Floats:
        """Return (N, D), by the columns of `sartor.encodings.onehot`."""
        ...


class GBDTNAS:
    """Optimises the first objective; the others count through their bounds only.

    initial: random architectures, N (1000: section 4.1).
    batch: architectures of a round, K (300: its ImageNet search).
    queries: the budget, if it is known: half of it is random, the rest three rounds; instead of the two above.
    pool: candidates of a round, M, where the space is too large to score whole (5000).
    prune: at most so many options are pruned in a round (0: GBDT-NAS; 20: GBDT-NAS-3S, with 147 options in the paper).
    predictor: from a space to a predictor (the paper's trees); with `prune` one that has `contributions`.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        initial: int = 1000,
        batch: int = 300,
        queries: int | None = None,
        pool: int = 5000,
        prune: int = 0,
        predictor: MakePredictor = _TREES,
    ) -> None:
        """Start with nothing known; ValueError for sizes out of range or a predictor that cannot prune."""
        check_names(objectives)
        if queries is not None:
            initial, batch = max(2, queries // 2), max(1, queries // 6)
        if initial < 2 or batch < 1 or pool < 1 or prune < 0:
            raise ValueError(f"initial {initial}, batch {batch}, pool {pool}, prune {prune}: at least 2, 1, 1 and 0")
        if prune and not isinstance(predictor(space), Explains):
            raise ValueError(f"{predictor!r} gives no contributions of options: prune with GBDT, or set prune=0")
        self.space = space
        self.objectives = judged(objectives)
        self.initial, self.batch, self.pool, self.prune = initial, batch, pool, prune
        self.predictor = predictor
        self.pruned = space
        """What is left of the space to draw candidates from."""
        self._trials: list[Trial] = []
        self._seen: set[Architecture] = set()
        self._proposed: list[Architecture] = []
        self._candidates = everything(space)

    def ask(self, rng: random.Random) -> Architecture:
        """Return a random architecture, later one of the round's that is still to be evaluated."""
        waiting = [arch for arch in self._proposed if arch not in self._seen]
        if waiting:
            return waiting[int(rng.random() * len(waiting))]
        return sampled_within(self.space, rng, self._seen, self.objectives)

    def tell(self, trial: Trial) -> None:
        """Learn; when a round is complete, propose the next."""
        self._trials.append(trial)
        self._seen.add(trial.arch)
        rest = len(self._trials) - self.initial
        if rest >= 0 and rest % self.batch == 0:
            self._propose()

    def _propose(self) -> None:
        """Fit, prune, predict all candidates and keep the K best that are new (Algorithms 1 and 2)."""
        predictors = learnt(self.predictor, self.space, self.objectives, distinct(self._trials))
        if predictors[0] is None:
            self._proposed = []
            return
        if self.prune:
            self._restrict(predictors[0])
        candidates = [arch for arch in self._drawn() if arch not in self._seen]
        order = believed(predictors, self.objectives, candidates).order()
        self._proposed = allowed((candidates[place] for place in order), self.objectives, self.batch)

    def _drawn(self) -> list[Architecture]:
        if self._candidates is not None:
            return self._candidates
        try:
            drawn = sampled(self.pruned, self.pool, seeded(self._trials))
        except NothingFound:  # what is left misses the constraint
            return []
        return [self.space.canonical(arch) for arch in drawn]

    def _restrict(self, predictor: Predictor) -> None:
        """Forbid the options of the worst mean SHAP value over the evaluated architectures that hold them."""
        assert isinstance(predictor, Explains)
        archs = [trial.arch for trial in distinct(self._trials)]
        holds = onehot(self.space, archs)
        sign = 1.0 if self.objectives[0].goal == "max" else -1.0
        gains = sign * (predictor.contributions(archs) * holds).sum(axis=0) / np.maximum(holds.sum(axis=0), 1.0)
        names = onehot_names(self.space)
        left = {name: list(options) for name, options in self.pruned.choices.items()}
        forbidden = 0
        for column in np.argsort(gains, kind="stable"):
            if gains[column] >= 0 or forbidden == self.prune:
                break
            name, option = names[column]
            others = [other for other in left[name] if key(other) != key(option)]
            # Nothing is gained by pruning what a few rounds would evaluate whole.
            if 0 < len(others) < len(left[name]) and self.space.restrict({**left, name: others}).size >= 5 * self.batch:
                left[name] = others
                forbidden += 1
        self.pruned = self.space.restrict(left)
        if self._candidates is not None:
            kept = everything(self.pruned) or []
            self._candidates = [self.space.canonical(arch) for arch in kept]
