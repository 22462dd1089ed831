# SPDX-License-Identifier: Apache-2.0
"""What a prediction of costs is worth: error and ranking, each with the interval that the sample allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MEASURES", "Interval", "errors"]

Floats = NDArray[np.float64]

RESAMPLES = 500


def _mape(predicted: Floats, true: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ np.abs(predicted / true - 1.0) / weights.sum(axis=1))


def _r2(predicted: Floats, true: Floats, weights: Floats) -> Floats:
    count = weights.sum(axis=1)
    spread = weights @ true**2 - (weights @ true) ** 2 / count
    # What rounding leaves of equal values is no variance.
    spread = np.where(spread > 1e-12 * (weights @ true**2), spread, np.nan)
    return np.asarray(1.0 - weights @ np.square(true - predicted) / spread)


def _spearman(predicted: Floats, true: Floats, weights: Floats) -> Floats:
    """The weighted correlation of the ranks that the values have among all copies, ties at their mean rank."""
    a, b = (weights @ (_less(values).T + 0.5 * _equal(values)) for values in (predicted, true))
    count = weights.sum(axis=1, keepdims=True)
    a, b = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / count for ranks in (a, b))
    joint, own, other = ((weights * product).sum(axis=1) for product in (a * b, a * a, b * b))
    return _ratio(joint, own * other)


def _kendall(predicted: Floats, true: Floats, weights: Floats) -> Floats:
    """Tau-b over all pairs of copies, in which copies of one network are tied."""
    a, b = (_less(values).astype(float) - _less(values).T for values in (predicted, true))
    joint, own, other = (((weights @ signs) * weights).sum(axis=1) for signs in (a * b, a * a, b * b))
    return _ratio(joint, own * other)


def _less(values: Floats) -> NDArray[np.bool_]:
    """(N, N): whether the value of the row is below that of the column."""
    return np.asarray(values[:, None] < values[None, :])


def _equal(values: Floats) -> NDArray[np.bool_]:
    return np.asarray(values[:, None] == values[None, :])


def _ratio(joint: Floats, squares: Floats) -> Floats:
    """A correlation, NaN where all of one side are equal."""
    return np.asarray(np.clip(joint / np.sqrt(np.where(squares > 1e-9, squares, np.nan)), -1.0, 1.0))


MEASURES: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "mape": _mape,
    "r2": _r2,
    "spearman": _spearman,
    "kendall": _kendall,
}
"""(N,) predicted and true values, and the (R, N) times that each is in a sample -> (R,): a share, R2, rho, tau-b."""


@dataclass(frozen=True)
class Interval:
    """A value and its bootstrap 95 % interval, over the networks; None where there is no such value."""

    value: float | None
    low: float | None
    high: float | None

    def to_list(self) -> list[float | None]:
        """Return what JSON can carry."""
        return [self.value, self.low, self.high]


def errors(predicted: ArrayLike, true: ArrayLike, *, seed: int = 0) -> dict[str, Interval]:
    """Return `MEASURES` of (N,) predictions of (N,) true values above 0, each with its interval.

    Raises ValueError for arrays of different shapes, fewer than 2 values, or values that are not finite or not above 0.
    """
    ours, known = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != known.shape or len(ours) < 2:
        raise ValueError(f"the shapes are {ours.shape} and {known.shape}: give two arrays of one length, 2 or more")
    if not (np.isfinite(ours).all() and np.isfinite(known).all() and (known > 0).all()):
        raise ValueError("a prediction is not finite, or a true value is not above 0: leave its network out")
    drawn = np.random.default_rng(seed).multinomial(len(ours), np.full(len(ours), 1.0 / len(ours)), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, len(ours))), drawn])
    return {name: _interval(measure(ours, known, weights)) for name, measure in MEASURES.items()}


def _interval(values: Floats) -> Interval:
    """The first value is that of the sample itself, the others those of samples drawn from it."""
    value, several = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not math.isfinite(value) or not len(several):
        return Interval(None, None, None)
    low, high = np.percentile(several, (2.5, 97.5))
    return Interval(value, float(min(low, value)), float(max(high, value)))
