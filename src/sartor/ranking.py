# SPDX-License-Identifier: Apache-2.0
"""How well predictions rank: rank correlations, and what is lost by trusting a ranking.

All functions take (N,) predictions and (N,) true values, in the same direction.

Kendall, Biometrika 30, 1938; Spearman, American Journal of Psychology 15, 1904. For predictors of accuracy: White et
al., "How Powerful are Performance Predictors in Neural Architecture Search?", NeurIPS 2021, arXiv:2104.01177.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["kendall_tau", "spearman", "top_k_recall", "top_k_regret"]

Goal = Literal["min", "max"]
Floats = NDArray[np.float64]


def kendall_tau(predicted: ArrayLike, true: ArrayLike) -> float:
    """Return tau-b, from -1 to 1: concordant minus discordant pairs, corrected for ties; NaN if all are tied."""
    from scipy.stats import kendalltau

    predicted, true = _pair(predicted, true)
    if _tied(predicted, true):
        return float("nan")
    return float(kendalltau(predicted, true).statistic)


def spearman(predicted: ArrayLike, true: ArrayLike) -> float:
    """Return the correlation of the ranks, from -1 to 1, ties at their mean rank; NaN if all are tied."""
    from scipy.stats import rankdata

    predicted, true = _pair(predicted, true)
    if _tied(predicted, true):
        return float("nan")
    return float(np.corrcoef(rankdata(predicted), rankdata(true))[0, 1])


def top_k_regret(predicted: ArrayLike, true: ArrayLike, k: int, *, goal: Goal = "max") -> float:
    """Return how much worse the best of the k that rank first is than the best of all, in the unit of `true`.

    Equal predictions rank in the order given. ValueError for k outside 1 to N.
    """
    predicted, true = _pair(predicted, true)
    sign = _sign(goal)
    first = _first(sign * predicted, k)
    return float((sign * true).max() - (sign * true)[first].max())


def top_k_recall(predicted: ArrayLike, true: ArrayLike, k: int, *, goal: Goal = "max") -> float:
    """Return the share of the k truly best, from 0 to 1, among the k that rank first; ValueError as `top_k_regret`."""
    predicted, true = _pair(predicted, true)
    sign = _sign(goal)
    return len(np.intersect1d(_first(sign * predicted, k), _first(sign * true, k))) / k


def _first(scores: Floats, k: int) -> NDArray[np.intp]:
    if not 1 <= k <= len(scores):
        raise ValueError(f"k is {k}: it must be from 1 to the number of values, {len(scores)}")
    return np.argsort(-scores, kind="stable")[:k]


def _sign(goal: Goal) -> float:
    if goal not in ("min", "max"):
        raise ValueError(f"goal is {goal!r}: use 'min' or 'max'")
    return 1.0 if goal == "max" else -1.0


def _tied(predicted: Floats, true: Floats) -> bool:
    return bool(np.ptp(predicted) == 0 or np.ptp(true) == 0)


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"the shapes are {first.shape} and {second.shape}: two arrays of one length are needed")
    if len(first) < 2:
        raise ValueError(f"{len(first)} values have no ranking: give at least 2")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a value is NaN, which has no rank: leave its network out")
    return first, second
