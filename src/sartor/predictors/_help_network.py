# SPDX-License-Identifier: Apache-2.0
"""The networks of HELP, and the line through a device's samples that they start from.

Letters of shapes: T tasks (devices), S samples of a device, Q asked architectures, D options, K columns of a summary,
R directions of the prior, E numbers of an embedding, Z entries of z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from sartor.architecture import Option
from sartor.predictors._graph_network import GraphNetwork
from sartor.predictors._samples import Scale
from sartor.space import SearchSpace

Floats = NDArray[np.float64]
Weights = dict[str, Tensor]

_MANY = 10  # more numeric options than this are one column: ten samples cannot tell them apart
_SHARED, _SOURCE, _OWN = 0.5, 3.0, 0.05  # scales of the prior: the first two suit validation and left-out sources best
_LAYERS = ("third", "fourth", "fifth")  # those that z modulates


def counting(space: SearchSpace) -> Floats:
    """Return (D, K), which makes of one-hot options how often each is held, over the choices that have the same ones.

    Choices of more than ten numbers add up to one column, of their places between the least and the greatest.
    """
    # The types tell (0, 1) from (False, True), which are equal to Python.
    keys = [(options, tuple(map(type, options))) for options in space.choices.values()]
    blocks = {key: _block(key[0]) for key in keys}
    rows = [
        [block if key == one else 0 * block[:1].repeat(len(key[0]), 0) for one, block in blocks.items()] for key in keys
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _block(options: Sequence[Option]) -> Floats:
    if len(options) <= _MANY or not all(isinstance(option, (int, float)) for option in options):
        return np.eye(len(options))
    levels = np.array(options, dtype=np.float64)
    return np.asarray((levels - levels.min()) / np.ptp(levels))[:, None]


def prior(held: Floats, counts: Floats, tables: Floats) -> Floats:
    """Return (D, K + sources): directions in which devices differ in what options cost, in units of a likely step.

    held: (N, D) one-hot options; counts: (D, K), as `counting`; tables: (sources, N) latencies. An option may cost the
    same wherever it stands, or what it costs on a source device, found by ridge regression.
    """
    spread = (held @ counts).std(axis=0)
    shared = counts / np.where(spread > 1e-6, spread, 1.0)
    away = held - held.mean(axis=0)
    scaled = np.stack([Scale.of(table).standardised(table) for table in tables])
    costs = np.linalg.solve(away.T @ away + np.eye(held.shape[1]), away.T @ scaled.T)
    return np.concatenate([_SHARED * shared, _SOURCE / math.sqrt(len(tables)) * costs], axis=1)


class Inputs(NamedTuple):
    """Architectures twice: `x` (..., N, D) or (..., N, V, F) for the network, `f` (..., N, D) for the line."""

    x: Tensor
    f: Tensor


class Line(NamedTuple):
    """A regression of T devices, around `centre` (T, D), on samples `away` (T, S, D) from there.

    weights: (T, D); directions: (T, R), the part of each direction of the prior; inverse: (T, S, S), of the covariance
    of the samples in units of their noise; residual: (T, 1).
    """

    weights: Tensor
    directions: Tensor
    centre: Tensor
    away: Tensor
    inverse: Tensor
    residual: Tensor

    def __call__(self, f: Tensor) -> Tensor:
        """Return (T, N) values for (T, N, D)."""
        return ((f - self.centre[:, None]) @ self.weights[..., None])[..., 0]


class LatencyNetwork(nn.Module):
    """f(x, v): an architecture's (N, D) or (N, V, F) and a device's (E,) to (N,) scores.

    The architecture's branch has two layers, or four of a graph network where `heard` (V, V) is given; the device's
    has two; three more, which z modulates, follow both.
    """

    def __init__(self, features: int, embedding: int, units: int, heard: Tensor | None) -> None:
        """Draw the weights by torch's generator; the last are zeros, so that all starts from the line."""
        super().__init__()
        self.graph = None if heard is None else GraphNetwork(heard, features, units=units, layers=4, dropout=0.0)
        self.plain = None if heard is not None else _two(features, units)
        self.device = _two(embedding, units)
        self.third = nn.Linear(2 * units, units)
        self.fourth = nn.Linear(units, units)
        self.fifth = nn.Linear(units, 1)
        nn.init.zeros_(self.fifth.weight)
        nn.init.zeros_(self.fifth.bias)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        """Score."""
        branch = self.plain if self.graph is None else self.graph
        assert branch is not None
        both = torch.cat([branch(x), self.device(v).expand(len(x), -1)], dim=1)
        hidden = torch.relu(self.fourth(torch.relu(self.third(both))))
        return self.fifth(hidden)[:, 0]  # type: ignore[no-any-return]


def _two(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())


