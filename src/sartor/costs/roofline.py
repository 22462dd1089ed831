# SPDX-License-Identifier: Apache-2.0
"""The roofline: an operator takes as long as its arithmetic or its traffic, whichever is longer, and a call.

Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
Communications of the ACM 52(4), 2009.

A device has a peak of arithmetic and a bandwidth of memory. With I multiply-accumulates per byte, an operator attains
min(peak, I * bandwidth). What starting an operator takes is added, as it is most of the time of small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.costs.gemm import macs, moved_bytes

if TYPE_CHECKING:
    from sartor.workload import Op, Workload

__all__ = ["Roofline"]

Floats = NDArray[np.float64]

_PER_MS = 1e6  # what 1e9 per second is in a millisecond
_RIDGES = 64  # at which a fit tries to bend the roof


@dataclass(frozen=True)
class Roofline:
    """A cost in milliseconds of a device with two limits; infinity is no limit.

    gmacs_per_s: 1e9 multiply-accumulates per second (half of the GFLOP/s of a datasheet).
    gbytes_per_s: 1e9 bytes per second between the memory and the processor.
    call_ms: milliseconds for each operator.
    Raises ValueError for a limit that is not above 0 and for a negative call.
    """

    gmacs_per_s: float
    gbytes_per_s: float
    call_ms: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if not (self.gmacs_per_s > 0 and self.gbytes_per_s > 0):
            raise ValueError(f"{self}: both limits must be above 0; use math.inf for no limit")
        if not 0 <= self.call_ms < math.inf:
            raise ValueError(f"{self}: call_ms must be 0 or more milliseconds")

    @property
    def ridge(self) -> float:
        """Multiply-accumulates per byte from which on arithmetic is the limit."""
        return self.gmacs_per_s / self.gbytes_per_s

    def op(self, op: Op) -> float:
        """Return the milliseconds of one operator, whose operands are all read from memory."""
        arithmetic = macs(op) / self.gmacs_per_s
        traffic = moved_bytes(op) / self.gbytes_per_s
        return max(arithmetic, traffic) / _PER_MS + self.call_ms

    def __call__(self, workload: Workload) -> float:
        """Return the milliseconds of a network that runs one operator after the other."""
        return math.fsum(map(self.op, workload))

    @classmethod
    def fitted(cls, ops: Sequence[Op], ms: ArrayLike) -> Self:
        """Fit the three numbers to (N,) measured milliseconds of N operators, minimising squared relative errors.

        With the ridge in a given place every operator has one known limit, and the fit is a non-negative least-squares
        problem. All places between the operators' intensities are tried (64 at most), and the best roofline is kept. A
        limit that no operator shows is infinite.

        Raises ValueError for no operator, another number of values, or one that is not above 0 and finite.
        """
        from scipy.optimize import nnls

        measured = _checked(ops, ms)
        work = np.array([macs(op) for op in ops], dtype=np.float64) / _PER_MS
        traffic = np.array([moved_bytes(op) for op in ops], dtype=np.float64) / _PER_MS
        best, least = cls(math.inf, math.inf, float(np.median(measured))), math.inf
        for busy in _sides(work / np.maximum(traffic, 1e-300)):
            columns = np.stack([work * busy, traffic * ~busy, np.ones_like(work)], axis=1)
            scale = np.maximum(columns.max(axis=0), 1e-300)
            per_work, per_byte, call = nnls(columns / scale / measured[:, None], np.ones_like(measured))[0] / scale
            predicted = np.maximum(work * per_work, traffic * per_byte) + call
            error = float(np.square(predicted / measured - 1.0).sum())
            if error < least - 1e-12:  # among equals, the first: no limit where none shows
                best, least = cls(_inverse(per_work), _inverse(per_byte), float(call)), error
        return best


def _checked(ops: Sequence[Op], ms: ArrayLike) -> Floats:
    measured = np.asarray(ms, dtype=np.float64)
    if not len(ops) or measured.shape != (len(ops),):
        raise ValueError(f"there are {len(ops)} operators and values of shape {measured.shape}: give one for each")
    wrong = np.flatnonzero(~(np.isfinite(measured) & (measured > 0)))
    if len(wrong):
        raise ValueError(f"value {wrong[0]} is {measured[wrong[0]]}: leave out operators whose measurement failed")
    return measured


def _sides(intensity: Floats) -> list[NDArray[np.bool_]]:
    """Return the ways to split operators by intensity into those that compute and those that move."""
    places = np.unique(intensity)
    if len(places) > _RIDGES:
        places = np.quantile(places, np.linspace(0, 1, _RIDGES))
    return [np.zeros(len(intensity), dtype=bool), *(intensity >= place for place in places)]


def _inverse(value: float) -> float:
    return 1.0 / float(value) if value > 0 else math.inf
