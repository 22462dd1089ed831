# SPDX-License-Identifier: Apache-2.0
"""A surrogate of three small networks: mean with aleatoric, and epistemic uncertainty; differentiable in its input.

Tuli, Dedhia, Tuli and Jha, JAIR 2023, arXiv:2205.11656. Layers that pass on means and variances: Wang, Shi and
Yeung, "Natural-Parameter Networks", NeurIPS 2016, arXiv:1611.00448.

Letters of shapes: B points, F inputs. All draws come from one generator; torch's own stays untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

_DROPOUT = 0.3
_PASSES = 10  # of the teacher, whose spread the student learns
_SMALLEST = 1e-4  # variance: the likelihood has no upper bound without one

Parameters = list[tuple[Tensor, ...]]


class Heteroscedastic:
    """f, g and h of BOSHNAS, fitted to (B, F) points with (B,) targets in [0, 1]; frozen afterwards.

    f: a natural-parameter network F -> 32 -> 32 -> 1, mean and aleatoric variance, by the Gaussian likelihood.
    g: the teacher F -> 64 -> 32 -> 1 with dropout, by squared error; its spread is epistemic uncertainty.
    h: the student, as g without dropout, which learns that spread: one differentiable pass instead of ten.
    """

    def __init__(self, points: Tensor, targets: Tensor, *, epochs: int, rate: float, seed: int) -> None:
        """Train f, g and h in this order, each for `epochs` full batches."""
        self._generator = torch.Generator().manual_seed(seed)
        inputs = points.shape[1]
        self._f = [self._layer(*sizes, natural=True) for sizes in ((inputs, 32), (32, 32), (32, 1))]
        self._g = [self._layer(*sizes) for sizes in ((inputs, 64), (64, 32), (32, 1))]
        self._h = [self._layer(*sizes) for sizes in ((inputs, 64), (64, 32), (32, 1))]
        _descend(self._f, lambda: _likelihood(*self.mean(points), targets), epochs, rate)
        _descend(self._g, lambda: (self._taught(points) - targets).square().mean(), epochs, rate)
        with torch.no_grad():
            spread = torch.stack([self._taught(points) for _ in range(_PASSES)]).std(dim=0)
        _descend(self._h, lambda: (self.epistemic(points) - spread).square().mean(), epochs, rate)

    def mean(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return f: the (B,) means in (0, 1), and the (B,) aleatoric variances."""
        mean, variance = points, torch.zeros_like(points)
        for place, (weight, spread, bias, bias_spread) in enumerate(self._f):
            if place:
                mean, variance = _rectified(mean, variance)
            spread = softplus(spread)
            # Mean and variance of a sum of products of independent Gaussians.
            variance = (
                linear(variance, spread + weight.square()) + linear(mean.square(), spread) + softplus(bias_spread)
            )
            mean = linear(mean, weight, bias)
        mean, variance = _squashed(mean[:, 0], variance[:, 0])
        return mean, variance + _SMALLEST

    def epistemic(self, points: Tensor) -> Tensor:
        """Return h: the (B,) standard deviations of the teacher, at least 0."""
        return softplus(_through(self._h, points))

    def _taught(self, points: Tensor) -> Tensor:
        """Return one pass of g, with dropout."""
        return torch.sigmoid(_through(self._g, points, self._dropped))

    def _dropped(self, hidden: Tensor) -> Tensor:
        kept = torch.rand(hidden.shape, generator=self._generator) >= _DROPOUT
        return hidden * kept / (1 - _DROPOUT)

    def _layer(self, inputs: int, outputs: int, natural: bool = False) -> tuple[Tensor, ...]:
        """Draw weights (outputs, inputs) and biases; a natural layer has the logits of their variances as well."""
        weight = torch.randn(outputs, inputs, generator=self._generator) / math.sqrt(inputs)
        layer = [weight, torch.zeros(outputs)]
        if natural:
            layer = [weight, torch.full_like(weight, -5.0), layer[1], torch.full((outputs,), -5.0)]
        return tuple(parameter.requires_grad_() for parameter in layer)


def _through(layers: Parameters, points: Tensor, dropped: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    hidden = points
    for weight, bias in layers[:-1]:
        hidden = softplus(linear(hidden, weight, bias))
        if dropped is not None:
            hidden = dropped(hidden)
    weight, bias = layers[-1]
    return linear(hidden, weight, bias)[:, 0]


def _rectified(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of max(0, v) for Gaussian v."""
    deviation = (variance + _SMALLEST).sqrt()
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    first = below * mean + deviation * density
    second = below * (mean.square() + variance + _SMALLEST) + mean * deviation * density
    return first, (second - first.square()).clamp_min(0.0)


def _squashed(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the moments of sigmoid(v) for Gaussian v, a sigmoid and its square taken as probits."""
    first = torch.sigmoid(mean / (1 + math.pi / 8 * variance).sqrt())
    steep, shift = 4 - 2 * math.sqrt(2), -math.log(math.sqrt(2) + 1)
    second = torch.sigmoid(steep * (mean + shift) / (1 + math.pi / 8 * steep**2 * variance).sqrt())
    return first, (second - first.square()).clamp_min(0.0)


def _likelihood(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Return the negative Gaussian log-likelihood, up to a constant."""
    return 0.5 * (variance.log() + (targets - mean).square() / variance).mean()


def _descend(layers: Parameters, loss: Callable[[], Tensor], epochs: int, rate: float) -> None:
    """Train with AdamW, then freeze."""
    parameters: Sequence[Tensor] = [parameter for layer in layers for parameter in layer]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(epochs):
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
