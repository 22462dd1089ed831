# SPDX-License-Identifier: Apache-2.0
"""Models that are linear in their parameters, of designs and of what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from sartor import encodings
from sartor.architecture import Architecture
from sartor.space import SearchSpace
from sartor.strategies._relaxation import Floats, Indices, Relaxation

Features = Callable[[Mapping[str, float]], Sequence[float]]


class Model(Protocol):
    """A number of a design, or of a position (C,) of the relaxed space."""

    def at(self, x: Floats) -> float:
        """Return the number at positions between options."""
        ...

    def of(self, archs: Sequence[Architecture]) -> Floats:
        """Return the numbers of N architectures, as (N,)."""
        ...


@dataclass(frozen=True)
class Added:
    """A constant, and an effect of each option (of each of the D columns of the one-hot encoding)."""

    relaxation: Relaxation
    constant: float
    effects: Floats

    def at(self, x: Floats) -> float:
        """Interpolate the effects of each choice along its options."""
        places = np.minimum(x.astype(np.intp), self._last)
        low, high = self._along[self._rows, places], self._along[self._rows, places + 1]
        return self.constant + float((low + (x - places) * (high - low)).sum())

    def of(self, archs: Sequence[Architecture]) -> Floats:
        """Sum the effects of the options; choices that a gate switches off have none."""
        return self.constant + encodings.onehot(self.relaxation.space, archs) @ self.effects

    @cached_property
    def _along(self) -> Floats:
        """The effects by choice and position, as (C, K + 1) for at most K options; no effect beyond the last."""
        orders = self.relaxation.orders
        along = np.zeros((len(orders), max(map(len, orders)) + 1))
        for row, order, part in zip(along, orders, split(self.relaxation.space, self.effects), strict=True):
            row[: len(order)] = part[order]
        return along

    @cached_property
    def _rows(self) -> Indices:
        return np.arange(len(self.relaxation.orders))

    @cached_property
    def _last(self) -> Indices:
        return np.maximum(self.relaxation.tops.astype(np.intp) - 1, 0)


@dataclass(frozen=True)
class Weighed:
    """Weights times features of what the choices stand for."""

    relaxation: Relaxation
    features: Features
    weights: Floats

    def at(self, x: Floats) -> float:
        """Compute the features of interpolated options."""
        return float(np.dot(self.weights, self.features(self.relaxation.values(x))))

    def of(self, archs: Sequence[Architecture]) -> Floats:
        """Compute the features of the options."""
        rows = encodings.indices(self.relaxation.space, archs)
        return np.array([self.at(self.relaxation.position(row)) for row in rows], dtype=float)


@dataclass(frozen=True)
class Bound:
    """One bound on a model: at most `limit` where the sign is 1, at least it where the sign is -1."""

    model: Model
    limit: float
    sign: int

    def slack(self, x: Floats) -> float:
        """Return what is left to the bound at positions, relative to it (to 1 for 0): negative beyond."""
        return self.sign * (self.limit - self.model.at(x)) / (abs(self.limit) or 1.0)

    def excess(self, archs: Sequence[Architecture]) -> Floats:
        """Return how far each architecture is beyond the bound by the model: 0 within."""
        beyond: Floats = self.sign * (self.model.of(archs) - self.limit) / (abs(self.limit) or 1.0)
        return np.maximum(beyond, 0.0)


def option_effects(
    space: SearchSpace, archs: Sequence[Architecture], targets: Floats, ridge: float
) -> tuple[float, Floats]:
    """Return the constant and the (D,) effects of `Added` that ridge regression on (N,) targets finds."""
    encoded = encodings.onehot(space, archs)
    mean = encoded.mean(axis=0)
    moments = (encoded - mean).T @ (encoded - mean) + ridge * np.eye(len(mean))
    effects: Floats = np.linalg.solve(moments, (encoded - mean).T @ (targets - targets.mean()))
    return float(targets.mean() - mean @ effects), effects


def split(space: SearchSpace, effects: Floats) -> list[Floats]:
    """Split the (D,) effects by choice."""
    return np.split(effects, np.cumsum([len(options) for options in space.choices.values()])[:-1])
