"""What a split of a data set promises to those who train and measure on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Batch", "Split"]

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) float32, normalised, and class indices (N,) int64."""


@runtime_checkable
class Split(Protocol):
    """Samples with random access by step, so that a resumed run sees the batches it would have seen."""

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64, in the order of `batches`."""

    def batch(self, step: int, size: int, *, augment: bool = False) -> Batch:
        """Return batch number `step` of an endless run of shuffled epochs: `size` samples.

        The result depends on the seed of the split and on the arguments, never on earlier calls.
        """

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield every sample once, in order and without augmentation; the last batch may be short."""
