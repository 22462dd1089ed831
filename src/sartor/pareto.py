# SPDX-License-Identifier: Apache-2.0
"""Dominance, crowding and hypervolume of points of which every coordinate is to be minimised.

Sorting and volumes are those of moocore (López-Ibáñez et al.), which is imported with the first call.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]
Indices = NDArray[np.intp]


def front_numbers(points: ArrayLike) -> Indices:
    """Return for each of (N, M) points the number of its front, as (N,): 0 if none dominates it, and so on.

    A point dominates another if it is nowhere worse and somewhere better, so that equal points share a front
    (Deb et al., IEEE TEC 2002, section III-A). O(N log N) for M = 2.
    """
    points = _checked(points)
    if not len(points):
        return np.empty(0, dtype=np.intp)
    from moocore import pareto_rank

    return np.asarray(pareto_rank(_finite(points)), dtype=np.intp)


def non_dominated_sort(points: ArrayLike) -> list[Indices]:
    """Split the indices of (N, M) points by `front_numbers`; they ascend within a front."""
    fronts = front_numbers(points)
    return np.split(np.argsort(fronts, kind="stable"), np.cumsum(np.bincount(fronts))[:-1]) if len(fronts) else []


def pareto_front(points: ArrayLike) -> Indices:
    """Return the ascending indices of those of (N, M) points that none dominates; equal points all stay.

    O(N log N) for M of up to 3.
    """
    points = _checked(points)
    if not len(points):
        return np.empty(0, dtype=np.intp)
    from moocore import is_nondominated

    return np.flatnonzero(is_nondominated(_finite(points), keep_weakly=True))


def crowding_distance(points: ArrayLike, fronts: ArrayLike | None = None) -> Points:
    """Return for each of (N, M) points the distance between its neighbours in its front, as (N,).

    Summed over the objectives, each scaled by its range; inf at the ends of an objective that varies at all
    (Deb et al., IEEE TEC 2002, section III-B).

    fronts: the (N,) number of each point's front; without, all are of one.
    """
    points = _checked(points)
    fronts = np.zeros(len(points), dtype=int) if fronts is None else np.asarray(fronts, dtype=int)
    distance = np.zeros(len(points))
    if not len(points):
        return distance
    for column in points.T:
        order = np.lexsort((column, fronts))
        values = column[order]
        first = np.flatnonzero(np.diff(fronts[order], prepend=-1))
        last = np.append(first[1:], len(order)) - 1
        varies = values[first] < values[last]
        with np.errstate(invalid="ignore"):  # inf - inf
            ranges = np.repeat(values[last] - values[first], last - first + 1)
        inner = np.isfinite(ranges) & (ranges > 0)
        inner[first] = inner[last] = False
        at = np.flatnonzero(inner)
        distance[order[at]] += (values[at + 1] - values[at - 1]) / ranges[at]
        distance[order[first[varies]]] = distance[order[last[varies]]] = np.inf
    return distance


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that (N, M) points dominate within the box below the (M,) reference.

    Exact for any M: O(N log N) for M of up to 3, exponential in M beyond.
    """
    reference = np.asarray(reference, dtype=float)
    points = _checked(points).reshape(-1, len(reference))
    if not np.isfinite(reference).all():
        raise ValueError(f"the reference {reference.tolist()} is not finite")
    points = points[(points < reference).all(axis=1)]
    if not len(points):
        return 0.0
    if not np.isfinite(points).all():
        return math.inf
    from moocore import hypervolume as exact

    return float(exact(points, ref=reference))


def _finite(points: Points) -> Points:
    """Return points of the same dominance without infinities, which moocore 0.3 uses as its own sentinels."""
    if np.isfinite(points).all():
        return points
    return np.stack([np.unique(column, return_inverse=True)[1] for column in points.T], axis=1).astype(float)


def _checked(points: ArrayLike) -> Points:
    points = np.asarray(points, dtype=float)
    if points.size == 0:
        return points.reshape(0, points.shape[1] if points.ndim == 2 else 1)
    if points.ndim != 2:
        raise ValueError(f"points have the shape {points.shape}: (points, objectives) is needed")
    if np.isnan(points).any():
        raise ValueError("a point holds NaN: it can be compared with none")
    return points
