# SPDX-License-Identifier: Apache-2.0
"""A table of 6 choices with 5 options each, 15,625 architectures, whose scores have pairwise interactions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

CHOICES, OPTIONS = 6, 5


class Planted:
    """score(a): a normal number for each choice and half as strong ones for neighbours, scaled to deviation 1."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.alone = torch.randn(CHOICES, OPTIONS, generator=rng)
        self.pairs = 0.5 * torch.randn(CHOICES - 1, OPTIONS, OPTIONS, generator=rng)
        every = torch.tensor(list(itertools.product(range(OPTIONS), repeat=CHOICES)))
        raw = self._raw(every)
        self.mean, self.deviation = raw.mean(), raw.std()
        self.all = (raw - self.mean) / self.deviation

    def _raw(self, several: Tensor) -> Tensor:
        found = self.alone[torch.arange(CHOICES), several].sum(1)
        return found + self.pairs[torch.arange(CHOICES - 1), several[:, :-1], several[:, 1:]].sum(1)

    def scores(self, several: Tensor) -> Tensor:
        """(N, 6) positions -> (N,)."""
        return (self._raw(several) - self.mean) / self.deviation

    def rank(self, one: Tensor) -> int:
        """How many architectures are better."""
        return int((self.all > self.scores(one.view(1, -1)) + 1e-5).sum())

    def regret(self, one: Tensor) -> float:
        """How far the best is above."""
        return float(self.all.max() - self.scores(one.view(1, -1)))
