"""A split whose images stay encoded: threads decode them as batches need them, some batches ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.data.augmentation import Augmentation
from sartor.data.order import ShuffledEpochs, ranges
from sartor.data.preprocessing import Preprocessing, decode, probe
from sartor.data.source import DataError, EncodedImages, Files
from sartor.data.tensors import normalised

__all__ = ["Form", "StreamingSplit", "common_form", "decoded"]

_CHUNK = 256  # images that a thread reads at a time
_AHEAD = 2  # batches that are decoded before they are asked for

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """What the images of all parts share; `size` (height, width) is that of the first if not `uniform`."""

    grey: bool
    size: tuple[int, int]
    uniform: bool
    place: str
    workers: int


def common_form(parts: Mapping[str, Files], any_size: bool, workers: int | None) -> Form:
    """Read the header of every image, so that a bad file is known before training starts.

    Raises:
        DataError: an image that is unreadable, or, unless `any_size`, two images of unequal size.
    """
    workers = _workers(workers)
    grey, uniform = True, True
    first: tuple[tuple[int, int], str] | None = None
    with ThreadPoolExecutor(workers) as pool:
        for part in parts.values():
            images = part.images
            probed = pool.map(_probe, repeat(images), ranges(len(images), _CHUNK))
            for index, (is_grey, size) in enumerate(chain.from_iterable(probed)):
                first = first or (size, images.name(index))
                grey = grey and is_grey
                uniform = uniform and size == first[0]
                if not uniform and not any_size:
                    raise DataError(_unequal(first, (size, images.name(index))))
    assert first is not None  # a part without labels was refused before
    return Form(grey, first[0], uniform, first[1], workers)


def decoded(
    images: EncodedImages,
    mode: str,
    size: tuple[int, int],
    workers: int,
    indices: NDArray[np.int64] | None = None,
) -> Pixels:
    """Return the pixels (N, C, H, W) of all images, or of those at `indices`, decoded by threads."""
    chosen = np.arange(len(images)) if indices is None else indices
    out = np.empty((len(chosen), 1 if mode == "L" else 3, *size), dtype=np.uint8)

    def fill(rows: range) -> None:
        for row in rows:
            out[row] = _decode(images, int(chosen[row]), mode, size)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(fill, ranges(len(chosen), _CHUNK)):
            pass  # taken one by one, so that the first bad image in order is the one that is named
    return out


class StreamingSplit:
    """Encoded images, decoded on demand; a batch is the same pure function of seed and step as in memory.

    Threads rather than processes: Pillow decodes and resizes outside the interpreter lock, and nothing has to
    be copied between processes. What is decoded ahead is a cache and never changes a result. Picklable; the
    copy starts threads of its own.

    Args:
        images: the encoded images of the part that the split is cut from.
        indices: (N,) which of them belong to the split.
        labels: (N,) int64.
        preprocessing, augmentation, seed: as for `TensorSplit`.
        workers: number of decoding threads.
    """

    def __init__(
        self,
        images: EncodedImages,
        indices: NDArray[np.int64],
        labels: Tensor,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        seed: int,
        workers: int,
    ) -> None:
        self._images = images
        self._indices = indices
        self._labels = labels
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._seed = seed
        self._workers = workers
        self._order = ShuffledEpochs(len(labels), seed)
        self._ahead: dict[tuple[int, int], list[Future[Pixels]]] = {}
        self._start()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64, in the order of `batches`."""
        return self._labels

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (size, C, H, W) float32 and labels (size,); raises `DataError` on a damaged image."""
        wanted = [(later, size) for later in range(step, step + 1 + _AHEAD)]
        with self._lock:
            self._ahead = {key: self._ahead.get(key) or self._submit(self._order.batch(*key)) for key in wanted}
            futures = self._ahead[step, size]
        return self._batch(futures, self._order.batch(step, size), step, augment)

    def at(self, indices: NDArray[np.int64], step: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) and labels (N,) of the samples at `indices`, augmented as at `step`."""
        return self._batch(self._submit(indices), indices, step, augment)

    def _batch(
        self, futures: Sequence[Future[Pixels]], indices: NDArray[np.int64], step: int, augment: bool
    ) -> tuple[Tensor, Tensor]:
        images = _stacked(futures)
        if augment and self._augmentation is not None:
            images = self._augmentation(images, self._seed, step)
        return normalised(images, self._preprocessing), self._labels[torch.from_numpy(indices)]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once, in order and without augmentation."""
        runs = [np.arange(run.start, run.stop) for run in ranges(len(self), size)]
        waiting = [self._submit(run) for run in runs[:_AHEAD]]
        for number, run in enumerate(runs):
            waiting.extend(self._submit(later) for later in runs[number + _AHEAD : number + _AHEAD + 1])
            images = _stacked(waiting.pop(0))
            yield normalised(images, self._preprocessing), self._labels[torch.from_numpy(run)]

    def part(self, indices: NDArray[np.int64], seed: int) -> StreamingSplit:
        """Return the samples at `indices` as a split that shuffles by `seed`."""
        labels = self._labels[torch.from_numpy(indices)]
        kept = self._indices[indices]
        return StreamingSplit(self._images, kept, labels, self._preprocessing, self._augmentation, seed, self._workers)

    def _submit(self, samples: NDArray[np.int64]) -> list[Future[Pixels]]:
        size = (self._preprocessing.height, self._preprocessing.width)
        return [
            self._pool.submit(_decode, self._images, int(index), self._preprocessing.mode, size)
            for index in self._indices[samples]
        ]

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="sartor-decode")
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the threads and what they decode."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_pool", "_lock")}
        return {**kept, "_ahead": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, with threads of its own."""
        vars(self).update(state)
        self._start()


def _stacked(futures: Sequence[Future[Pixels]]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in futures]))


def _probe(images: EncodedImages, run: range) -> list[tuple[bool, tuple[int, int]]]:
    return [probe(images.open(index), images.name(index)) for index in run]


def _decode(images: EncodedImages, index: int, mode: str, size: tuple[int, int]) -> Pixels:
    return decode(images.open(index), images.name(index), mode, size)


def _workers(workers: int | None) -> int:
    if workers is None:
        return min(8, os.cpu_count() or 1)
    if workers < 1:
        raise DataError(f"workers = {workers}: decoding needs at least one thread")
    return workers


def _unequal(first: tuple[tuple[int, int], str], other: tuple[tuple[int, int], str]) -> str:
    (size, name), (other_size, other_name) = first, other
    return (
        f"images of unequal size (height x width): {name} is {size[0]}x{size[1]},"
        f" {other_name} is {other_size[0]}x{other_size[1]}; bring them to one size or give an image size"
    )
