"""Which samples make up a batch: an endless run of shuffled epochs that can be entered at any step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sartor.data.rng import permutation

__all__ = ["ShuffledEpochs", "ranges"]

_STREAM = 1


class ShuffledEpochs:
    """Every epoch is a permutation that depends on seed and epoch alone; batches run on across epochs."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._memo: dict[int, NDArray[np.int64]] = {}  # of the last epochs; it never changes a result

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Return the `size` sample numbers of a step, (size,); raises ValueError on a negative one."""
        if step < 0 or size < 1:
            raise ValueError(f"step {step} and batch size {size}: a step is at least 0 and a size at least 1")
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), self._count)
        chosen = [self._epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(chosen)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        order = self._memo.get(epoch)
        if order is None:
            order = permutation(self._count, self._seed, _STREAM, epoch)
            self._memo = {**{key: self._memo[key] for key in list(self._memo)[-1:]}, epoch: order}
        return order


def ranges(count: int, size: int) -> list[range]:
    """Return the sample numbers 0..count-1 in order, cut into runs of `size`; the last may be shorter."""
    if size < 1:
        raise ValueError(f"batch size {size}: a size is at least 1")
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
