"""A split that lives in memory: 8-bit pixels where they suffice, indexed a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.data.augmentation import Augmentation
from sartor.data.order import ShuffledEpochs, ranges
from sartor.data.preprocessing import Preprocessing

__all__ = ["TensorSplit", "normalised"]


class TensorSplit:
    """Images (N, C, H, W), uint8 or float32 in pixel units, and labels (N,) int64; see `task.Split`.

    Args:
        images, labels: the samples.
        preprocessing: the normalisation of every batch that is handed out.
        augmentation: what ``batch(..., augment=True)`` does; None leaves the images as they are.
        seed: the order of the samples and the augmentation depend on it.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self._images = images
        self._labels = labels
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._seed = seed
        self._order = ShuffledEpochs(len(labels), seed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64, in the order of `batches`."""
        return self._labels

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (size, C, H, W) float32 and labels (size,) of a step of shuffled epochs."""
        return self.at(self._order.batch(step, size), step, augment=augment)

    def at(self, indices: NDArray[np.int64], step: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) float32 and labels (N,) of the samples at `indices`, augmented as at `step`."""
        chosen = torch.from_numpy(indices)
        images = self._images[chosen]
        if augment and self._augmentation is not None:
            images = self._augmentation(images, self._seed, step)
        return normalised(images, self._preprocessing), self._labels[chosen]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once, in order and without augmentation."""
        for run in ranges(len(self), size):
            part = slice(run.start, run.stop)
            yield normalised(self._images[part], self._preprocessing), self._labels[part].clone()

    def part(self, indices: NDArray[np.int64], seed: int) -> TensorSplit:
        """Return the samples at `indices` as a split that shuffles by `seed`."""
        chosen = torch.from_numpy(indices)
        return TensorSplit(self._images[chosen], self._labels[chosen], self._preprocessing, self._augmentation, seed)


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return images (N, C, H, W) as float32, scaled and normalised, in new memory."""
    # Division before subtraction, as in `Preprocessing.image`, so that both agree to the last bit.
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    out = images.to(torch.float32, copy=True)
    return out.div_(preprocessing.scale).sub_(mean).div_(std)
