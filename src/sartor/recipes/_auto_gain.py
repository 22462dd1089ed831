# SPDX-License-Identifier: Apache-2.0
"""How much a candidate promises: expected improvement, of one value or of the hypervolume of several.

Goodness is what grows as an architecture gets better. The surrogate believes in normal scores: the rank of a goodness
among those that were told, as a quantile of the normal distribution. `Scores` goes from one to the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sartor.encodings import Floats, Indices

__all__ = ["Feasibility", "Improvement", "Scores", "Volume"]

_FAR = 10.0  # scores beyond which nothing is believed
_DIRECTIONS = 32
_SHORT = 3.0  # what a score beyond a bound counts against a mean
_STEPS = np.array([0.0, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4])  # of the length of a direction's front


class Scores:
    """Normal scores of (N,) goodnesses, `values`, and the increasing piecewise linear map that gives them.

    Ties share a score. Beyond what was told, the map goes on with the mean slope of the outer fifth.
    """

    def __init__(self, goodness: Floats) -> None:
        """Rank them; scores of equal goodnesses are 0."""
        from scipy.special import ndtri
        from scipy.stats import rankdata

        raw = ndtri((rankdata(goodness) - 0.5) / len(goodness))
        self.values: Floats = raw / (raw.std() or 1.0)
        points, first = np.unique(goodness, return_index=True)
        scores = self.values[first]
        outer = max(1, len(points) // 5)
        below, above = _slope(points[: outer + 1], scores), _slope(points[-outer - 1 :], scores[-outer - 1 :])
        self._points = np.concatenate([[points[0] - _FAR * below], points, [points[-1] + _FAR * above]])
        self._scores = np.concatenate([[scores[0] - _FAR], scores, [scores[-1] + _FAR]])

    def of(self, goodness: Floats) -> Floats:
        """Return the scores of any goodnesses."""
        return np.asarray(np.interp(goodness, self._points, self._scores))


def _slope(points: Floats, scores: Floats) -> float:
    """Return goodness per score over a stretch; the whole unit where there is only one value."""
    return float((points[-1] - points[0]) / (scores[len(points) - 1] - scores[0])) if len(points) > 1 else 1.0


class Feasibility:
    """Nothing that was told keeps the bounds: to be gained is one that does."""

    def shortlist(self, means: Floats, short: Floats, size: int) -> Indices:
        """Return the places of those of (N, M) beliefs that should be least beyond a bound, by (N,) scores."""
        return _greatest(-short, size)

    def of(self, means: Floats, deviations: Floats) -> Floats:
        """Return the (N,) expected gains of beliefs, all the same."""
        return np.ones(len(means))


class Improvement:
    """What one objective gains over the best (Jones, Schonlau and Welch, 1998)."""

    def __init__(self, best: float) -> None:
        """Take the score that is believed of the best: what was told of it has noise."""
        self._best = best

    def shortlist(self, means: Floats, short: Floats, size: int) -> Indices:
        """Return the places of the greatest means, less what they are beyond a bound."""
        return _greatest(means[:, 0] - _SHORT * short, size)

    def of(self, means: Floats, deviations: Floats) -> Floats:
        """Return the (N,) expected gains of (N, 1) beliefs."""
        from scipy.special import ndtr

        deviation = deviations[:, 0]
        z = (means[:, 0] - self._best) / deviation
        return np.asarray(deviation * (z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi)))


class Volume:
    """What the hypervolume gains that (T, M) scores dominate from the worst of each.

    The hypervolume is, but for a factor, the mean of t^M over directions, where t is how far the front reaches (Zhang
    and Golovin, ICML 2020). A candidate reaches t if each score is above t times the direction's component,
    the chance of which is a product of normal distributions. The expected gain is thus the integral of that product
    times M t^(M-1), from where the front is; here by the trapezoidal rule.

    It is the volume of scores, not of the values behind them: what few values tell of how far they go beyond the best
    would decide everything, and the parts of a front that few architectures are near to would count for little.
    """

    def __init__(self, told: Floats, rng: np.random.Generator) -> None:
        """Take the scores that are believed of what was told, and a source of directions."""
        self._worst = told.min(axis=0)
        spans = told.max(axis=0) - self._worst
        self._spans = np.where(spans > 0, spans, 1.0)
        self._along = _directions(told.shape[1], rng)
        self._reach = _lengths((told - self._worst) / self._spans, self._along).max(axis=0).astype(float)

    def shortlist(self, means: Floats, short: Floats, size: int) -> Indices:
        """Return the places of those that reach farthest along each direction, by (N, M) means."""
        if len(means) <= size:
            return np.arange(len(means))
        hopes = means - _SHORT * short[:, None]
        lengths = np.ascontiguousarray(_lengths((hopes - self._worst) / self._spans, self._along).T)
        each = size // len(lengths)
        return np.unique(np.argpartition(-lengths, each, axis=1)[:, :each])

    def of(self, means: Floats, deviations: Floats) -> Floats:
        """Return the (N,) expected gains of (N, M) beliefs."""
        from scipy.special import ndtr

        reach = self._reach[:, None]
        steps = reach + _STEPS * np.maximum(reach, 0.05)
        gains = np.repeat((steps ** (means.shape[1] - 1)).astype(np.float32)[None], len(means), axis=0)
        for column, (worst, span) in enumerate(zip(self._worst, self._spans, strict=True)):
            scores = worst + span * steps * self._along[:, column, None]
            gains *= ndtr(
                ((means[:, column, None, None] - scores) / deviations[:, column, None, None]).astype(np.float32)
            )
        slices = (gains[..., 1:] + gains[..., :-1]) * np.diff(steps, axis=1).astype(np.float32)
        return np.asarray(slices.sum(axis=(1, 2)), dtype=float)


def _directions(objectives: int, rng: np.random.Generator) -> Floats:
    """Return (D, objectives) unit vectors that spread over the positive orthant; evenly for two objectives."""
    if objectives == 2:
        angles = (np.arange(_DIRECTIONS) + 0.5) / _DIRECTIONS * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    drawn = np.abs(rng.normal(size=(_DIRECTIONS, objectives))) + 1e-3
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def _lengths(goodness: Floats, along: Floats) -> NDArray[np.float32]:
    """Return (N, D): how far along each direction N points of goodness from 0 to 1 dominate the way from 0."""
    lengths = np.full((len(goodness), len(along)), np.inf, dtype=np.float32)
    for column, slope in zip(goodness.T.astype(np.float32), along.T.astype(np.float32), strict=True):
        np.minimum(lengths, column[:, None] / slope, out=lengths)
    return lengths


def _greatest(values: Floats, size: int) -> Indices:
    return np.argpartition(-values, size)[:size] if len(values) > size else np.arange(len(values))
