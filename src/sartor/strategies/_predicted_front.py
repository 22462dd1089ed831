# SPDX-License-Identifier: Apache-2.0
"""The next batch of LINAS and ConcurrentNAS: NSGA-II on predictors, which costs no measurement."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.pareto import crowding_distance, pareto_front
from sartor.protocols import Predictor
from sartor.space import SearchSpace
from sartor.strategies._operators import mutated
from sartor.strategies._surrogate import Belief, allowed, believed, sampled

Indices = NDArray[np.intp]
_CROSSOVER = 0.9
_MUTATION = 0.02


def predicted_front(
    space: SearchSpace,
    predictors: Sequence[Predictor | None],
    objectives: Sequence[Objective],
    *,
    count: int,
    evaluations: int,
    seen: Collection[Architecture],
    whole: Sequence[Architecture] | None,
    rng: random.Random,
) -> list[Architecture]:
    """Return the `count` best predicted architectures that are not in `seen`, by front, then by crowding.

    Those beyond a bound of a cheap objective are passed over. They come from the `whole` space where it can be listed,
    and else from what an evolution of `evaluations` predictions has met.
    """
    if whole is None:
        archs, belief = _evolved(space, predictors, objectives, count, evaluations, list(seen), rng)
        new = [place for place, arch in enumerate(archs) if arch not in seen]
        archs, belief = [archs[place] for place in new], Belief(belief.costs[new], belief.excess[new])
    else:
        archs = [arch for arch in whole if arch not in seen]
        belief = believed(predictors, objectives, archs)
    places = count
    while True:
        found = allowed((archs[place] for place in best(belief, places)), objectives, count)
        if len(found) == count or places >= len(archs):
            return found
        places *= 4


def started(space: SearchSpace, warm: Sequence[Architecture], population: int) -> list[Architecture]:
    """Return at most half a population of `warm`, evenly spaced; ValueError for one that is not in the space.

    The other half is random: predictors that have seen a front alone know nothing of what is off it.
    """
    for arch in warm:
        if arch not in space:
            raise ValueError(f"{arch!r} of `warm` is not in the space: pass it through space.canonical first")
    count = min(len(warm), population // 2)
    return [warm[round(place)] for place in np.linspace(0, len(warm) - 1, count)]


def best(belief: Belief, count: int) -> Indices:
    """Return the `count` best: feasible ones by front and crowding, then the others by their excess."""
    left = np.flatnonzero(belief.excess == 0)
    chosen: list[int] = []
    while len(left) and len(chosen) < count:
        front = pareto_front(belief.costs[left])
        crowding = crowding_distance(belief.costs[left[front]])
        chosen += left[front[np.argsort(-crowding, kind="stable")]].tolist()
        left = np.delete(left, front)
    infeasible = np.flatnonzero(belief.excess > 0)
    chosen += infeasible[np.argsort(belief.excess[infeasible], kind="stable")].tolist()
    return np.array(chosen[:count], dtype=np.intp)


def _evolved(
    space: SearchSpace,
    predictors: Sequence[Predictor | None],
    objectives: Sequence[Objective],
    size: int,
    evaluations: int,
    start: Sequence[Architecture],
    rng: random.Random,
) -> tuple[list[Architecture], Belief]:
    """Return all that NSGA-II met, from the best of `start` and random ones, with what is predicted of it."""
    rate = max(_MUTATION, 1 / len(space.choices))
    archs = list(dict.fromkeys([*start, *sampled(space, size, rng)]))
    belief = believed(predictors, objectives, archs)
    met = set(archs)
    parents = best(belief, size)
    while len(archs) < evaluations + len(start):
        # `parents` is ordered, so that the lower of two random places wins a tournament.
        children: dict[Architecture, None] = {}
        for _ in range(size):
            mother, father = (archs[parents[min(rng.randrange(len(parents)) for _ in "ab")]] for _ in "ab")
            child = space.crossover(mother, father, rng) if rng.random() < _CROSSOVER else mother
            child = mutated(space, child, rng, rate)
            if child not in met:
                children[child] = None
        if not children:
            break
        met |= children.keys()
        more = believed(predictors, objectives, list(children))
        pool = np.concatenate([parents, len(archs) + np.arange(len(children))])
        archs += children
        belief = Belief(np.concatenate([belief.costs, more.costs]), np.concatenate([belief.excess, more.excess]))
        parents = pool[best(Belief(belief.costs[pool], belief.excess[pool]), size)]
    return archs, belief
