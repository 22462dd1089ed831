"""Random numbers as a pure function of integers.

NumPy and torch may change their streams between versions and devices; splits are recorded and runs are
resumed, so both rest on this counter-based generator instead: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014),
whose value number i for a key needs no earlier value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["integers", "permutation", "words"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def words(count: int, *key: int) -> NDArray[np.uint64]:
    """Return `count` 64-bit words, (count,), that depend on the integers of `key` and nothing else."""
    state = 0
    for part in key:
        state = int(_mix(np.array([(state ^ (part & _MASK)) + _GOLDEN & _MASK], dtype=np.uint64))[0])
    counter = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(np.uint64(state) + counter * np.uint64(_GOLDEN))


def integers(high: int, count: int, *key: int) -> NDArray[np.int64]:
    """Return `count` integers in [0, high), (count,); `high` is at most 2**31."""
    # Multiply-shift: the upper 32 bits times `high` fit in 64 bits, and the bias is below high / 2**32.
    upper = words(count, *key) >> np.uint64(32)
    return ((upper * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1, (count,)."""
    return np.argsort(words(count, *key), kind="stable").astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64; unsigned arithmetic wraps on purpose."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
