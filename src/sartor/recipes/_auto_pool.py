# SPDX-License-Identifier: Apache-2.0
"""The candidates of `auto`.

Several objectives: the neighbours of the front. One: the whole space where it can be listed, else draws, and what is
near the best.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import architectures, enumerated, indices
from sartor.recipes._auto_process import Encoded, Features
from sartor.space import NothingFound, SearchSpace

__all__ = ["Listed", "Pool", "around", "drawn", "listed"]

ENUMERABLE = 50_000
"""A space of at most so many architectures is scored whole."""


class Listed:
    """Every architecture of a space that its constraint allows, with its features."""

    def __init__(self, space: SearchSpace, features: Features) -> None:
        """List them; the constraint is called for each."""
        table = enumerated(space)
        if space.constraint is not None:
            kept = [space.constraint(arch) for arch in architectures(space, table)]
            table = table[np.array(kept, dtype=bool)]
        self.space, self.table, self.encoded = space, table, features(table)
        self._places = {row.tobytes(): place for place, row in enumerate(table)}

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.table)

    def without(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """Return (N,): which candidates are none of these."""
        kept = np.ones(len(self.table), dtype=bool)
        rows = np.ascontiguousarray(indices(self.space, archs))
        kept[[self._places[row.tobytes()] for row in rows if row.tobytes() in self._places]] = False
        return kept

    def architectures(self, places: NDArray[np.intp]) -> list[Architecture]:
        """Return candidates by their places."""
        return architectures(self.space, self.table[places])


class Pool:
    """Some architectures, none of which was told or is pending, with their features."""

    def __init__(self, archs: Sequence[Architecture], space: SearchSpace, features: Features) -> None:
        """Encode them."""
        self.archs = archs
        self.encoded: Encoded = features(np.ascontiguousarray(indices(space, archs)))

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.archs)

    def without(self, archs: Sequence[Architecture]) -> NDArray[np.bool_]:
        """Return (N,): all candidates, as they were drawn to be new."""
        return np.ones(len(self.archs), dtype=bool)

    def architectures(self, places: NDArray[np.intp]) -> list[Architecture]:
        """Return candidates by their places."""
        return [self.archs[place] for place in places.tolist()]


def listed(space: SearchSpace, features: Features) -> Listed | None:
    """Return the whole space, or None if it is too large to list."""
    return Listed(space, features) if space.size <= ENUMERABLE else None


def around(
    space: SearchSpace,
    features: Features,
    front: Sequence[Architecture],
    taken: Container[Architecture],
    count: int,
    rng: random.Random,
) -> Pool:
    """Return the neighbours of a front, none of which is in `taken`; of random members if `count` are exceeded."""
    found: dict[Architecture, None] = {}
    for arch in rng.sample(front, len(front)):
        found.update(dict.fromkeys(other for other in space.neighbours(arch) if other not in taken))
        if len(found) >= count:
            break
    return Pool([*found], space, features)


def drawn(
    space: SearchSpace,
    features: Features,
    best: Sequence[Architecture],
    taken: Container[Architecture],
    count: int,
    rng: random.Random,
) -> Pool:
    """Draw up to `count` candidates of each of three kinds, none of which is in `taken`.

    Neighbours of the best; those further off, by crossover and mutation of the best; and uniform ones.
    """
    near = [other for arch in best for other in space.neighbours(arch)]
    found = dict.fromkeys(rng.sample(near, min(count, len(near))))
    try:
        for _ in range(count if best else 0):
            child = space.crossover(rng.choice(best), rng.choice(best), rng)
            found[space.mutate(child, rng)] = None
        for _ in range(count):
            found[space.sample(rng)] = None
    except NothingFound:  # the constraint leaves little: what was found must do
        pass
    return Pool([arch for arch in found if arch not in taken], space, features)
