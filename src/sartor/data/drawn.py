# SPDX-License-Identifier: Apache-2.0
"""Batches of samples that are drawn with chances of their own, anew in each epoch, and that carry their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.data.rng import words
from sartor.data.source import DataError
from sartor.data.split import Batch, Split

__all__ = ["Addressed", "Drawn", "index_list", "steps_of_epoch"]

_STREAM = 4

Chances = Callable[[], Tensor]
"""The chance of each sample, (N,) float64, in the epoch under way: the same tensor until the next one begins."""


@runtime_checkable
class Addressed(Split, Protocol):
    """A split whose samples can be asked for by their numbers."""

    def at(self, indices: NDArray[np.int64], step: int, *, augment: bool = False) -> Batch:
        """Return the samples of these numbers, augmented as in the batch of `step`."""
        ...


class Drawn:
    """A split of which each epoch goes through a list of sample numbers drawn with replacement.

    The list is as long as the split, or as a batch if that is longer, and depends on the chances, the seed and the
    epoch alone, so that a resumed training with its chances restored sees the batches it would have seen. What is left
    of a list is less than a batch, and is not used. Only batches of the epoch under way can be asked for, as the
    chances of the others are not known.

    Raises DataError (a ValueError) for a split whose samples cannot be asked for by number.
    """

    def __init__(self, split: Split, chances: Chances, seed: int) -> None:
        if not isinstance(split, Addressed):
            raise DataError(
                f"the training split is a {type(split).__name__}, whose samples cannot be drawn one by one: keep it in "
                "memory (memory_mb=), or give it a method at(indices, step, augment=)"
            )
        self._split, self._chances, self._seed = split, chances, seed
        self._memo: tuple[tuple[int, int], Tensor, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Return the number of samples of the split."""
        return len(self._split)

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64."""
        return self._split.labels

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (size, C, H, W), labels (size,) and sample numbers (size,) int64 of a step."""
        epoch, place = divmod(step, steps_of_epoch(len(self), size))
        chosen = self._indices(epoch, size)[place * size : (place + 1) * size]
        images, labels = self._split.at(chosen, step, augment=augment)
        return images, labels, torch.from_numpy(chosen)

    def _indices(self, epoch: int, size: int) -> NDArray[np.int64]:
        """Return the list of an epoch; it is drawn once, unless the chances change."""
        chances = self._chances()
        if self._memo is None or self._memo[0] != (epoch, size) or self._memo[1] is not chances:
            drawn = index_list(chances.numpy(), max(len(self), size), self._seed, epoch)
            self._memo = (epoch, size), chances, drawn
        return self._memo[2]


def steps_of_epoch(samples: int, size: int) -> int:
    """Return how many whole batches an epoch has, at least 1."""
    return max(1, samples // size)


def index_list(chances: NDArray[np.float64], count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return `count` sample numbers (count,) drawn with replacement; ValueError for chances that are none."""
    if not (chances >= 0).all() or not np.isfinite(total := float(chances.sum())) or total <= 0:
        raise ValueError("the chances of the samples must be numbers of at least 0, and not all 0")
    edges = np.cumsum(chances) / total
    uniform = (words(count, seed, _STREAM, epoch) >> np.uint64(11)).astype(np.float64) / 2.0**53  # in [0, 1)
    drawn: NDArray[np.int64] = np.searchsorted(edges, uniform, side="right").astype(np.int64)
    drawn[:] = np.minimum(drawn, np.flatnonzero(chances)[-1])  # the last edge may be below 1 by rounding
    return drawn
