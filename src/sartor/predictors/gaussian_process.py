# SPDX-License-Identifier: Apache-2.0
"""A Gaussian process over options.

Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, Algorithm 2.1 and section 5.4.1.

Architectures are alike if they hold the same options, or close ones where options are numbers: the kernel is
exp(-sum over choices of w d), where d is 1 for two different options, the distance from 0 to 1 for two numbers, and
counts a choice that is active in one of the two only. All of these are distances in L1, so that the kernel is
positive definite. The weights w and the noise are those of the greatest marginal likelihood, under a weak prior that
settles what few samples cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from sartor.architecture import Architecture, Option
from sartor.encodings import active, indices, onehot, ordinal
from sartor.predictors._samples import Floats, Scale, checked, unfitted
from sartor.space import SearchSpace

__all__ = ["GaussianProcess"]

_BOUNDS = (np.log(1e-3), np.log(1e2))
_NOISE_BOUNDS = (np.log(1e-6), np.log(1e1))
_PRIOR_SPREAD = 1.5  # of the logarithms


class GaussianProcess:
    """A `Predictor` of a smooth function with its uncertainty; O(N^3) time and O(N^2) memory for N samples.

    lengths: up to so many choices each have a weight of their own; above, all share one.
    noise: the prior's centre for the noise variance, relative to the variance of the values.
    seed: not used, as nothing is drawn; all predictors take one.
    """

    def __init__(self, space: SearchSpace, *, lengths: int = 32, noise: float = 0.05, seed: int = 0) -> None:
        """Take the space; ValueError for a noise that is not above 0."""
        if not noise > 0:
            raise ValueError(f"noise is {noise}: the variance must be above 0")
        self.space = space
        self.noise = noise
        self._shared = len(space.choices) > lengths
        self._scale: Scale | None = None

    def fit(self, archs: Sequence[Architecture], values: Floats) -> Self:
        """Maximise the posterior of weights and noise; ValueError for fewer than 2 samples, NaN or infinity."""
        from scipy.linalg import cho_factor, cho_solve
        from scipy.optimize import minimize

        values = checked(archs, values)
        self._scale = Scale.of(values)
        self._known = self._features(archs)
        y = self._scale.standardised(values)
        distances = self._distances(self._known)
        centre = np.append(np.full(len(distances), -np.log(np.mean(distances.sum(axis=0)) + 1e-9)), np.log(self.noise))
        limits = [_BOUNDS] * len(distances) + [_NOISE_BOUNDS]
        start = np.clip(centre, *np.transpose(limits))
        best = minimize(_loss, start, args=(distances, y, start), jac=True, bounds=limits, method="L-BFGS-B")
        self._weights, noise = np.exp(best.x[:-1]), float(np.exp(best.x[-1]))
        kernel = _kernel(self._weights, distances)
        self._factor = cho_factor(kernel + noise * np.eye(len(y)), lower=True)
        self._dual: Floats = cho_solve(self._factor, y)
        return self

    def predict(self, archs: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the (N,) means and the (N,) standard deviations without the noise; ValueError before `fit`."""
        from scipy.linalg import solve_triangular

        if self._scale is None:
            raise unfitted(self)
        means, variances = [np.empty(0)], [np.empty(0)]
        for start in range(0, len(archs), 1024):
            distances = self._distances(self._features(archs[start : start + 1024]), self._known)
            kernel = _kernel(self._weights, distances)
            means.append(kernel @ self._dual)
            root = solve_triangular(self._factor[0], kernel.T, lower=True)
            variances.append(1.0 - np.square(root).sum(axis=0))
        deviation = np.sqrt(np.maximum(np.concatenate(variances), 0.0))
        return self._scale.mean + self._scale.spread * np.concatenate(means), self._scale.spread * deviation

    def _features(self, archs: Sequence[Architecture]) -> list[Floats]:
        """Return for each weight the columns between which L1 distances are taken."""
        alive = active(self.space, indices(self.space, archs)).astype(np.float64)
        options, numbers = onehot(self.space, archs) / 2, ordinal(self.space, archs)
        groups, start = [], 0
        for column, choices in enumerate(self.space.choices.values()):
            stop = start + len(choices)
            told = numbers[:, column : column + 1] if _are_numbers(choices) else options[:, start:stop]
            groups.append(np.concatenate([told, alive[:, column : column + 1] / 2], axis=1))
            start = stop
        return [np.concatenate(groups, axis=1)] if self._shared else groups

    def _distances(self, first: list[Floats], second: list[Floats] | None = None) -> Floats:
        """Return the L1 distances between all pairs, as (weights, N, M)."""
        from scipy.spatial.distance import cdist

        pairs = zip(first, first if second is None else second, strict=True)
        return np.stack([cdist(one, other, "cityblock") for one, other in pairs])


def _are_numbers(options: Sequence[Option]) -> bool:
    return all(type(option) in (int, float) for option in options)


def _kernel(weights: Floats, distances: Floats) -> Floats:
    return np.asarray(np.exp(-np.tensordot(weights, distances, axes=1)))


def _loss(logs: Floats, distances: Floats, y: Floats, centre: Floats) -> tuple[float, Floats]:
    """Return the negative log posterior of log weights and log noise, and its gradient (eqs. 5.8 and 5.9)."""
    from scipy.linalg import cho_factor, cho_solve

    weights, noise = np.exp(logs[:-1]), float(np.exp(logs[-1]))
    kernel = _kernel(weights, distances)
    factor = cho_factor(kernel + (noise + 1e-9) * np.eye(len(y)), lower=True)
    dual = cho_solve(factor, y)
    outer = cho_solve(factor, np.eye(len(y))) - np.outer(dual, dual)
    slopes = np.append(-weights * np.einsum("cnm,nm->c", distances, outer * kernel), noise * np.trace(outer)) / 2
    value = y @ dual / 2 + np.log(np.diag(factor[0])).sum()
    away = (logs - centre) / _PRIOR_SPREAD
    return float(value + away @ away / 2), slopes + away / _PRIOR_SPREAD
