# SPDX-License-Identifier: Apache-2.0
"""A small network of two superkernels: one that can be left out, and one with a stride."""

from __future__ import annotations

from torch import Tensor, nn

from sartor.spaces.single_path import Skippable, SuperMBConv


class Superkernels(nn.Module):
    """(N, 1, 8, 8) -> (N, classes)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.first = Skippable(SuperMBConv(8, 8, 1, "first"), name="first.skip")
        self.second = SuperMBConv(8, 8, 2, "second")
        self.classifier = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.second(self.first(self.stem(x))).mean((2, 3)))
        return logits
