"""Splits of the user's own batches: kept in memory if they fit, else read again at every pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sartor.data.labels import encode_labels
from sartor.data.order import ranges
from sartor.data.pixels import mean_and_std
from sartor.data.preprocessing import Preprocessing
from sartor.data.source import SHORTEST_SIDE, DataError
from sartor.data.split import Split
from sartor.data.tensors import TensorSplit, normalised

__all__ = ["Collected", "IterableSplit", "collect", "splits_of_batches"]


@dataclass(frozen=True)
class Collected:
    """What one pass over batches yields.

    Args:
        batches: the iterable that was read.
        images: (N, C, H, W), all of them or, if they do not `fit`, the first ones.
        labels: (N,) int64, always all.
        fit: whether all images are in `images`.
    """

    batches: Iterable[Any]
    images: Tensor
    labels: Tensor
    fit: bool


def collect(batches: Iterable[Any], place: str, memory_mb: float) -> Collected:
    """Read batches once, checking each.

    Raises:
        DataError: no batches, something that is no (images, labels) pair of equal length, wrong dtype or
            shape, NaN, images of unequal size, or a one-shot iterator beyond the memory bound.
    """
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    used, fit = 0, True
    one_shot = isinstance(batches, Iterator)
    for number, batch in enumerate(_started(batches, place)):
        x, y = checked(batch, f"{place}: batch {number}", kept[0] if kept else None)
        labels.append(y)
        used += x.nbytes
        fit = fit and used <= memory_mb * 2**20
        if not fit and one_shot:
            raise DataError(
                f"{place}: an iterator that can be read only once has more than memory_mb = {memory_mb:g} MB;"
                " give an object that can be iterated again, such as a DataLoader, or raise the bound"
            )
        if fit or not kept:
            kept.append(x)
        else:
            del kept[1:]
    if not labels:
        raise DataError(f"{place}: yields no batches; every split needs some (is it a used-up generator?)")
    return Collected(batches, torch.cat(kept), torch.cat(labels), fit)


def checked(batch: Any, place: str, like: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return images, uint8 or float32 (B, C, H, W), and labels int64 (B,), or raise `DataError`.

    Images must have the dtype and the (C, H, W) of `like`, if that is given.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise DataError(f"{place} is {what}; batches are pairs (images, labels)")
    x, y = (_tensor(value, f"{place}: {name}") for value, name in zip(batch, ("images", "labels"), strict=True))
    if x.ndim != 4 or min(x.shape[2:]) < SHORTEST_SIDE:
        raise DataError(
            f"{place}: images have shape {tuple(x.shape)}; give (N, C, H, W) with sides of at least {SHORTEST_SIDE}"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise DataError(f"{place}: images have dtype {x.dtype}; give uint8 or a float type")
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise DataError(f"{place}: labels have shape {tuple(y.shape)} and dtype {y.dtype}; give integers (N,)")
    if len(x) != len(y):
        raise DataError(f"{place}: {len(x)} images but {len(y)} labels; give one label per image")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        at = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(f"{place}: image {at} holds NaN or infinity; repair or drop it")
    x = x if x.dtype == torch.uint8 else x.to(torch.float32)
    if like is not None and (x.shape[1:], x.dtype) != (like.shape[1:], like.dtype):
        raise DataError(
            f"{place}: images are {tuple(x.shape[1:])} of {x.dtype}, but earlier ones {tuple(like.shape[1:])}"
            f" of {like.dtype}; give one size and dtype"
        )
    return x, y.to(torch.int64)


def splits_of_batches(
    given: Mapping[str, Iterable[Any] | Split],
    classes: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    seed: int,
    memory_mb: float,
) -> tuple[dict[str, Split], tuple[str, ...], Preprocessing]:
    """Return the splits of a task that is made of batches, its class names and its preprocessing.

    Args:
        given: batches, or a ready `Split`, for ``train``, ``validation`` and ``test``.
        classes: the class names; None names the classes 0..K-1 that ``train`` has by their numbers.
        preprocessing: how the user's images were made; uint8 images are normalised by it.
        seed: the order of the batches of a split in memory.
        memory_mb: bound on the images of each split in memory.

    Raises:
        DataError: see `collect`; also labels that do not fit the classes, or splits of unequal image size.
    """
    read = {name: part if isinstance(part, Split) else collect(part, name, memory_mb) for name, part in given.items()}
    firsts = {
        name: next(iter(part.batches(1)))[0] if isinstance(part, Split) else part.images for name, part in read.items()
    }
    names = _class_names(read, classes)
    shape = _common_shape(firsts)
    if preprocessing is None:
        preprocessing = _preprocessing(firsts["train"], shape)
    splits: dict[str, Split] = {}
    for name, part in read.items():
        if isinstance(part, Split):
            splits[name] = part
        elif part.fit:
            applied = preprocessing if part.images.dtype == torch.uint8 else _identity(shape)
            splits[name] = TensorSplit(part.images, part.labels, applied, None, seed)
        else:
            splits[name] = IterableSplit(part.batches, part.labels, part.images, preprocessing, name)
    return splits, names, preprocessing


def _class_names(read: Mapping[str, Collected | Split], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Check the labels of all parts, which must be class indices already, and return the class names."""
    labels = {name: (part.labels.numpy(), f"{name}: labels") for name, part in read.items()}
    encoded, names = encode_labels(labels, classes)
    if classes is None and names[0] != "0":
        raise DataError(f"train: labels start at {names[0]}; number the classes from 0, or name them all")
    counts = np.bincount(encoded["train"], minlength=len(names))
    if counts.min() < 2:
        raise DataError(f"class {names[int(counts.argmin())]!r} has {counts.min()} training samples; give at least 2")
    return names


