# SPDX-License-Identifier: Apache-2.0
"""What all predictors do with their samples: check them, and bring the values to mean 0 and spread 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.architecture import Architecture

Floats = NDArray[np.float64]


def checked(archs: Sequence[Architecture], values: ArrayLike) -> Floats:
    """Return the (N,) values; ValueError for fewer than 2, another number than of `archs`, NaN or infinity."""
    given = np.asarray(values, dtype=np.float64)
    if given.shape != (len(archs),):
        raise ValueError(f"there are {len(archs)} architectures and values of shape {given.shape}: give one for each")
    if len(given) < 2:
        raise ValueError(f"{len(given)} measured architectures are too few to predict from: measure at least 2")
    if not np.isfinite(given).all():
        worst = int(np.flatnonzero(~np.isfinite(given))[0])
        raise ValueError(f"value {worst} is {given[worst]}: leave out architectures whose measurement failed")
    return given


def unfitted(predictor: object) -> ValueError:
    """Return the error of predicting before learning."""
    return ValueError(f"{type(predictor).__name__} has learnt nothing yet: call fit first")


@dataclass(frozen=True)
class Scale:
    """Mean and spread of values; constant values have the spread 1, so that they standardise to zeros."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Measure (N,) values."""
        mean, spread = float(values.mean()), float(values.std())
        return cls(mean, spread if spread > 1e-12 * max(1.0, abs(mean)) else 1.0)

    def standardised(self, values: Floats) -> Floats:
        """Return the values in units of the spread from the mean."""
        return (values - self.mean) / self.spread
