# SPDX-License-Identifier: Apache-2.0
"""A surrogate of three small networks: mean with aleatoric, and epistemic uncertainty; with gradients in its input.

Tuli, Dedhia, Tuli and Jha, JAIR 2023, arXiv:2205.11656.

Letters of shapes: B points, F inputs.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from sartor.strategies._small_networks import Floats, Moments, Natural, Perceptron, descend, softplus

_PASSES = 10  # of the teacher, whose spread the student learns


class Heteroscedastic:
    """f, g and h of BOSHNAS, fitted to (B, F) points with (B,) targets in [0, 1].

    f: a natural-parameter network F -> 32 -> 32 -> 1, mean and aleatoric variance, by the Gaussian likelihood.
    g: the teacher F -> 64 -> 32 -> 1 with dropout, by squared error; its spread is epistemic uncertainty.
    h: the student, as g without dropout, which learns that spread: one differentiable pass instead of ten.
    """

    def __init__(self, points: Floats, targets: Floats, *, epochs: int, rate: float, seed: int) -> None:
        """Train f, g and h in this order, each for `epochs` full batches of AdamW."""
        rng = np.random.default_rng(seed)
        count, inputs = points.shape
        self._f = Natural((inputs, 32, 32, 1), rng)
        self._g, self._h = (Perceptron((inputs, 64, 32, 1), rng) for _ in "gh")

        def likelihood() -> Floats:
            """Of the mean of log(v) / 2 + (y - m)^2 / 2v."""
            (mean, variance), back = self._f(points)
            error = mean - targets
            return back((error / variance / count, (1 - error**2 / variance) / variance / (2 * count)))[1]

        def teaching() -> Floats:
            scores, back = self._g(points, rng)
            taught = expit(scores)
            return back(2 / count * (taught - targets) * taught * (1 - taught))[1]

        def studying() -> Floats:
            scores, back = self._h(points)
            return back(2 / count * (softplus(scores) - spread) * expit(scores))[1]

        descend(self._f.parameters, likelihood, epochs, rate)
        descend(self._g.parameters, teaching, epochs, rate)
        spread = np.std([expit(self._g(points, rng)[0]) for _ in range(_PASSES)], axis=0, ddof=1)
        descend(self._h.parameters, studying, epochs, rate)

    def mean(self, points: Floats) -> Moments:
        """Return f: the (B,) means in (0, 1), and the (B,) aleatoric variances."""
        return self._f(points)[0]

    def epistemic(self, points: Floats) -> Floats:
        """Return h: the (B,) standard deviations of the teacher, at least 0."""
        return softplus(self._h(points)[0])

    def bound(self, points: Floats, exploration: float, *, aleatoric: bool = False) -> tuple[Floats, Floats]:
        """Return the (B,) lower bounds, mean - exploration * deviation, and their (B, F) gradients.

        aleatoric: whether the deviation is the sum of both, or the epistemic one alone.
        """
        (mean, variance), back = self._f(points)
        scores, back_h = self._h(points)
        counted = exploration if aleatoric else 0.0
        noise = np.sqrt(variance)
        by_f = back((np.ones_like(mean), -counted / (2 * noise)))[0]
        by_h = back_h(-exploration * expit(scores))[0]
        return mean - exploration * softplus(scores) - counted * noise, by_f + by_h
