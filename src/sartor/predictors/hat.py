# SPDX-License-Identifier: Apache-2.0
"""HAT's latency predictor: a perceptron on ten numbers of an encoder-decoder transformer.

Wang, Wu, Liu, Cai, Zhu, Gan and Han, "HAT: Hardware-Aware Transformers for Efficient Natural Language Processing", ACL
2020, arXiv:2005.14187.

Networks are described by widths, depths and means over their layers, each divided by a fixed number, and so is the
latency. A perceptron of three hidden layers learns one from the other. It sees what counts multiplications alone cannot
tell: that a layer more costs a GPU more than wider ones.

Differs from the paper: features and latencies are divided by the largest of the samples, not by numbers of one task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch

from sartor.architecture import Architecture
from sartor.predictors._networks import Members, one_thread
from sartor.predictors._samples import Floats, checked, unfitted

__all__ = ["HAT"]

HIDDEN = (400, 400, 400)


class HAT:
    """A `Predictor` of latencies; its second answer, a deviation, is zero.

    features: of an architecture, such as `sartor.spaces.hat.features`.
    steps, lr, batch: of Adam on the squared error, 5,000, 1e-5 and 128 in the paper.
    """

    def __init__(
        self,
        features: Callable[[Architecture], Sequence[float]],
        *,
        steps: int = 5000,
        lr: float = 1e-5,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        """Take what describes an architecture; ValueError for no step, or an empty batch."""
        if steps < 1 or batch < 1:
            raise ValueError(f"steps {steps}, batch {batch}: give 1 or more")
        self.features, self.steps, self.lr, self.batch, self.seed = features, steps, lr, batch, seed
        self._largest: tuple[torch.Tensor, float] | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Learn the (N,) latencies of N architectures; ValueError for fewer than 2, for NaN or infinity."""
        return self.fit_features(self._described(archs), checked(archs, values))

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and (N,) zeros; ValueError before `fit`."""
        found = self.predict_features(self._described(archs))
        return found, np.zeros_like(found)

    def fit_features(self, features: Floats, values: Floats) -> Self:
        """Learn from features (N, F) themselves, as tables of measurements hold them."""
        x, y = torch.from_numpy(np.asarray(features)).float(), torch.from_numpy(np.asarray(values)).float()
        self._largest = x.abs().amax(0).clamp_min(1e-9), max(float(y.abs().max()), 1e-9)
        x, y = x / self._largest[0], y / self._largest[1]
        generator = torch.Generator().manual_seed(self.seed)
        with one_thread():
            self._net = Members(1, (x.shape[1], *HIDDEN, 1), generator)
            optimizer = torch.optim.Adam(self._net.parameters(), lr=self.lr, fused=True)
            for _ in range(self.steps):
                rows = torch.randint(len(y), (min(self.batch, len(y)),), generator=generator)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(self._net(x[rows])[0, :, 0], y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self

    def predict_features(self, features: Floats) -> Floats:
        """Return (N,) latencies of features (N, F); ValueError before `fit`."""
        if self._largest is None:
            raise unfitted(self)
        largest, latency = self._largest
        with one_thread(), torch.no_grad():
            scores = self._net(torch.from_numpy(np.asarray(features)).float() / largest)[0, :, 0]
        found: Floats = latency * scores.double().numpy()
        return found

    def _described(self, archs: Sequence[Architecture]) -> Floats:
        return np.array([self.features(arch) for arch in archs], dtype=np.float64)
