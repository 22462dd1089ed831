# SPDX-License-Identifier: Apache-2.0
"""What each entry holds after each query: the incumbent's signal and reported value, and the hypervolumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sartor.bench.queries import Floats, Searches
from sartor.bench.statistics import Goal
from sartor.pareto import hypervolume, pareto_front


@dataclass(frozen=True)
class Curves:
    """Arrays of (seeds, queries); the volumes are None with one objective, and shares of the space's if it is known."""

    signal: Floats
    reported: Floats
    volume: Floats | None
    reported_volume: Floats | None


@dataclass(frozen=True)
class Box:
    """The corner from which hypervolumes are measured, in costs, and the volume that counts as one."""

    signs: tuple[float, ...]  # by objective: -1 where more is better
    reference: tuple[float, ...]
    reported_reference: tuple[float, ...]
    whole: float
    reported_whole: float


def all_curves(
    searches: Mapping[str, Searches], objectives: Sequence[Mapping[str, Any]], box: Box | None
) -> dict[str, Curves]:
    """Return the curves of every entry."""
    return {name: curves(one, objectives[0]["goal"], box) for name, one in searches.items()}


def curves(searches: Searches, goal: Goal, box: Box | None) -> Curves:
    """Return the curves of one entry."""
    signal, reported = searches.held(searches.values[..., 0]), searches.held(searches.reported)
    if box is None:
        return Curves(signal, reported, None, None)
    seeds = range(len(signal))
    both = [_volumes(searches.values[seed], searches.reported[seed], searches.budgets[seed], box) for seed in seeds]
    return Curves(signal, reported, np.stack([one for one, _ in both]), np.stack([other for _, other in both]))


def box_of(
    searches: Mapping[str, Searches], objectives: Sequence[Mapping[str, Any]], known: Mapping[str, Any]
) -> Box | None:
    """Return the box of a problem with several objectives, else None.

    Where neither the whole space nor a reference is known, the reference is the worst that any entry met.
    """
    if len(objectives) < 2:
        return None
    signs = np.array([1.0 if one["goal"] == "min" else -1.0 for one in objectives])
    values = np.concatenate([one.values.reshape(-1, len(signs)) for one in searches.values()]) * signs
    reported = np.concatenate([one.reported.ravel() for one in searches.values()]) * signs[0]
    if not np.isfinite(values).any():
        return None
    given = known.get("reference")
    reference = np.array(given) * signs if given else np.nanmax(values, axis=0)
    judged = known.get("reported_reference")
    first = judged[0] * signs[0] if judged else float(np.nanmax(reported))
    return Box(
        tuple(signs.tolist()),
        tuple(reference.tolist()),
        (first, *reference[1:].tolist()),
        float(known.get("volume", 1.0)),
        float(known.get("reported_volume", 1.0)),
    )


def _volumes(values: Floats, reported: Floats, budgets: Floats, box: Box) -> tuple[Floats, Floats]:
    """Return two (queries,) curves of the front by what was read: its volume as read, and as reported.

    The second may fall: a member that looks better may be worse. Queries of less than the largest budget so far
    take no part.
    """
    points = values * box.signs
    judged = np.column_stack([reported * box.signs[0], points[:, 1:]])
    read_as, reported_as = np.zeros(len(points)), np.zeros(len(points))
    front: list[int] = []
    for place in np.flatnonzero(np.isfinite(points).all(axis=1)):
        front = [one for one in front if budgets[one] >= budgets[place]]
        if any(budgets[one] > budgets[place] or (points[one] <= points[place]).all() for one in front):
            continue
        candidates = [*front, int(place)]
        front = [candidates[one] for one in pareto_front(points[candidates])]
        read_as[place:] = hypervolume(points[front], box.reference) / box.whole
        reported_as[place:] = hypervolume(judged[front], box.reported_reference) / box.reported_whole
    return read_as, reported_as


def anytime(curve: Floats, goal: Goal) -> Floats:
    """Return the mean of each seed's (queries,) curve, which is the area under it; NaN counts as the seed's worst."""
    worst = np.nanmin(curve, axis=1, keepdims=True) if goal == "max" else np.nanmax(curve, axis=1, keepdims=True)
    return np.asarray(np.where(np.isnan(curve), worst, curve).mean(axis=1))
