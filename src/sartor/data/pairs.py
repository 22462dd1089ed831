# SPDX-License-Identifier: Apache-2.0
"""Two disjoint shares of one split: what a search with two levels trains its weights and its architecture on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import DataError
from sartor.data.split import Batch, Split
from sartor.data.splits import stratified

__all__ = ["Divisible", "Pairs"]


@runtime_checkable
class Divisible(Split, Protocol):
    """A split of which parts can be made."""

    def part(self, indices: NDArray[np.int64], seed: int) -> Self:
        """Return the samples at ascending `indices` as a split that shuffles by `seed`."""
        ...


class Pairs:
    """Pairs of batches of a split: the first of one share of its samples, the second of the rest.

    The cut is stratified and depends on the seed and the labels alone, a batch on the step besides, so that a resumed
    training sees the pairs that it would have seen.

    Args:
        split: what is cut.
        portion: share of each class that the first batches come from, above 0 and below 1.
        classes: names of the classes, for errors.
        seed: of the cut and of the order of both shares.

    Raises DataError (a ValueError) for a portion that is no share, for a split that cannot be cut, and for a class
    with a single sample.
    """

    def __init__(self, split: Split, portion: float, *, classes: Sequence[str], seed: int = 0) -> None:
        if not 0.0 < portion < 1.0:
            raise DataError(f"portion is {portion}: it is a share of the samples, above 0 and below 1")
        if not isinstance(split, Divisible):
            raise DataError(
                f"the training split is a {type(split).__name__}, of which no two shares can be made: keep it in "
                "memory (memory_mb=), give it a method part(indices, seed), or name a method of a single level"
            )
        cut = stratified(split.labels.numpy(), {"second": 1.0 - portion}, classes, seed)
        self.indices = (cut["train"], cut["second"])
        self.shares: tuple[Split, Split] = (split.part(cut["train"], seed), split.part(cut["second"], seed + 1))

    def __len__(self) -> int:
        """Return the number of samples of both shares."""
        return sum(map(len, self.shares))

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Batch, Batch]:
        """Return a batch of `size` samples of each share: each an endless run of shuffled epochs of its own."""
        first, second = (share.batch(step, size, augment=augment) for share in self.shares)
        return first, second
