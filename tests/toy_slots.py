# SPDX-License-Identifier: Apache-2.0
"""A small network of three mixed operations, and pairs of batches, for methods of differentiable search."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sartor.nn import OneOf
from toy_supernet import CLASSES, toy_batch

OPTIONS = ("skip", "pool", "conv_1x1", "conv_3x3")
Pair = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Slots(nn.Module):
    """(N, 1, r, r) -> (N, CLASSES) logits; the choices are slot_0 to slot_2."""

    def __init__(self, width: int = 4, slots: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            self.slots = nn.Sequential(*(OneOf(operations(width), name=f"slot_{i}") for i in range(slots)))
            self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.slots(self.stem(images)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def operations(width: int) -> dict[str, nn.Module]:
    """Return the operations of a slot by name."""
    return {
        "skip": nn.Identity(),
        "pool": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        "conv_1x1": convolution(width, 1),
        "conv_3x3": convolution(width, 3),
    }


def convolution(width: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width, affine=False),
    )


def toy_pair(step: int, size: int = 32) -> Pair:
    """A training batch and a validation batch of other images."""
    return toy_batch(2 * step, size), toy_batch(2 * step + 1, size)
