# SPDX-License-Identifier: Apache-2.0
"""Sequential model-based optimisation of DeepArchitect: ridge regression on n-grams of decisions.

Negrinho and Gordon, "DeepArchitect: Automatically Designing and Training Deep Architectures", 2017,
arXiv:1704.08792.

Idea: fit a cheap surrogate to the trials so far, draw many architectures, and evaluate the one that the surrogate
likes best; with a small probability, evaluate a random one instead. The paper's surrogate is linear in how often
short runs of modules occur, so that it needs few trials and no encoding of the space.

Differs from the paper: n-grams are of the decisions that matter, in order, each the kind of its choice (the name
without numbers) with the option. Candidates that were told already are passed over. A failed or infeasible trial is
fitted as the worst value so far.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import active, indices
from sartor.gates import key
from sartor.objective import Objective, check_names, costs
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.strategies._decisions import traversal
from sartor.strategies._operators import excess, sampled_new
from sartor.trial import Trial

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class DeepArchitectSMBO:
    """Minimises (or maximises) the first objective; the others count through their bounds only.

    exploration: probability of a random architecture, epsilon (0.1: the paper).
    samples: random architectures among which the surrogate chooses (512: ours).
    surrogate: any predictor; it is fitted to costs, so that less is better (default: `NGramRidge(space)`).
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        exploration: float = 0.1,
        samples: int = 512,
        surrogate: Predictor | None = None,
    ) -> None:
        """Start without trials; ValueError for numbers out of range."""
        check_names(objectives)
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration is {exploration}: it is a probability, from 0 to 1")
        if samples < 1:
            raise ValueError(f"samples is {samples}: it must be at least 1")
        self.space = space
        self.objectives = tuple(objectives)
        self.exploration = exploration
        self.samples = samples
        self.surrogate: Predictor = NGramRidge(space) if surrogate is None else surrogate
        self._costs: dict[Architecture, float] = {}
        self._is_fitted = False  # to all that was told

    def ask(self, rng: random.Random) -> Architecture:
        """Return the best of a random pool by the surrogate's mean, or with chance epsilon a random one."""
        if rng.random() < self.exploration or not self._fit():
            return sampled_new(self.space, rng, self._costs)
        pool = dict.fromkeys(self.space.sample(rng) for _ in range(self.samples))
        candidates = [arch for arch in pool if arch not in self._costs] or [*pool]
        mean, _ = self.surrogate.predict(candidates)
        return candidates[int(np.argmin(mean))]

    def tell(self, trial: Trial) -> None:
        """Take in the cost; infinite for a trial that failed or is infeasible."""
        is_feasible = excess(trial, self.objectives) == 0
        self._costs[trial.arch] = costs(trial, self.objectives[:1])[0] if is_feasible else math.inf
        self._is_fitted = False

    def _fit(self) -> bool:
        """Fit to all that was told; False while fewer than two values are known."""
        values = np.array([*self._costs.values()])
        is_known = np.isfinite(values)
        if is_known.sum() < 2:
            return False
        if not self._is_fitted:
            self.surrogate.fit([*self._costs], np.where(is_known, values, values[is_known].max()))
            self._is_fitted = True
        return True


class NGramRidge:
    """A predictor that is linear in the counts of n-grams of decisions, and in the number of decisions.

    longest: decisions in a run; all lengths from 1 are counted (3: the paper).
    alpha: the penalty on squared weights, of standardised values (1.0: ours).
    """

    def __init__(self, space: SearchSpace, *, longest: int = 3, alpha: float = 1.0) -> None:
        """Name the decisions; ValueError for a length below 1 or a penalty that is not above 0."""
        if longest < 1 or not alpha > 0:
            raise ValueError(f"longest is {longest} and alpha {alpha}: give at least 1, and more than 0")
        self.space = space
        self.longest = longest
        self.alpha = alpha
        place = {name: column for column, name in enumerate(space.choices)}
        self._columns = [place[name] for name in traversal(space)]
        words: dict[object, int] = {}
        self._words = np.zeros((len(place), max(map(len, space.choices.values()))), dtype=np.int64)
        for column, (name, options) in enumerate(space.choices.items()):
            kind = re.sub(r"\d+", "#", name)
            for index, option in enumerate(options):
                self._words[column, index] = words.setdefault((kind, key(option)), len(words) + 1)
        self._base = len(words) + 1  # 0 stands for what follows the last decision

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Solve the normal equations for N architectures and (N,) values; needs one or more."""
        grams = self._grams(archs)
        self._vocabulary = np.unique(grams[grams > 0])
        x, y = self._counts(grams), np.asarray(values, dtype=np.float64)
        self._centre, self._mean, self._spread = x.mean(axis=0), y.mean(), y.std() or 1.0
        x, y = x - self._centre, (y - self._mean) / self._spread
        # The same weights from features or, by the matrix inversion lemma, from samples: whichever are fewer.
        if x.shape[1] <= x.shape[0]:
            self._weights = np.linalg.solve(x.T @ x + self.alpha * np.eye(x.shape[1]), x.T @ y)
        else:
            self._weights = x.T @ np.linalg.solve(x @ x.T + self.alpha * np.eye(x.shape[0]), y)
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means, and zeros; an n-gram that was not fitted counts nothing."""
        x = self._counts(self._grams(archs)) - self._centre
        return self._mean + self._spread * (x @ self._weights), np.zeros(len(archs))

    def _grams(self, archs: Sequence[Architecture]) -> Integers:
        """Return a number for each n-gram of each architecture as (N, runs); 0 where there is none."""
        table = indices(self.space, archs)
        words = np.where(active(self.space, table), self._words[np.arange(table.shape[1]), table], 0)
        words = words[:, self._columns]
        words = np.take_along_axis(words, np.argsort(words == 0, axis=1, kind="stable"), axis=1)
        runs = [words]
        for length in range(1, self.longest):
            longer = runs[-1][:, :-1] * self._base + words[:, length:]
            runs.append(np.where(words[:, length:] > 0, longer, 0))
        return np.concatenate(runs, axis=1)

    def _counts(self, grams: Integers) -> Floats:
        """Return the counts of the n-grams in the vocabulary and the number of decisions, as (N, features)."""
        place = np.minimum(np.searchsorted(self._vocabulary, grams), len(self._vocabulary) - 1)
        row, run = np.nonzero((self._vocabulary[place] == grams) & (grams > 0))
        counts = np.zeros((len(grams), len(self._vocabulary) + 1))
        np.add.at(counts, (row, place[row, run]), 1.0)
        counts[:, -1] = (grams[:, : len(self._columns)] > 0).sum(axis=1)
        return counts
