# SPDX-License-Identifier: Apache-2.0
"""Latency from a network's workload: a sum over kinds of operators, fitted to a few measured networks.

Latency on a processor that runs one operator after the other is close to additive (Cai et al., "ProxylessNAS", ICLR
2019, arXiv:1812.00332). With a few dozen measured networks there is not enough to learn a cost for each choice, but
enough for a dozen costs: per kind of operator, a call, a multiply-accumulate and an element that is moved. All are
non-negative, so that the prediction never falls when a network grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.workload import KINDS, Op, Workload, kind_of, macs

__all__ = ["OperatorCounts", "WorkloadLatency", "cross_validated", "features"]

Array = NDArray[np.float64]


class WorkloadLatency:
    """A `Predictor` of milliseconds.

    Args:
        workload: gives an architecture's operators, as `sartor.trace` of its network does.
        strength: of the ridge penalty, relative to one sample.
    """

    def __init__(self, workload: Callable[[Architecture], Workload], strength: float = 1e-3) -> None:
        self.workload, self.strength = workload, strength

    def fit(self, archs: Sequence[Architecture], values: Array) -> Self:
        """Fit to (N,) measured milliseconds, minimising relative errors. ValueError below 2 samples."""
        if len(archs) < 2:
            raise ValueError(f"{len(archs)} measured networks are too few to predict latency from; measure at least 2")
        return self._fit(self.features(archs), np.asarray(values, dtype=np.float64))

    def predict(self, archs: Sequence[Architecture]) -> tuple[Array, Array]:
        """The (N,) predicted milliseconds and the (N,) standard errors: the relative residual of the fit."""
        mean = self._predict(self.features(archs))
        return mean, mean * self.residual

    def features(self, archs: Sequence[Architecture]) -> Array:
        """(N, 16) descriptions of the architectures' workloads."""
        return np.stack([features(self.workload(arch)) for arch in archs])

    def _fit(self, x: Array, y: Array) -> Self:
        from sklearn.linear_model import Ridge

        self.scale = np.maximum(x.max(0), 1e-12)
        rows = x / self.scale / y[:, None]  # divided by the target, so that squared errors are relative ones
        model = Ridge(alpha=self.strength * len(y) * float(np.mean(rows**2)), positive=True, fit_intercept=False)
        self.weights: Array = model.fit(rows, np.ones_like(y)).coef_
        self.residual = float(np.sqrt(np.mean((rows @ self.weights - 1.0) ** 2)))
        return self

    def _predict(self, x: Array) -> Array:
        return np.asarray(x / self.scale @ self.weights)


class OperatorCounts:
    """Descriptions of workloads finer than `features`: calls, multiply-accumulates and traffic of every operator.

    Columns for trees, which take many: a runtime may be slow at one operator among those that `KINDS` lumps together,
    as an int8 one is at what it computes in float32.

    workload: gives an architecture's operators. seen: architectures whose operators the columns are for.
    """

    def __init__(self, workload: Callable[[Architecture], Workload], seen: Sequence[Architecture]) -> None:
        self.workload = workload
        self.places = {name: i for i, name in enumerate(sorted({_named(op) for a in seen for op in workload(a)}))}

    def __call__(self, archs: Sequence[Architecture]) -> Array:
        """(N, 3 M) for M operators; what was not seen is left out."""
        table = np.zeros((len(archs), len(self.places), 3))
        for row, arch in zip(table, archs, strict=True):
            for op in self.workload(arch):
                if (place := self.places.get(_named(op))) is not None:
                    row[place] += (1.0, macs((op,)), _moved(op))
        return table.reshape(len(archs), -1)


def cross_validated(predictor: WorkloadLatency, archs: Sequence[Architecture], values: Array, folds: int = 5) -> Array:
    """(N,) predictions, each made by a fit that has not seen its network; the folds interleave the samples."""
    x, fold = predictor.features(archs), np.arange(len(values)) % folds
    predicted = np.empty_like(values)
    for held_out in range(folds):
        seen = fold != held_out
        fitted = WorkloadLatency(predictor.workload, predictor.strength)._fit(x[seen], values[seen])
        predicted[~seen] = fitted._predict(x[~seen])
    return predicted


def features(workload: Workload) -> Array:
    """(16,) one for the call of the network, then per kind of operator: calls, multiply-accumulates, elements moved."""
    table = np.zeros((len(KINDS), 3))
    for op in workload:
        table[KINDS.index(kind_of(op))] += (1.0, macs((op,)), _moved(op))
    return np.concatenate([[1.0], table.ravel()])


def _named(op: Op) -> str:
    return op.kind if kind_of(op) == "other" else kind_of(op)


def _moved(op: Op) -> int:
    return math.prod(op.output) + sum(map(math.prod, op.inputs))
