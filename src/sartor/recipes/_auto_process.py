# SPDX-License-Identifier: Apache-2.0
"""The surrogate of `auto`: a Gaussian process that answers for a whole pool of candidates in milliseconds.

Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006: Algorithm 2.1 (posterior) and section
5.4.1 (marginal likelihood and its gradient).

The kernel is a sum of two. One compares architectures choice by choice, a exp(-sum of w d), with d the distance of two
options: 0 or 1, and for numbers what lies between them. The other compares how often they hold each option, wherever,
b exp(-v |difference of counts|^2): where choices share their options, three convolutions are three convolutions, and a
few dozen samples tell more of that than of places. Both are exponentials of squared distances between features, so
that a pool costs matrix products in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Option
from sartor.encodings import Floats, Indices, active
from sartor.gates import key
from sartor.space import SearchSpace

__all__ = ["Encoded", "Features", "Process", "Singles"]

Singles = NDArray[np.float32]

_LENGTHS = 32  # up to so many choices have a weight of their own; above, all share one
_DISTANCE = 3.0  # the prior's sum of w over all choices: architectures that share nothing are all but independent
_PRIOR = (1.0, 0.5, 0.25, 0.05)  # medians of a, b, v and the noise, for values of mean 0 and spread 1
_WIDTH = 4.0  # no parameter's logarithm is farther from the prior's median, whose standard deviation is 1
_STEPS = 30
_JITTER = 1e-6


class Encoded(NamedTuple):
    """N architectures: (N, F) places and (N, K) counts, between which squared distances are taken."""

    places: Singles
    counts: Singles

    def rows(self, chosen: NDArray[np.intp] | slice) -> Encoded:
        """Return some of the architectures."""
        return Encoded(self.places[chosen], self.counts[chosen])


class Features:
    """Encodes (N, C) positions, as `sartor.encodings.indices` gives them.

    owners: (F,) which weight each column of the places has. Choices that their gate switches off have zeros, and
        differ from active ones; choices of one option have no columns.
    options: K of the counts; 0 where no two choices share their options, as counts would say the same as places.
    """

    def __init__(self, space: SearchSpace) -> None:
        """Take the space."""
        self.space = space
        kinds: dict[object, int] = {}
        self._columns: list[tuple[int, Floats, int]] = []  # place of the choice, its options' columns, where it counts
        width = 0
        for place, options in enumerate(space.choices.values()):
            if len(options) > 1:
                if (kind := key(options)) not in kinds:
                    kinds[kind] = width
                    width += len(options)
                self._columns.append((place, _features(options), kinds[kind]))
        count = len(self._columns)
        self.options = width if len(kinds) < count else 0
        self.weights = count if count <= _LENGTHS else 1
        widths = [columns.shape[1] + 1 for _, columns, _ in self._columns]
        self.owners = np.repeat(np.arange(count) % max(1, self.weights), widths)

    def __call__(self, table: Indices) -> Encoded:
        """Return the features of N architectures."""
        alive = active(self.space, table)
        row = np.arange(len(table))
        counts = np.zeros((len(table), self.options))
        blocks = [np.zeros((len(table), 0))]
        for place, columns, start in self._columns:
            on = alive[:, place, None]
            blocks += [np.where(on, columns[table[:, place]], 0.0), on / np.sqrt(2.0)]
            if self.options:
                counts[row, start + table[:, place]] += alive[:, place]
        return Encoded(np.concatenate(blocks, axis=1).astype(np.float32), counts.astype(np.float32))


def _features(options: Sequence[Option]) -> Floats:
    """Return columns for each option: 1 between any two, or for numbers how far they lie apart, from 0 to 1."""
    if not all(type(option) in (int, float) for option in options):
        return np.asarray(np.eye(len(options)) / np.sqrt(2.0))
    values = np.array(options, dtype=np.float64)
    steps = np.unique(values)
    lengths = np.sqrt(np.diff(steps) / (steps[-1] - steps[0]))
    return np.asarray((values[:, None] > steps[:-1]) * lengths)


class Process:
    """A Gaussian process of values with mean 0 and spread 1: O(N^3) time and O(N^2) memory for N samples."""

    def __init__(self, features: Features) -> None:
        """Start with the medians of the prior as parameters."""
        self._owners = features.owners
        self._weights = features.weights
        self._counted = features.options > 0
        weights = [_DISTANCE / max(1, features.weights)] * features.weights
        if len(features.owners) and features.weights == 1:
            weights = [_DISTANCE / len(features._columns)]
        self._centre = np.log(np.array([*weights, *_PRIOR]))
        self._logs = self._centre.copy()
        self._root = np.zeros((0, 0))
        self._dual = np.zeros(0)

    def tune(self, samples: Encoded, values: Floats) -> None:
        """Move the parameters, from where they are, to the greatest posterior for N samples and their (N,) values."""
        from scipy.optimize import minimize

        places = samples.places
        parts = [
            _squared(places[:, self._owners == one], places[:, self._owners == one]) for one in range(self._weights)
        ]
        between = np.stack(parts).astype(float) if parts else np.zeros((0, len(values), len(values)))
        apart = _squared(samples.counts, samples.counts).astype(float)
        self._logs = minimize(
            self._loss,
            self._logs,
            args=(between, apart, values),
            jac=True,
            bounds=[(centre - _WIDTH, centre + _WIDTH) for centre in self._centre],
            method="L-BFGS-B",
            options={"maxiter": _STEPS},
        ).x

    def condition(self, samples: Encoded, values: Floats) -> None:
        """Take in N samples and their (N,) values."""
        from scipy.linalg import cholesky, solve_triangular

        kernel = self.kernel(samples, samples).astype(float)
        kernel[np.diag_indices_from(kernel)] += np.exp(self._logs[-1]) + _JITTER
        self._root = solve_triangular(cholesky(kernel, lower=True), np.eye(len(values)), lower=True)
        self._dual = self._root.T @ (self._root @ values)

    def kernel(self, one: Encoded, other: Encoded) -> Singles:
        """Return the (N, M) covariances between two sets of architectures."""
        a, b, v, _ = np.exp(self._logs[-4:]).astype(np.float32)
        scale = np.sqrt(np.exp(self._logs[:-4])[self._owners]).astype(np.float32)
        covariance = _exponential(_squared(one.places * scale, other.places * scale), -1.0, a)
        if self._counted:
            covariance += _exponential(_squared(one.counts, other.counts), -v, b)
        return covariance

    def means(self, cross: Singles) -> Floats:
        """Return the (M,) means where `cross` (M, N) are the covariances with the N samples."""
        return (cross @ self._dual.astype(np.float32)).astype(float)

    def deviations(self, cross: Singles) -> Floats:
        """Return the (M,) standard deviations, without the noise, where `cross` is as in `means`."""
        a, b = np.exp(self._logs[-4:-2])
        explained = np.square(cross @ self._root.T.astype(np.float32)).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(a + b * self._counted - explained, 1e-6)))

    def _loss(self, logs: Floats, between: Floats, apart: Floats, y: Floats) -> tuple[float, Floats]:
        """Return the negative log posterior of the log parameters, and its gradient (eqs. 5.8 and 5.9)."""
        from scipy.linalg.lapack import dpotrf, dpotri

        weights = np.exp(logs[:-4])
        a, b, v, noise = np.exp(logs[-4:])
        first = a * np.exp(-np.tensordot(weights, between, axes=1))
        second = b * np.exp(-v * apart) if self._counted else np.zeros_like(apart)
        kernel = first + second
        kernel[np.diag_indices_from(kernel)] += noise + _JITTER
        factor, failed = dpotrf(kernel, lower=1)
        if failed:
            return 1e10, np.zeros_like(logs)
        inverse = np.tril(dpotri(factor, lower=1)[0])
        inverse += np.tril(inverse, -1).T
        dual = inverse @ y
        outer = inverse - np.outer(dual, dual)
        first *= outer
        second *= outer
        slopes = [first.sum(), second.sum(), -v * (second * apart).sum(), noise * np.trace(outer)]
        away = logs - self._centre
        value = y @ dual / 2 + np.log(np.diag(factor)).sum() + away @ away / 2
        return float(value), np.append(-weights * np.tensordot(between, first, axes=2), slopes) / 2 + away


def _squared(one: Singles, other: Singles) -> Singles:
    """Return the (N, M) squared distances between the rows."""
    distances = one @ other.T
    distances *= -2
    distances += np.square(one).sum(axis=1)[:, None]
    distances += np.square(other).sum(axis=1)
    np.maximum(distances, 0, out=distances)
    return distances


def _exponential(distances: Singles, factor: float, scale: float) -> Singles:
    """Return scale times exp(factor times the distances), in their place."""
    distances *= np.float32(factor)
    np.exp(distances, out=distances)
    distances *= np.float32(scale)
    return distances
