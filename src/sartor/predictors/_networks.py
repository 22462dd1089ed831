# SPDX-License-Identifier: Apache-2.0
"""Ensembles of small multilayer perceptrons, all trained at once as one batched network.

Letters of shapes: M members, N samples, D inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.predictors.losses import Loss


class Model(Protocol):
    """Whatever gives (..., N) scores for inputs with N in front of the features."""

    def __call__(self, x: Tensor) -> Tensor:
        """Score."""
        ...


class Members(nn.Module):
    """M perceptrons side by side, from (N, D) or (M, N, D) to (M, N, outputs); ReLU after all layers but the last."""

    def __init__(self, members: int, sizes: Sequence[int], generator: torch.Generator, *, ends: bool = True) -> None:
        """Draw the weights as `nn.Linear` does; `ends=False` puts a ReLU after the last layer too."""
        super().__init__()
        self.ends = ends
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(_uniform((members, a, b), a, generator) for a, b in pairs)
        self.biases = nn.ParameterList(_uniform((members, 1, b), a, generator) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each member to its own input, or all to one."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(x, weight) + bias
            if layer < last or not self.ends:
                x = torch.relu(x)
        return x


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


def trained(
    model: Model,
    parameters: Sequence[nn.Parameter],
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss,
    steps: int,
    lr: float,
    weight_decay: float,
    batch: int,
    generator: torch.Generator,
) -> None:
    """Descend by AdamW with a cosine to 0; each step sees all samples, or `batch` drawn ones if there are more."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for _ in range(steps):
        rows = slice(None) if len(y) <= batch else torch.randperm(len(y), generator=generator)[:batch]
        optimiser.zero_grad()
        # Members share no weight, so that the gradient of the sum is each one's own.
        loss(model(x[rows]), y[rows]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def calibration(scores: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and intercept that bring (N,) scores closest to values; the slope is at least 0."""
    centred = scores - scores.mean()
    spread = float(centred @ centred)
    slope = max(0.0, float(centred @ values) / spread) if spread > 1e-12 else 0.0
    return slope, float(values.mean() - slope * scores.mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums do not depend on how many there are; the caller's number comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
