# SPDX-License-Identifier: Apache-2.0
"""Ridge regression on one-hot options.

Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics 12(1), 1970.

Every option of every choice adds its own amount. The uncertainty is that of the Bayesian reading: a normal prior on
the amounts and normal noise, whose variance is estimated from the residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.space import SearchSpace

__all__ = ["Ridge"]


class Ridge:
    """A `Predictor` that is linear in the options.

    alpha: the penalty on the squared weights of the standardised values.
    seed: not used, as nothing is drawn; all predictors take one.
    """

    def __init__(self, space: SearchSpace, *, alpha: float = 1.0, seed: int = 0) -> None:
        """Take the space; ValueError for a penalty that is not above 0."""
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}: the penalty must be above 0")
        self.space = space
        self.alpha = alpha
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Solve the normal equations; ValueError for fewer than 2 samples, NaN or infinity."""
        values = checked(archs, values)
        x = onehot(self.space, archs)
        self._scale = Scale.of(values)
        self._centre = x.mean(axis=0)
        x, y = x - self._centre, self._scale.standardised(values)
        gram = x.T @ x
        self._covariance: Floats = np.linalg.inv(gram + self.alpha * np.eye(len(gram)))
        self._weights: Floats = self._covariance @ (x.T @ y)
        # The trace of the hat matrix counts the parameters in use; the intercept is one more.
        freedom = max(1.0, len(y) - 1 - float((self._covariance * gram).sum()))
        self._noise = float(np.square(y - x @ self._weights).sum()) / freedom
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and the (N,) standard deviations of the expected value; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        x = onehot(self.space, archs) - self._centre
        variance = self._noise * np.einsum("nd,de,ne->n", x, self._covariance, x, optimize=True)
        mean = self._scale.mean + self._scale.spread * (x @ self._weights)
        return mean, self._scale.spread * np.sqrt(np.maximum(variance, 0.0))
