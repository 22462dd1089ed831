# SPDX-License-Identifier: Apache-2.0
"""Splits of token ids: sequences of different lengths with a label each, and windows of running text.

Ids lie in one flat int32 array, so that millions of short sequences take four bytes for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.data.order import ShuffledEpochs, ranges
from sartor.data.rng import integers

__all__ = ["IGNORED", "TextSplit", "WindowSplit"]

IGNORED = -100
"""The label of a token that is not counted."""

_SHIFT = 5  # the stream of random numbers that moves windows

Indices = NDArray[np.int64]


class TextSplit:
    """Sequences of token ids with a class each; see `data.split.Split`.

    A batch is (ids (N, T) int64, labels (N,) int64), T the length of its longest sequence, and `pad` behind the others.
    The samples are in the order of their lengths, so that the batches of an evaluation hold few pads.

    Args:
        sequences: the ids (T,) of each sample. labels: (N,) class indices.
        pad: the id behind shorter sequences. seed: the order of the batches depends on it.
    """

    def __init__(self, sequences: Sequence[NDArray[np.integer]], labels: Indices, pad: int, seed: int) -> None:
        order = np.argsort([len(one) for one in sequences], kind="stable")
        self._offsets = np.concatenate([[0], np.cumsum([len(sequences[i]) for i in order])]).astype(np.int64)
        empty = np.zeros(0, np.int32)
        self._tokens = np.concatenate([empty, *(np.asarray(sequences[i], np.int32) for i in order)])
        self._labels = torch.from_numpy(np.asarray(labels, np.int64)[order])
        self._pad, self._order = pad, ShuffledEpochs(len(order), seed)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        """The class index of every sample, (N,) int64, in the order of `batches`."""
        return self._labels

    @property
    def lengths(self) -> Indices:
        """The number of tokens of every sample, (N,), in that order."""
        return np.diff(self._offsets)

    @property
    def largest_id(self) -> int:
        """The largest id of a token."""
        return int(self._tokens.max(initial=0))

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The ids (size, T) and labels (size,) of a step of shuffled epochs; text is not augmented."""
        return self.at(self._order.batch(step, size), step, augment=augment)

    def at(self, indices: Indices, step: int = 0, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The ids (N, T) and labels (N,) of the samples at `indices`."""
        starts, lengths = self._offsets[indices], self.lengths[indices]
        columns = np.arange(lengths.max(initial=1))
        inside = columns < lengths[:, None]
        ids = np.full(inside.shape, self._pad, np.int64)
        ids[inside] = self._tokens[(starts[:, None] + columns)[inside]]
        return torch.from_numpy(ids), self._labels[torch.from_numpy(indices)]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once, from short to long."""
        for run in ranges(len(self), size):
            yield self.at(np.arange(run.start, run.stop))

    def part(self, indices: Indices, seed: int) -> TextSplit:
        """The samples at `indices` as a split that shuffles by `seed`."""
        sequences = [self._tokens[self._offsets[i] : self._offsets[i + 1]] for i in indices]
        return TextSplit(sequences, self._labels.numpy()[indices], self._pad, seed)


class WindowSplit:
    """Running text cut into windows of `length` tokens; see `data.split.Split`.

    A batch is (ids (N, T) int64, next tokens (N, T) int64). What the last window lacks is `pad`, and not counted. In
    training with `augment` a window of a whole text begins anywhere, so that what is in its middle is at times at its
    end; windows of a `part` stay where they are, for the next one may be of another part.

    Args:
        tokens: (M,) ids. length: T. pad: any id. seed: the order of the windows depends on it.
        windows: the numbers of the windows that are in the split; None for all.
    """

    def __init__(
        self, tokens: NDArray[np.integer], length: int, pad: int, seed: int, windows: Indices | None = None
    ) -> None:
        self._tokens, self._length, self._pad, self._seed = np.asarray(tokens, np.int32), length, pad, seed
        count = -(-(len(tokens) - 1) // length)
        self._whole = windows is None
        self._windows = np.arange(count) if windows is None else windows
        self._order = ShuffledEpochs(len(self._windows), seed)

    def __len__(self) -> int:
        """The number of windows."""
        return len(self._windows)

    @property
    def labels(self) -> Tensor:
        """The next tokens of every window, (N, T) int64, in the order of `batches`."""
        return self._cut(self._windows * self._length)[1]

    @property
    def largest_id(self) -> int:
        """The largest id of a token."""
        return int(self._tokens.max(initial=0))

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The ids and next tokens, (size, T) each, of a step of shuffled epochs."""
        return self.at(self._order.batch(step, size), step, augment=augment)

    def at(self, indices: Indices, step: int = 0, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The ids and next tokens, (N, T) each, of the windows at `indices`, moved as at `step`."""
        starts = self._windows[indices] * self._length
        if augment and self._whole:
            last = max(0, len(self._tokens) - 1 - self._length)
            starts = np.minimum(starts + integers(self._length, len(starts), self._seed, _SHIFT, step), last)
        return self._cut(starts)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every window once, in the order of the text."""
        for run in ranges(len(self), size):
            yield self.at(np.arange(run.start, run.stop))

    def part(self, indices: Indices, seed: int) -> WindowSplit:
        """The windows at `indices` as a split that shuffles by `seed`."""
        return WindowSplit(self._tokens, self._length, self._pad, seed, self._windows[indices])

    def _cut(self, starts: Indices) -> tuple[Tensor, Tensor]:
        places = starts[:, None] + np.arange(self._length + 1)
        inside = places < len(self._tokens)
        found = np.where(inside, self._tokens[np.minimum(places, len(self._tokens) - 1)], self._pad).astype(np.int64)
        wanted = np.where(inside[:, 1:], found[:, 1:], IGNORED)
        return torch.from_numpy(found[:, :-1].copy()), torch.from_numpy(wanted)
