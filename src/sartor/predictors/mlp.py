# SPDX-License-Identifier: Apache-2.0
"""An ensemble of multilayer perceptrons on one-hot options, trained on values or on their order.

As White, Neiswanger and Savani, "BANANAS", AAAI 2021, arXiv:1910.11858, with the losses of `sartor.predictors.losses`.

A search needs the order of architectures more than their values, and a loss of the order learns it from fewer of
them. Scores of such a loss have no unit: a straight line that never falls brings them to the values.

Differs from the paper: two layers of 64 units instead of ten of 20; one-hot options, which any space has, instead of
paths through a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.predictors._networks import Members, calibration, one_thread, trained
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.predictors.losses import Loss, mse
from sartor.space import SearchSpace

__all__ = ["MLP"]


class MLP:
    """A `Predictor`: the mean of several networks, and the standard deviation between them.

    loss: one of `sartor.predictors.losses`, or a function of the same form.
    hidden: units of the hidden layers.
    members: networks, each with its own initial weights (5: BANANAS).
    steps, lr, weight_decay: of AdamW, on all samples at once, or on `batch` of them.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        loss: Loss = mse,
        hidden: Sequence[int] = (64, 64),
        members: int = 5,
        steps: int = 200,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        batch: int = 512,
        seed: int = 0,
    ) -> None:
        """Take the space; ValueError for sizes out of range."""
        if members < 1 or steps < 1 or batch < 2 or any(units < 1 for units in hidden):
            raise ValueError(f"members {members}, steps {steps}, batch {batch}, hidden {tuple(hidden)}: too small")
        self.space, self.loss, self.hidden, self.members = space, loss, tuple(hidden), members
        self.steps, self.lr, self.weight_decay, self.batch, self.seed = steps, lr, weight_decay, batch, seed
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Train from new weights; ValueError for fewer than 2 samples, NaN or infinity."""
        values = checked(archs, values)
        self._scale = Scale.of(values)
        y = self._scale.standardised(values)
        x = self._inputs(archs)
        generator = torch.Generator().manual_seed(self.seed)
        with one_thread():
            self._net = Members(self.members, (x.shape[1], *self.hidden, 1), generator)
            trained(
                lambda x: self._net(x)[..., 0],
                list(self._net.parameters()),
                x,
                torch.from_numpy(y).float(),
                loss=self.loss,
                steps=self.steps,
                lr=self.lr,
                weight_decay=self.weight_decay,
                batch=self.batch,
                generator=generator,
            )
        known = self._scores(x)
        self._lines = [(1.0, 0.0) if self.loss is mse else calibration(scores, y) for scores in known]
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and the (N,) standard deviations of the members; ValueError before `fit`."""
        if self._scale is None:
            raise unfitted(self)
        scores = self._scores(self._inputs(archs))
        several = np.stack([slope * one + base for (slope, base), one in zip(self._lines, scores, strict=True)])
        mean = self._scale.mean + self._scale.spread * several.mean(axis=0)
        return mean, self._scale.spread * several.std(axis=0)

    def _inputs(self, archs: Sequence[Architecture]) -> torch.Tensor:
        return torch.from_numpy(onehot(self.space, archs)).float()

    def _scores(self, x: torch.Tensor) -> Floats:
        with one_thread(), torch.no_grad():
            return self._net(x)[..., 0].double().numpy()  # type: ignore[no-any-return]
