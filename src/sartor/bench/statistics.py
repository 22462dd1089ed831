# SPDX-License-Identifier: Apache-2.0
"""The statistics of a comparison of searches, as pure functions of arrays.

Rows are seeds (S), columns are queries (Q) or entries (K). Nothing here knows a strategy or a table; every draw
is seeded. What is larger is better, unless a `goal` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Goal = Literal["min", "max"]
RESAMPLES = 2000
FEW = 10  # seeds below which a bootstrap of the mean covers too little, and Student's t is used


def band(values: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Return mean, low and high, each (Q,), of (S, Q) values: an interval of the mean at each query.

    From 10 seeds on, the percentile interval of a bootstrap over seeds (a seed is drawn with its whole curve);
    below, Student's t, since the bootstrap of few samples covers too little. One seed has no interval: NaN.
    """
    rows = np.asarray(values, dtype=float)
    return bootstrap_band(rows, confidence) if len(rows) >= FEW else t_band(rows, confidence)


def bootstrap_band(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Return mean, low and high of (S, Q) values by the percentile bootstrap over seeds."""
    rows = np.asarray(values, dtype=float)
    counts = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    means = counts @ rows / len(rows)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return rows.mean(axis=0), low, high


def t_band(values: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Return mean, low and high of (S, Q) values by Student's t."""
    from scipy.stats import t

    rows = np.asarray(values, dtype=float)
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t.ppf(0.5 + confidence / 2, len(rows) - 1) * rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
    return mean, mean - half, mean + half


def relative_improvement(values: Floats, average: float) -> float:
    """Return RI, in percent: how far the mean of `values` lies above the average random architecture.

    Yang, Esperanca and Carlucci, ICLR 2020, arXiv:1912.12522: 100 (mean - average) / average. Below 0 the search
    is worse than drawing one architecture at random. Independent of the unit of the values.
    """
    if not average:
        raise ValueError("the average of random architectures is 0: a relative improvement has no meaning")
    return 100 * (float(np.mean(values)) - average) / abs(average)


def expected_best(signal: ArrayLike, reported: ArrayLike, queries: int, goal: Goal = "max") -> Floats:
    """Return the (queries,) expected reported value of what random search holds after each query, exactly.

    Of N architectures with an (N,) signal and (N,) reported values, drawn with replacement, the best in signal
    after q draws has rank r (1 is best) with probability ((N - r + 1) / N)^q - ((N - r) / N)^q. No simulation
    and no error; of equal signals the first counts as the better.
    """
    read = np.asarray(signal, dtype=float)
    order = np.argsort(-read if goal == "max" else read, kind="stable")
    ranked = np.asarray(reported, dtype=float)[order]
    left = np.arange(len(ranked), -1, -1) / len(ranked)  # the share of rank r or worse, for r = 1 ... N + 1
    draws = np.arange(1, queries + 1)[:, None]
    chances = left[:-1] ** draws - left[1:] ** draws
    return np.asarray(chances @ ranked)


@dataclass(frozen=True)
class Reach:
    """How many queries a level takes; a seed that did not get there is censored at its last query.

    Quantiles are inf where too few seeds got there. `expected` is the expected running time: all queries that all
    seeds spent until the level or their end, over the seeds that got there.
    """

    level: float
    share: float
    lower: float
    median: float
    upper: float
    expected: float


def queries_to_reach(curves: ArrayLike, level: float, goal: Goal = "max") -> Floats:
    """Return for each of S best-so-far curves (S, Q) the first query, from 1, at `level` or better; inf if none."""
    rows = np.asarray(curves, dtype=float)
    there = rows >= level if goal == "max" else rows <= level
    return np.where(there.any(axis=1), there.argmax(axis=1) + 1.0, np.inf)


def reach(curves: ArrayLike, level: float, goal: Goal = "max") -> Reach:
    """Summarise `queries_to_reach`: quantiles that respect the censoring, and the expected running time.

    All seeds are censored at the same query, so that the Kaplan-Meier quantiles are those of the sorted counts.
    Expected running time: Hansen et al., Optimization Methods and Software 36(1), 2021.
    """
    rows = np.asarray(curves, dtype=float)
    taken = queries_to_reach(rows, level, goal)
    reached = np.isfinite(taken)
    spent = float(np.where(reached, taken, rows.shape[1]).sum())
    lower, median, upper = np.sort(taken)[[_place(len(taken), part) for part in (0.25, 0.5, 0.75)]]
    expected = spent / reached.sum() if reached.any() else math.inf
    return Reach(level, float(reached.mean()), float(lower), float(median), float(upper), float(expected))


def _place(count: int, part: float) -> int:
    """Return the index of the smallest of `count` sorted values that at least `part` of them do not exceed."""
    return max(0, math.ceil(part * count - 1e-9) - 1)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values corrected for their number by Holm's step-down method, in the order given.

    Scandinavian Journal of Statistics 6(2), 1979: the i-th smallest of m counts (m - i + 1)-fold, and none is
    smaller than one before it; at most 1.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return corrected


def wilcoxon(one: ArrayLike, other: ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of paired (S,) values; 1 if all are equal."""
    from scipy.stats import wilcoxon as signed_rank

    difference = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    ties = len(np.unique(np.abs(difference))) < len(difference)
    method = "approx" if ties or len(difference) > 50 else "exact"
    return float(signed_rank(difference, method=method).pvalue)


def average_ranks(scores: ArrayLike) -> Floats:
    """Return the (K,) mean ranks over S seeds of (S, K) scores; the largest score of a seed has rank 1, ties share."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0), dtype=float)


def friedman(scores: ArrayLike) -> float:
    """Return the p-value of Friedman's test that K >= 3 entries are alike, of (S, K) scores; 1 if all are equal."""
    from scipy.stats import friedmanchisquare

    columns = np.asarray(scores, dtype=float).T
    if len(columns) < 3:
        raise ValueError(f"Friedman's test compares 3 entries or more, and there are {len(columns)}")
    if (columns == columns[0]).all():
        return 1.0
    return float(friedmanchisquare(*columns).pvalue)


def nemenyi_difference(entries: int, seeds: int, alpha: float = 0.05) -> float:
    """Return the critical difference of two mean ranks among K entries over S seeds.

    Demsar, JMLR 7, 2006, section 3.2.2: q_alpha sqrt(K (K + 1) / (6 S)), where q_alpha is the quantile of the
    studentized range for K entries and infinite degrees of freedom over the root of 2.
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, entries, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(entries * (entries + 1) / (6 * seeds))


@dataclass(frozen=True)
class Pair:
    """Two entries by their columns: the median of the paired differences, and p-values before and after Holm."""

    one: int
    other: int
    difference: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Ranking:
    """Which of K entries differ: `ranks` (K,); `groups` of columns, best first, that cannot be told apart."""

    ranks: tuple[float, ...]
    friedman: float | None
    critical_difference: float | None
    pairs: tuple[Pair, ...]
    groups: tuple[tuple[int, ...], ...]
    alpha: float


def ranking(scores: ArrayLike, alpha: float = 0.05) -> Ranking:
    """Rank K >= 2 entries by (S, K) scores of S seeds, larger is better, and say which of them differ.

    Friedman's test asks whether any do; if it finds so (with two entries it is skipped), each pair is tested by
    Wilcoxon's signed ranks, corrected by Holm over all pairs. These, unlike mean ranks, do not depend on who else
    takes part (Benavoli, Corani and Mangili, JMLR 17, 2016). Nemenyi's critical difference stands beside them.
    """
    table = np.asarray(scores, dtype=float)
    seeds, entries = table.shape
    if entries < 2 or seeds < 1:
        raise ValueError(f"a ranking needs 2 entries and a seed, and the scores are of shape {table.shape}")
    omnibus = friedman(table) if entries > 2 and seeds > 1 else None
    couples = list(combinations(range(entries), 2))
    raw = [wilcoxon(table[:, one], table[:, other]) for one, other in couples]
    pairs = tuple(
        Pair(one, other, float(np.median(table[:, one] - table[:, other])), p, float(corrected))
        for (one, other), p, corrected in zip(couples, raw, holm(raw), strict=True)
    )
    any_differs = omnibus is None or omnibus < alpha
    differ = {(pair.one, pair.other) for pair in pairs if any_differs and pair.corrected < alpha}
    ranks = average_ranks(table)
    groups = _groups([int(place) for place in np.argsort(ranks, kind="stable")], differ)
    return Ranking(tuple(ranks.tolist()), omnibus, nemenyi_difference(entries, seeds, alpha), pairs, groups, alpha)


def _groups(order: Sequence[int], differ: set[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the longest runs of two or more neighbours by rank of which no two differ; none lies in another."""
    found: list[tuple[int, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and not any(_couple(order[end], one) in differ for one in order[start:end]):
            end += 1
        if end - start > 1 and end > reached:
            found.append(tuple(order[start:end]))
        reached = max(reached, end)
    return tuple(found)


def _couple(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p-value that Wilcoxon's signed ranks of S seeds can have."""
    return float(min(1.0, 2.0 ** (1 - seeds)))


def two_standard_errors(one: tuple[float, float, int], other: tuple[float, float, int]) -> float:
    """Return the two-sided p-value of the difference of two means, each given as (mean, deviation, seeds).

    The normal approximation of Welch's test. p < 0.0455 is a difference of more than two standard errors.
    """
    error = math.hypot(one[1] / math.sqrt(one[2]), other[1] / math.sqrt(other[2]))
    if not error:
        return 1.0 if one[0] == other[0] else 0.0
    return math.erfc(abs(one[0] - other[0]) / error / math.sqrt(2))