def _common_shape(firsts: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return (C, H, W) of the images of all parts, given some of each."""
    train = firsts["train"]
    for name, first in firsts.items():
        if (first.shape[1:], first.dtype) != (train.shape[1:], train.dtype):
            raise DataError(
                f"{name} has images {tuple(first.shape[1:])} of {first.dtype}, train has"
                f" {tuple(train.shape[1:])} of {train.dtype}; give one size and dtype"
            )
    return tuple(train.shape[1:])


def _preprocessing(images: Tensor, shape: tuple[int, ...]) -> Preprocessing:
    """Return the normalisation of uint8 images by their own statistics; float images stay as they are."""
    if images.dtype != torch.uint8:
        return _identity(shape)
    channels, height, width = shape
    return Preprocessing(channels, height, width, *mean_and_std(images.numpy()))


def _identity(shape: tuple[int, ...]) -> Preprocessing:
    channels, height, width = shape
    return Preprocessing(channels, height, width, (0.0,) * channels, (1.0,) * channels, scale=1.0)


class IterableSplit:
    """Batches that do not fit in memory, cut anew to the size that is asked for.

    Step k of size b serves the samples k*b .. k*b+b-1 of an endless chain of passes. Steps in rising order
    cost no more than the iteration; a step back starts a pass again. Batches are a function of the step as
    far as every pass yields the same; an iterable that shuffles by itself trains well but resumes with other
    batches. Picklable if the iterable is.

    Args:
        batches: an iterable that can be iterated again.
        labels: (N,) int64 of the first pass.
        like: (B, C, H, W), some images, for the shape and dtype that all must have.
        preprocessing: the normalisation of uint8 images; float images are served as they come.
        place: what errors call the split.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        labels: Tensor,
        like: Tensor,
        preprocessing: Preprocessing,
        place: str,
    ) -> None:
        self._batches = batches
        self._labels = labels
        self._like = like[:0].clone()
        self._preprocessing = preprocessing
        self._place = place
        self._reader: Iterator[tuple[Tensor, Tensor]] | None = None
        self._position = 0  # number of the sample in the endless chain that the reader yields next

    def __len__(self) -> int:
        """Return the number of samples of one pass."""
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64, in the order of the first pass."""
        return self._labels

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (size, C, H, W) and labels (size,); augmentation is the iterable's own business."""
        if step < 0 or size < 1:
            raise ValueError(f"step {step} and batch size {size}: a step is at least 0 and a size at least 1")
        start = step * size
        if self._reader is None or self._position > start:
            # Passes are alike, so the reader may enter the chain at the pass that holds the first sample.
            self._position = start - start % len(self)
            self._reader = self._samples()
        reader, skipped, self._reader = self._reader, start - self._position, None
        rows = list(islice(reader, skipped, skipped + size))
        self._reader, self._position = reader, start + size  # not reached after an error: then start again
        return self._served([x for x, _ in rows]), torch.stack([y for _, y in rows])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample of a pass of its own; the last batch may be short."""
        samples = self._samples()
        for run in ranges(len(self), size):
            rows = list(islice(samples, len(run)))
            yield self._served([x for x, _ in rows]), torch.stack([y for _, y in rows])

    def _samples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield single samples, pass after pass; a pass of another length than the first raises."""
        while True:
            count = 0
            for number, batch in enumerate(self._batches):
                x, y = checked(batch, f"{self._place}: batch {number}", self._like)
                count += len(y)
                yield from zip(x, y, strict=True)
            if count != len(self):
                raise DataError(
                    f"{self._place}: a pass yields {count} samples, the first one yielded {len(self)};"
                    " give an iterable that yields the same every time"
                )

    def _served(self, rows: list[Tensor]) -> Tensor:
        images = torch.stack(rows)
        return normalised(images, self._preprocessing) if images.dtype == torch.uint8 else images

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the open pass."""
        return {**vars(self), "_reader": None, "_position": 0}


def _started(batches: Iterable[Any], place: str) -> Iterator[Any]:
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise DataError(f"{place} is a {type(batches).__name__}; give batches (images, labels)")
    return iter(batches)


def _tensor(value: Any, place: str) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        raise DataError(f"{place} are a {type(value).__name__}; give a tensor or an array of numbers")
    return value.detach().cpu()
