# SPDX-License-Identifier: Apache-2.0
"""Small networks with equal candidates at each choice, whose sampled paths cost the same whichever they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sartor.costs import CostTable
from sartor.nn import OneOf
from sartor.supernet import search_space
from toy_supernet import CLASSES, toy_batch

WIDTH = 6


class Operation(nn.Sequential):
    """ReLU, convolution, norm."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))


class Candidates(nn.Module):
    """(N, 1, r, r) -> (N, CLASSES) logits, or features without a head: two choices among `count` operations."""

    def __init__(self, count: int = 3, *, seed: int = 0, head: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
            self.first = OneOf({f"op{i}": Operation() for i in range(count)}, name="first")
            self.second = OneOf({f"op{i}": Operation() for i in range(count)}, name="second")
            self.head = nn.Linear(WIDTH, CLASSES) if head else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.second(self.first(self.stem(images))).mean((2, 3)))
        return found


def pair(step: int, size: int = 32) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A training and a validation batch."""
    return toy_batch(step, size), toy_batch(10_000 + step, size)


def table(net: nn.Module, adds: list[float], base: float = 10.0) -> CostTable:
    """A cost of the operations by position, the same for each choice."""
    space = search_space(net)
    return CostTable(space, base, dict.fromkeys(space.choices, tuple(adds)))


def gradients_of_steps(learner: Any) -> list[dict[str, bool]]:
    """A list that grows with each weight step: by parameter, whether it has a gradient."""
    seen: list[dict[str, bool]] = []
    names = {id(p): name for name, p in learner.descent.net.named_parameters()}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        several = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append({names[id(p)]: p.grad is not None for p in several})

    learner.descent.weight_optimizer.register_step_pre_hook(note)
    return seen
