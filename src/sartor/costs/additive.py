# SPDX-License-Identifier: Apache-2.0
"""Latency as a sum over operators, calibrated on whole networks; and counts, as what it has to beat.

Cai, Zhu and Han, "ProxylessNAS", ICLR 2019, arXiv:1812.00332 (the sum); Zhang et al., "nn-Meter", MobiSys 2021 (what
fusion takes off it).

Every model here is a line with non-negative slopes through some columns of a network, fitted to relative errors. So no
prediction falls when a network grows, and a network of .1 ms counts as much as one of 10 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.costs.operators import FUSED, OperatorTable, fused
from sartor.workload import KINDS, Workload, kind_of

__all__ = ["Line", "additive", "counted", "summed"]

Floats = NDArray[np.float64]


class Line:
    """A `Predictor` in milliseconds that is linear in the columns of a network; slopes and base are not negative.

    columns: from an architecture to its (D,) columns, each 0 or more.
    strength: of the ridge penalty, relative to one sample.
    free: how many of the first columns have no penalty.
    """

    def __init__(self, columns: Callable[[Architecture], Floats], *, strength: float = 1e-3, free: int = 0) -> None:
        self.columns, self.strength, self.free = columns, strength, free
        self.slopes: Floats | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Fit to (N,) milliseconds; ValueError for fewer than 2 samples, or a value not above 0 and finite."""
        y = np.asarray(values, dtype=np.float64)
        if y.shape != (len(archs),) or len(y) < 2:
            raise ValueError(f"{len(archs)} architectures with values of shape {y.shape}: give 2 or more, one for each")
        if not (np.isfinite(y).all() and (y > 0).all()):
            raise ValueError("a latency is not finite, or not above 0: leave out networks whose measurement failed")
        from scipy.optimize import nnls

        x = self._columns(archs)
        self.scale = np.maximum(x.max(axis=0), 1e-300)
        rows = x / self.scale / y[:, None]  # so that squared errors are relative ones
        # The penalty draws towards 0, as further rows; on the base it would only bias.
        penalty = math.sqrt(self.strength * len(y) * float(np.mean(rows**2))) * np.eye(rows.shape[1])
        penalty[: 1 + self.free] = 0.0
        slopes, _ = nnls(np.concatenate([rows, penalty]), np.concatenate([np.ones_like(y), np.zeros(len(penalty))]))
        self.slopes = np.asarray(slopes)
        self.residual = float(np.sqrt(np.mean((rows @ self.slopes - 1.0) ** 2)))
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) milliseconds and the (N,) standard errors of the fit; ValueError before `fit`."""
        if self.slopes is None:
            raise ValueError("Line has learnt nothing yet: call fit first")
        if not len(archs):
            return np.empty(0), np.empty(0)
        mean = np.asarray(self._columns(archs) / self.scale @ self.slopes)
        return mean, mean * self.residual

    def _columns(self, archs: Sequence[Architecture]) -> Floats:
        table = np.stack([self.columns(arch) for arch in archs])
        return np.concatenate([np.ones((len(table), 1)), table], axis=1)


def summed(table: OperatorTable, workload: Callable[[Architecture], Workload]) -> Callable[[Architecture], Floats]:
    """The single column of the operator table: its plain sum."""
    return lambda arch: np.array([table(workload(arch)) - table.call_ms])


def counted(
    count: Callable[[Workload], float], workload: Callable[[Architecture], Workload]
) -> Callable[[Architecture], Floats]:
    """The single column of a count, such as `sartor.workload.macs`."""
    return lambda arch: np.array([count(workload(arch))])


def additive(table: OperatorTable, workload: Callable[[Architecture], Workload]) -> Callable[[Architecture], Floats]:
    """The columns of the sum with fusion, for each kind of operator: its milliseconds, and its calls.

    What fusion saves is taken off the milliseconds, and an operator that became part of its neighbour is no call. The
    slopes then say how much less, or more, a kind of operator takes within a network than alone, where its inputs are
    cold and the layout of its memory is its neighbour's.
    """

    def columns(arch: Architecture) -> Floats:
        sums = np.zeros((len(KINDS), 2))
        for op, left in fused(workload(arch), table.savings):
            sums[KINDS.index(kind_of(op))] += (left * table.op(op), left > FUSED)
        return sums.ravel()

    return columns
