# SPDX-License-Identifier: Apache-2.0
"""Ridge regression or a support vector machine, whichever predicts held-out samples better.

Cummings, Sarah, Sridhar, Szankin, Munoz and Sundaresan, "A Hardware-Aware Framework for Accelerating Neural
Architecture Search Across Modalities", 2022, arXiv:2205.10358; the predictor inside LINAS.

Latency and size are nearly linear in the options, accuracy is not: cross-validation picks the family and its strength.

Differs from the paper: three strengths of each family instead of a hundred, whose folds would cost more than the
search; errors are absolute instead of relative, as a value may be 0; values are standardised instead of divided by a
power of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.space import SearchSpace

__all__ = ["RidgeOrSVR"]


class RidgeOrSVR:
    """A `Predictor`; the standard deviation is the root mean squared error on the held-out folds, the same for all.

    alphas: penalties of the ridge regression (from the range of the authors' code, .1 to 10).
    costs: C of the machine with a Gaussian kernel (from the range of the authors' code, 1 to 100).
    folds: of the cross-validation; samples are shuffled by `seed`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        alphas: Sequence[float] = (0.1, 1.0, 10.0),
        costs: Sequence[float] = (1.0, 10.0, 100.0),
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        """Take the space; ValueError for fewer than 2 folds or nothing to choose from."""
        if folds < 2 or not (alphas or costs):
            raise ValueError(f"folds {folds}, alphas {tuple(alphas)}, costs {tuple(costs)}: at least 2 folds, and one")
        self.space, self.alphas, self.costs, self.folds, self.seed = space, tuple(alphas), tuple(costs), folds, seed
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Choose by cross-validation, then fit to all; ValueError for fewer than 2 samples, NaN or infinity."""
        values = checked(archs, values)
        self._scale = Scale.of(values)
        x, y = onehot(self.space, archs), self._scale.standardised(values)
        fold = np.random.default_rng(self.seed).permutation(len(y)) % self.folds
        candidates = self._candidates(x.shape[1])
        errors = np.stack([self._held_out(model, x, y, fold) for model in candidates])
        best = int(np.abs(errors).mean(axis=1).argmin())
        self._deviation = float(np.sqrt(np.square(errors[best]).mean()))
        self._model = candidates[best].fit(x, y)
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and (N,) standard deviations; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        if not len(archs):
            return np.empty(0), np.empty(0)
        mean = self._scale.mean + self._scale.spread * np.asarray(self._model.predict(onehot(self.space, archs)))
        return mean, np.full(len(archs), self._scale.spread * self._deviation)

    def _candidates(self, columns: int) -> list[Any]:
        from sklearn.linear_model import Ridge
        from sklearn.svm import SVR

        machines = [SVR(C=cost, epsilon=0.0, gamma=1 / columns) for cost in self.costs]
        return [*(Ridge(alpha=alpha) for alpha in self.alphas), *machines]

    def _held_out(self, model: Any, x: Floats, y: Floats, fold: Any) -> Floats:
        """Return the (N,) errors, each of a fit that has not seen its sample."""
        errors = np.zeros(len(y))
        for number in np.unique(fold):
            held = fold == number
            errors[held] = model.fit(x[~held], y[~held]).predict(x[held]) - y[held]
        return errors
