# SPDX-License-Identifier: Apache-2.0
"""Which networks of a space a profile measures."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.recipes.profiling import spread_samples
from sartor.space import SearchSpace

__all__ = ["mixed_pool", "unlike"]


def mixed_pool(space: SearchSpace, count: int, rng: random.Random) -> list[Architecture]:
    """Half drawn uniformly, half spread from the smallest to the largest, in turns; all different."""
    uniform = [space.sample(rng) for _ in range(4 * count)]
    spread = spread_samples(space, count, [], rng)
    rng.shuffle(spread)
    mixed = [arch for two in zip(uniform, spread, strict=False) for arch in two] + spread + uniform
    return [*dict.fromkeys(mixed)][:count]


def unlike(
    space: SearchSpace, pool: Sequence[Architecture], doubt: NDArray[np.float64], count: int
) -> list[Architecture]:
    """Of the most doubtful third of a pool take those that differ from each other, the most doubtful first."""
    several = [int(i) for i in np.argsort(-doubt, kind="stable")[: max(count, len(pool) // 3)]]
    codes = onehot(space, [pool[i] for i in several])
    chosen = [0]
    nearest = np.abs(codes - codes[0]).sum(axis=1)
    while len(chosen) < min(count, len(several)):
        # Doubt weighs the distance, so that a network that all agree on is not taken for being odd.
        chosen.append(int(np.argmax(nearest * doubt[several])))
        if nearest[chosen[-1]] == 0:
            chosen[-1] = next(i for i in range(len(several)) if i not in chosen)
        nearest = np.minimum(nearest, np.abs(codes - codes[chosen[-1]]).sum(axis=1))
    return [pool[several[i]] for i in chosen]