class Meta(nn.Module):
    """All that is learnt over devices: theta, the inner step sizes, the encoder of z and the prior of the line."""

    def __init__(
        self,
        features: int,
        prior: Tensor,
        *,
        references: int,
        line: bool,
        units: int,
        heard: Tensor | None,
        steps: int,
        rate: float,
        modulation: float,
    ) -> None:
        """Take F or D `features` and the (D, R) prior; `references` of 0 makes the line the embedding."""
        super().__init__()
        self.line, self.steps, self.modulation, self.references = line, steps, modulation, references
        embedding = references or prior.shape[1] + 1
        self.theta = LatencyNetwork(features, embedding, units, heard)
        self.rates = nn.ParameterList(nn.Parameter(torch.full_like(p, rate)) for p in self.theta.parameters())
        self.outputs: list[int] = [getattr(self.theta, name).out_features for name in _LAYERS]
        self.encoder = nn.Sequential(nn.Linear(embedding, units), nn.ReLU(), nn.Linear(units, 4 * sum(self.outputs)))
        self.mean = nn.Parameter(torch.zeros(len(prior)))
        self.factor = nn.Parameter(prior.clone())
        self.own = nn.Parameter(torch.tensor(_OWN))

    @property
    def entries(self) -> int:
        """Z."""
        return 2 * sum(self.outputs)

    def regression(self, f: Tensor, y: Tensor) -> Line:
        """Return the line through the samples (T, S, D) and (T, S): Bayesian, with the learnt normal prior.

        A priori the weights are `mean + factor u + own e` with u and e standard normal, and the noise has variance 1.
        """
        centre = f.mean(dim=1)
        away = f - centre[:, None]
        inverse = torch.linalg.inv(self.covariance(away, away) + torch.eye(f.shape[1]))
        pulled = away.mT @ inverse @ (y - away @ self.mean)[..., None]
        directions = (self.factor.T @ pulled)[..., 0]
        weights = self.mean + directions @ self.factor.T + self.own.square() * pulled[..., 0]
        residual = (y - (away @ weights[..., None])[..., 0]).square().mean(dim=1, keepdim=True).sqrt()
        return Line(weights, directions, centre, away, inverse, residual)

    def covariance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the (T, N, M) covariances a priori of what the line says of (T, N, D) and (T, M, D)."""
        return (one @ self.factor) @ (other @ self.factor).mT + self.own.square() * (one @ other.mT)

    def deviation(self, line: Line, f: Tensor) -> Tensor:
        """Return the (T, N) standard deviations of what the line says of (T, N, D), in units of the noise."""
        away = f - line.centre[:, None]
        seen = self.covariance(away, line.away)
        alone = (away @ self.factor).square().sum(dim=-1) + self.own.square() * away.square().sum(dim=-1)
        return (alone - ((seen @ line.inverse) * seen).sum(dim=-1)).clamp(min=0).sqrt()

    def embedding(self, line: Line, y: Tensor) -> Tensor:
        """Return the (T, E) hardware embeddings: of references their latencies, else the line and what it misses."""
        return y if self.references else torch.cat([line.directions, line.residual], dim=1)

    def drawn(self, v: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (T, Z) of embeddings (T, E) and standard normal numbers (T, Z), and the mean KL from N(0, 1)."""
        mu, raw = self.encoder(v).chunk(2, dim=-1)
        sigma = functional.softplus(raw)
        divergence = 0.5 * (mu.square() + sigma.square() - 1) - torch.log(sigma + 1e-8)
        return mu + sigma * normal, divergence.mean()

    def adapted(self, samples: Inputs, y: Tensor, v: Tensor, z: Tensor) -> Weights:
        """Return theta' of every task: weights with T in front.

        samples: x (T, S, ...), and as `f` what the line says of them, (T, S); y: (T, S); v: (T, E); z: (T, Z).
        """
        theta: Weights = dict(self.theta.named_parameters())
        return vmap(self._adapted, in_dims=(None, 0, 0, 0, 0, 0))(theta, samples.x, samples.f, y, v, z)

    def scores(self, weights: Weights, x: Tensor, base: Tensor, v: Tensor) -> Tensor:
        """Return (T, Q) scores of architectures x (Q, ...) that the line puts at `base` (T, Q)."""
        return vmap(self._score, in_dims=(0, None, 0, 0))(weights, x, base, v)

    def _adapted(self, theta: Weights, x: Tensor, base: Tensor, y: Tensor, v: Tensor, z: Tensor) -> Weights:
        weights = self._modulated(theta, z)  # hardware-conditioned initialisation

        def loss(weights: Weights) -> Tensor:
            return (self._score(weights, x, base, v) - y).square().mean()

        for _ in range(self.steps):  # Meta-SGD: theta' = theta - alpha * gradient
            slopes = grad(loss)(weights)
            weights = {
                name: weights[name] - rate * slopes[name] for name, rate in zip(weights, self.rates, strict=True)
            }
        return weights

    def _score(self, weights: Weights, x: Tensor, base: Tensor, v: Tensor) -> Tensor:
        scores: Tensor = functional_call(self.theta, weights, (x, v))
        return scores + base if self.line else scores

    def _modulated(self, theta: Mapping[str, Tensor], z: Tensor) -> Weights:
        """Return w (1 + c z) and b + c z for the last three layers, with a z for each output of each."""
        weights = dict(theta)
        of_weights, of_biases = (torch.split(part, self.outputs) for part in z.chunk(2))
        for name, scale, shift in zip(_LAYERS, of_weights, of_biases, strict=True):
            weights[f"{name}.weight"] = theta[f"{name}.weight"] * (1 + self.modulation * scale[:, None])
            weights[f"{name}.bias"] = theta[f"{name}.bias"] + self.modulation * shift
        return weights
