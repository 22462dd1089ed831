# SPDX-License-Identifier: Apache-2.0
"""Dominance, crowding and hypervolume of points of which every coordinate is to be minimised."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]
Indices = NDArray[np.intp]


def non_dominated_sort(points: ArrayLike) -> list[Indices]:
    """Split the indices of (N, M) points into fronts: the first dominated by none, the next by it only...

    A point dominates another if it is nowhere worse and somewhere better, so that equal points share a front.
    O(M N^2) time and O(N^2) memory (Deb et al., IEEE TEC 2002, section III-A).
    """
    points = _checked(points)
    no_worse = np.ones((len(points), len(points)), dtype=bool)
    for column in points.T:
        no_worse &= column[:, None] <= column
    dominates = no_worse & ~no_worse.T
    dominators = dominates.sum(axis=0)
    fronts = []
    left = len(points)
    while left:
        front = np.flatnonzero(dominators == 0)
        dominators -= dominates[front].sum(axis=0)
        dominators[front] = -1
        fronts.append(front)
        left -= len(front)
    return fronts


def pareto_front(points: ArrayLike) -> Indices:
    """Return the ascending indices of those of (N, M) points that none dominates; equal points all stay.

    O(N log N + N F) for a front of F distinct points.
    """
    points = _checked(points)
    waiting = np.lexsort(points.T[::-1])  # none is dominated by a later one
    front = []
    while len(waiting):
        best = points[waiting[0]]
        equal = (points[waiting] == best).all(axis=1)
        front.append(waiting[equal])
        waiting = waiting[(points[waiting] < best).any(axis=1)]
    return np.sort(np.concatenate(front)) if front else np.empty(0, dtype=np.intp)


def crowding_distance(points: ArrayLike) -> Points:
    """Return for each of the (N, M) points of one front the distance between its neighbours, as (N,).

    Summed over the objectives, each scaled by its range; inf at the ends of an objective that varies at all
    (Deb et al., IEEE TEC 2002, section III-B).
    """
    points = _checked(points)
    distance = np.zeros(len(points))
    if not len(points):
        return distance
    for column in points.T:
        order = np.argsort(column, kind="stable")
        low, high = column[order[0]], column[order[-1]]
        if low == high:
            continue
        distance[order[[0, -1]]] = np.inf
        if np.isfinite(high - low):
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / (high - low)
    return distance


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that (N, M) points dominate within the box below the (M,) reference.

    Exact for any M, by slicing along the last objective down to two: O(N log N) for M = 2 and a factor of N
    more for each further objective.
    """
    reference = np.asarray(reference, dtype=float)
    points = _checked(points).reshape(-1, len(reference))
    if not np.isfinite(reference).all():
        raise ValueError(f"the reference {reference.tolist()} is not finite")
    return _volume(points[(points < reference).all(axis=1)], reference)


def _volume(points: Points, reference: Points) -> float:
    if not len(points):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - points.min())
    points = points[pareto_front(points)]
    if len(reference) == 2:
        x, y = points[np.argsort(points[:, 0], kind="stable")].T
        return float(((reference[0] - x) * -np.diff(y, prepend=reference[1])).sum())
    points = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(points[:, -1], append=reference[-1])
    slices = [_volume(points[: i + 1, :-1], reference[:-1]) if heights[i] else 0.0 for i in range(len(points))]
    return float(np.dot(heights, slices))


def _checked(points: ArrayLike) -> Points:
    points = np.asarray(points, dtype=float)
    if points.size == 0:
        return points.reshape(0, points.shape[1] if points.ndim == 2 else 1)
    if points.ndim != 2:
        raise ValueError(f"points have the shape {points.shape}: (points, objectives) is needed")
    if np.isnan(points).any():
        raise ValueError("a point holds NaN: it can be compared with none")
    return points
