# SPDX-License-Identifier: Apache-2.0
"""A small elastic residual network with every kind of choice that a learner meets, and separable data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.choice import Choice, Size

CLASSES = 4


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), the last norm starting at zero."""

    def __init__(self, width: int | Size) -> None:
        super().__init__()
        self.hidden = Choice([4, 8, 12])
        self.kernel = Choice([1, 3])
        self.conv1 = elastic.Conv2d(width, self.hidden, self.kernel, padding="same", bias=False)
        self.norm1 = elastic.BatchNorm2d(self.hidden)
        self.conv2 = elastic.Conv2d(self.hidden, width, 1, bias=False)
        self.norm2 = elastic.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        result: Tensor = x + self.norm2(self.conv2(hidden))
        return result


class ToyNet(nn.Module):
    """(N, 1, r, r) -> (N, CLASSES) logits."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.resolution = Choice([6, 8])
        self.width = Choice([4, 6, 8])
        self.stem = elastic.Conv2d(1, self.width, 3, padding=1, bias=False)
        self.norm = elastic.BatchNorm2d(self.width)
        self.blocks = elastic.Repeat(*[Block(self.width) for _ in range(3)], depth=Choice([1, 2, 3]))
        self.mix = elastic.OneOf({"conv": elastic.Conv2d(self.width, self.width, 1), "none": nn.Identity()})
        self.dropout = nn.Dropout(dropout)
        self.head = elastic.Linear(self.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(torch.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(self.dropout(self.mix(features).mean((2, 3))))
        return logits


def toy_batch(seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise around a brightness that tells the label."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=rng)
    images = torch.randn(size, 1, 8, 8, generator=rng) * 0.3
    ramp = torch.linspace(0.5, 2.0, CLASSES)[labels]
    return images + ramp[:, None, None, None], labels


class ToySplit:
    """Batches by step; augmentation draws from torch's generator."""

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        images, labels = toy_batch(step, size)
        return (images + 0.1 * torch.rand(()) if augment else images), labels
