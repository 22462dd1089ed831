# SPDX-License-Identifier: Apache-2.0
"""Two small networks with their gradients: a natural-parameter network, and a perceptron with dropout.

Wang, Shi and Yeung, "Natural-Parameter Networks", NeurIPS 2016, arXiv:1611.00448.

Gradients are written out, for parameters and inputs: with a hundred points and a few dozen units, automatic
differentiation takes several times as long as the arithmetic.

Letters of shapes: B points, F inputs, P parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Floats = NDArray[np.float64]
Moments = tuple[Floats, Floats]  # mean and variance, or the slopes of something in them
Gradients = tuple[Floats, Floats]  # of the points, (B, F), and of the parameters, (P,)

_DROPOUT = 0.3
_SMALLEST = 1e-4  # variance: the likelihood has no upper bound without one
_MOMENTUM, _CURVATURE, _DECAY, _EPSILON = 0.9, 0.999, 0.01, 1e-8  # of AdamW, as in torch


class Natural:
    """A network whose weights and units are independent Gaussians; ReLU between the layers, a sigmoid at the end."""

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        """Draw the means of the weights; the variances start small."""
        shapes = [shape for i, o in itertools.pairwise(sizes) for shape in ((i, o), (i, o), (o,), (o,))]
        self.parameters, parts = _parameters(shapes)
        self._layers = list(zip(*(iter(parts),) * 4, strict=True))
        for weight, logit, _, bias_logit in self._layers:
            weight[:] = rng.standard_normal(weight.shape) / math.sqrt(len(weight))
            logit[:] = bias_logit[:] = -5.0  # of which the softplus is the variance

    def __call__(self, points: Floats) -> tuple[Moments, Callable[[Moments], Gradients]]:
        """Return the (B,) moments, and a function from slopes in them to gradients."""
        mean, variance = points, np.zeros_like(points)
        tape = []
        for place, (weight, logit, bias, bias_logit) in enumerate(self._layers):
            slopes = None
            if place:
                (mean, variance), slopes = rectified(mean, variance)
            spread = softplus(logit)
            tape.append((mean, variance, spread, slopes))
            # Mean and variance of a sum of products of independent Gaussians.
            variance = variance @ (spread + weight**2) + mean**2 @ spread + softplus(bias_logit)
            mean = mean @ weight + bias
        (mean, variance), end = squashed(mean[:, 0], variance[:, 0])

        def back(slopes: Moments) -> Gradients:
            by_mean, by_variance = (one[:, None] for one in end.back(slopes))
            found: list[Floats] = []
            for (weight, logit, _, bias_logit), (mean, variance, spread, activation) in zip(
                reversed(self._layers), reversed(tape), strict=True
            ):
                by_weight = mean.T @ by_mean + 2 * weight * (variance.T @ by_variance)
                by_logit = (variance + mean**2).T @ by_variance * expit(logit)
                found[:0] = [by_weight, by_logit, by_mean.sum(axis=0), by_variance.sum(axis=0) * expit(bias_logit)]
                by_mean = by_mean @ weight.T + 2 * mean * (by_variance @ spread.T)
                by_variance = by_variance @ (spread + weight**2).T
                if activation is not None:
                    by_mean, by_variance = activation.back((by_mean, by_variance))
            return by_mean, np.concatenate([one.ravel() for one in found])

        return (mean, variance + _SMALLEST), back


class Perceptron:
    """A network with softplus between the layers and, where a generator is given, dropout behind them."""

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        """Draw the weights; the biases are 0."""
        self.parameters, parts = _parameters([shape for i, o in itertools.pairwise(sizes) for shape in ((i, o), (o,))])
        self._layers = list(zip(*(iter(parts),) * 2, strict=True))
        for weight, _ in self._layers:
            weight[:] = rng.standard_normal(weight.shape) / math.sqrt(len(weight))

    def __call__(
        self, points: Floats, dropout: np.random.Generator | None = None
    ) -> tuple[Floats, Callable[[Floats], Gradients]]:
        """Return the (B,) scores, and a function from slopes in them to gradients."""
        hidden = points
        tape: list[tuple[Floats, Floats | None]] = []
        activation: Floats | None = None
        for place, (weight, bias) in enumerate(self._layers):
            if place:
                hidden, activation = softplus(hidden), expit(hidden)
                if dropout is not None:
                    kept = (dropout.random(hidden.shape) >= _DROPOUT) / (1 - _DROPOUT)
                    hidden, activation = hidden * kept, activation * kept
            tape.append((hidden, activation))
            hidden = hidden @ weight + bias

        def back(slopes: Floats) -> Gradients:
            by_output = slopes[:, None]
            found: list[Floats] = []
            for (weight, _), (hidden, activation) in zip(reversed(self._layers), reversed(tape), strict=True):
                found[:0] = [hidden.T @ by_output, by_output.sum(axis=0)]
                by_output = by_output @ weight.T
                if activation is not None:
                    by_output = by_output * activation
            return by_output, np.concatenate([one.ravel() for one in found])

        return hidden[:, 0], back


class Derivatives(NamedTuple):
    """Of the moments behind an activation in those before it, elementwise."""

    mean_in_mean: Floats
    mean_in_variance: Floats
    variance_in_mean: Floats
    variance_in_variance: Floats

    def back(self, slopes: Moments) -> Moments:
        """Return slopes in the moments before from those behind (the chain rule)."""
        by_mean, by_variance = slopes
        return (
            by_mean * self.mean_in_mean + by_variance * self.variance_in_mean,
            by_mean * self.mean_in_variance + by_variance * self.variance_in_variance,
        )


def rectified(mean: Floats, variance: Floats) -> tuple[Moments, Derivatives]:
    """Return the moments of max(0, v) for Gaussian v."""
    variance = variance + _SMALLEST
    deviation = np.sqrt(variance)
    ratio = mean / deviation
    density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    below = ndtr(ratio)
    first = below * mean + deviation * density
    second = below * (mean**2 + variance) + mean * deviation * density
    # A derivative in the variance is half the expected second derivative in the mean.
    slopes = Derivatives(below, density / (2 * deviation), 2 * first * (1 - below), below - first * density / deviation)
    return (first, np.maximum(second - first**2, 0.0)), slopes


def squashed(mean: Floats, variance: Floats) -> tuple[Moments, Derivatives]:
    """Return the moments of sigmoid(v) for Gaussian v, a sigmoid and its square taken as probits."""
    first, first_in_mean, first_in_variance = _probit(mean, variance, 1.0)
    steep, shift = 4 - 2 * math.sqrt(2), -math.log(math.sqrt(2) + 1)
    second, second_in_mean, second_in_variance = _probit(mean + shift, variance, steep)
    slopes = Derivatives(
        first_in_mean,
        first_in_variance,
        second_in_mean - 2 * first * first_in_mean,
        second_in_variance - 2 * first * first_in_variance,
    )
    return (first, np.maximum(second - first**2, 0.0)), slopes


def _probit(mean: Floats, variance: Floats, steep: float) -> tuple[Floats, Floats, Floats]:
    """Return about E[sigmoid(steep v)] for Gaussian v, and its derivatives in mean and variance."""
    width = math.pi / 8 * steep**2
    scale = steep / np.sqrt(1 + width * variance)
    value = expit(mean * scale)
    slope = value * (1 - value) * scale
    return value, slope, -0.5 * slope * mean * width / (1 + width * variance)


def softplus(x: Floats) -> Floats:
    """Return log(1 + e^x)."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def descend(parameters: Floats, gradient: Callable[[], Floats], steps: int, rate: float) -> None:
    """Change (P,) parameters in place by AdamW."""
    momentum, curvature = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(1, steps + 1):
        slopes = gradient()
        momentum += (1 - _MOMENTUM) * (slopes - momentum)
        curvature += (1 - _CURVATURE) * (slopes**2 - curvature)
        parameters *= 1 - rate * _DECAY
        deviation = np.sqrt(curvature / (1 - _CURVATURE**step)) + _EPSILON
        parameters -= rate / (1 - _MOMENTUM**step) * momentum / deviation


def _parameters(shapes: Sequence[tuple[int, ...]]) -> tuple[Floats, list[Floats]]:
    """Return zeros as one (P,) array, and views of its parts with these shapes."""
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    whole = np.zeros(ends[-1])
    return whole, [part.reshape(shape) for part, shape in zip(np.split(whole, ends[:-1]), shapes, strict=True)]
