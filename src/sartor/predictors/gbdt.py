# SPDX-License-Identifier: Apache-2.0
"""Gradient-boosted decision trees on one-hot options.

Luo, Tan, Wang, Qin, Chen and Liu, "Accuracy Prediction with Non-neural Model for Neural Architecture Search", 2020,
arXiv:2007.04785; LightGBM: Ke et al., NeurIPS 2017.

Trees need no scaling, learn from little and tell, exactly, what each option added to a prediction (TreeSHAP). The
mean is that of one model of all samples; the uncertainty is the spread of further models, each of a bootstrap sample.

Differs from the paper: a leaf may hold 5 samples instead of LightGBM's 20, below which forty samples give a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.space import SearchSpace

__all__ = ["GBDT"]


class GBDT:
    """A `Predictor` of boosted trees; needs LightGBM: `pip install 'sartor[search]'`.

    rounds, learning_rate, leaves: of the boosting (the paper's, in its code: 100, .05, 31; with .9 of the columns for
        each tree and a new .8 of the samples every 5 trees).
    least: samples in a leaf; less where there are fewer than ten times as many samples.
    members: models of bootstrap samples, for the uncertainty; 0 for none.
    extra: further columns beside the options, (N, E) of N architectures, such as `OperatorCounts`: an operator that
        reads zeros is in an option, but not in the workload.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        rounds: int = 100,
        learning_rate: float = 0.05,
        leaves: int = 31,
        least: int = 5,
        members: int = 8,
        seed: int = 0,
        extra: Callable[[Sequence[Architecture]], Floats] | None = None,
    ) -> None:
        """Take the space; ValueError for sizes out of range."""
        if rounds < 1 or leaves < 2 or least < 1 or members < 0:
            raise ValueError(f"rounds {rounds}, leaves {leaves}, least {least}, members {members}: too small")
        self.space, self.extra = space, extra
        self.rounds, self.least, self.members, self.seed = rounds, least, members, seed
        self._parameters = {
            "objective": "regression",
            "num_leaves": leaves,
            "learning_rate": learning_rate,
            "feature_fraction": 0.9,
            "bagging_fraction": 0.8,
            "bagging_freq": 5,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Grow the trees; ValueError for fewer than 2 samples, NaN or infinity, ImportError without LightGBM."""
        values = checked(archs, values)
        x = self._columns(archs)
        self._scale = Scale.of(values)
        y = self._scale.standardised(values)
        self._model = self._grown(x, y, self.seed)
        rng = np.random.default_rng(self.seed)
        self._bootstrapped = []
        for member in range(self.members):
            drawn = rng.integers(len(y), size=len(y))
            self._bootstrapped.append(self._grown(x[drawn], y[drawn], self.seed + 1 + member))
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means, and the (N,) spreads of the bootstrapped models; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        x = self._columns(archs)
        if not len(x):
            return np.empty(0), np.empty(0)
        mean = self._scale.mean + self._scale.spread * self._model.predict(x, num_threads=1)
        if not self._bootstrapped:
            return mean, np.zeros(len(x))
        several = np.stack([model.predict(x, num_threads=1) for model in self._bootstrapped])
        return mean, self._scale.spread * several.std(axis=0)

    def contributions(self, archs: Sequence[Architecture]) -> Floats:
        """Return the (N, D) SHAP values: what each column, those of `onehot` first, added to the mean, in their unit.

        A row and a constant, the same for all, sum to the prediction. ValueError before `fit`.
        """
        if self._scale is None:
            raise unfitted(self)
        found = self._model.predict(self._columns(archs), pred_contrib=True, num_threads=1)
        return self._scale.spread * np.asarray(found)[:, :-1]

    def _columns(self, archs: Sequence[Architecture]) -> Floats:
        options = onehot(self.space, archs)
        return options if self.extra is None or not len(options) else np.hstack([options, self.extra(archs)])

    def _grown(self, x: Floats, y: Floats, seed: int) -> Any:
        try:
            import lightgbm
        except ImportError:
            raise ImportError("GBDT needs LightGBM: pip install 'sartor[search]'") from None
        least = max(1, min(self.least, len(y) // 10))
        parameters = {**self._parameters, "min_data_in_leaf": least, "seed": seed, "min_data_in_bin": 1}
        data = lightgbm.Dataset(x, y, params={"feature_pre_filter": False, "verbose": -1, "min_data_in_bin": 1})
        return lightgbm.train(parameters, data, num_boost_round=self.rounds)
