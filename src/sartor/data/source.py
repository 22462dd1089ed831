"""What a reader hands over: images with their labels, before any split, scaling or encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from numpy.typing import NDArray

__all__ = ["LONGEST_SIDE", "SHORTEST_SIDE", "Arrays", "DataError", "EncodedImages", "Files", "Part", "Source"]

SHORTEST_SIDE = 8
LONGEST_SIDE = 224


class DataError(ValueError):
    """Data that cannot be used: one line with the value, its place and the remedy."""


@dataclass(frozen=True)
class Arrays:
    """Images that are in memory, as the source wrote them.

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W); see `pixels.to_pixels` for what is accepted.
        labels: (N,) or (N, 1); integers, integer-valued floats or strings.
        images_place: how an error names the images, e.g. ``mnist.npz: x_train``.
        labels_place: how an error names the labels.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    images_place: str
    labels_place: str

    @classmethod
    def checked(cls, images: NDArray[Any], labels: NDArray[Any], images_place: str, labels_place: str) -> Arrays:
        """Return the part if there is one label for each image, else raise `DataError`."""
        for array, place in ((images, images_place), (labels, labels_place)):
            if array.ndim == 0:
                raise DataError(f"{place} is a single value, not an array; give one entry per sample")
        if len(images) != len(labels):
            raise DataError(
                f"{images_place} has {len(images)} samples but {labels_place} has {len(labels)};"
                " give one label per image"
            )
        return cls(images, labels, images_place, labels_place)


class EncodedImages(Protocol):
    """Encoded images (PNG, JPEG) that can be opened by number, from any thread; picklable."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return what an error calls image `index`."""

    def open(self, index: int) -> Path | IO[bytes]:
        """Return a path or a fresh stream with the encoded bytes of image `index`."""


@dataclass(frozen=True)
class Files:
    """Images that are decoded when they are needed; `labels` (N,) as for `Arrays`."""

    images: EncodedImages
    labels: NDArray[Any]
    labels_place: str


Part = Arrays | Files


@dataclass(frozen=True)
class Source:
    """The parts that a source has; parts that it lacks are later cut from `train`.

    Args:
        train, validation, test: the parts; they share one kind (all `Arrays` or all `Files`).
        class_names: names of the classes 0..K-1 where the source knows them.
        record: facts about the reading that belong in `Task.record`.
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    class_names: tuple[str, ...] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, Part]:
        """Return the parts that exist, by split name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}
