# SPDX-License-Identifier: Apache-2.0
"""What `auto` believes of one objective, for every candidate of a pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.encodings import Floats
from sartor.objective import Objective, costs
from sartor.recipes._auto_gain import Scores
from sartor.recipes._auto_pool import Listed, Pool
from sartor.recipes._auto_process import Encoded, Features, Process, Singles
from sartor.trial import Trial

__all__ = ["Belief"]

_GROWTH = 1.15  # parameters are tuned again when there are so many times as many samples


class Belief:
    """Goodnesses (what grows as a candidate gets better) of one objective, as normal distributions of their scores.

    means: (N,) of the scores of the pool that was learnt for. scores: the map from goodnesses; None before anything
        was measured, when nothing is believed. fitted: (T,) means of the trials, -inf of those that taught nothing.
    """

    def __init__(self, features: Features, objective: Objective) -> None:
        """Believe nothing."""
        self.objective = objective
        self.scores: Scores | None = None
        self.means: Floats = np.zeros(0)
        self.fitted: Floats = np.zeros(0)
        self._pool_cross: Singles = np.zeros((0, 0), dtype=np.float32)
        self._process = Process(features)
        self._tuned = 0
        self._columns: list[Trial] = []  # the trials of the columns of `_cross`
        self._cross: Singles = np.zeros((0, 0), dtype=np.float32)
        self._encoded: Encoded | None = None

    def learn(self, trials: Sequence[Trial], samples: Encoded, waiting: Encoded | None, pool: Listed | Pool) -> None:
        """Take in trials, with their features, and believe something of every candidate.

        A failure is worth the worst that was measured: else the search would return to where networks do not run. What
        a bound kept from being measured is unknown and left out. Architectures that wait for their trial count as
        measured, with what is believed of them.
        """
        goodness = -np.array([costs(trial, (self.objective,))[0] for trial in trials])
        measured = np.isfinite(goodness)
        self.means = np.zeros(len(pool))
        self.fitted = np.full(len(trials), -np.inf)
        self.scores = None
        if not measured.any():
            return
        failed = np.array([trial.state == "failed" for trial in trials]) & ~measured
        rows = np.flatnonzero(measured | failed)
        self.scores = Scores(np.where(failed, goodness[measured].min(), goodness)[rows])
        values = self.scores.values
        samples = samples.rows(rows)
        tuned = len(rows) >= self._tuned * _GROWTH + 1
        if tuned:
            self._process.tune(samples, values)
            self._tuned = len(rows)
        self._process.condition(samples, values)
        cross = self._covariances([trials[int(row)] for row in rows], samples, pool, anew=tuned)
        known = samples
        if waiting is not None:
            believed = self._process.means(self._process.kernel(waiting, samples))
            cross = np.concatenate([cross, self._process.kernel(pool.encoded, waiting)], axis=1)
            both = Encoded(*(np.concatenate(pair) for pair in zip(samples, waiting, strict=True)))
            self._process.condition(both, np.append(values, believed))
            known = both
        self.fitted[rows] = self._process.means(self._process.kernel(samples, known))
        self._pool_cross = cross
        self.means = self._process.means(cross)

    def _covariances(self, trials: list[Trial], samples: Encoded, pool: Listed | Pool, *, anew: bool) -> Singles:
        """Return (N, samples) for the pool; columns that are known of a listed space are kept."""
        old = len(self._columns)
        if anew or self._encoded is not pool.encoded or trials[:old] != self._columns:
            self._cross, old = np.zeros((len(pool), 0), dtype=np.float32), 0
        new = self._process.kernel(pool.encoded, samples.rows(slice(old, None)))
        self._cross = np.concatenate([self._cross, new], axis=1)
        self._columns, self._encoded = trials, pool.encoded
        return self._cross

    def deviations(self, places: NDArray[np.intp]) -> Floats:
        """Return the (M,) standard deviations of the scores of some candidates."""
        return np.ones(len(places)) if self.scores is None else self._process.deviations(self._pool_cross[places])

    def shortfall(self, means: Floats) -> Floats:
        """Return by how many scores (M,) means lie beyond the bounds: 0 within."""
        short = np.zeros(len(means))
        for sign, bound in self._bounds():
            short += np.maximum(sign * (bound - means), 0.0)
        return short

    def chance(self, means: Floats, deviations: Floats) -> Floats:
        """Return how likely (M,) beliefs are within the bounds."""
        from scipy.special import ndtr

        chance = np.ones(len(means))
        for sign, bound in self._bounds():
            chance *= ndtr(sign * (means - bound) / deviations)
        return chance

    def _bounds(self) -> list[tuple[float, float]]:
        """Return (1, least score) and (-1, greatest score) as far as there are bounds."""
        if self.scores is None:
            return []
        sign = 1.0 if self.objective.goal == "max" else -1.0
        given = ((self.objective.at_least, sign), (self.objective.at_most, -sign))
        return [(side, float(self.scores.of(np.array(sign * bound)))) for bound, side in given if bound is not None]
