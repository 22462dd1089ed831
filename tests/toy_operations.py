# SPDX-License-Identifier: Apache-2.0
"""A small network of mixed operations, one of which may be there twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from toy_supernet import CLASSES


class Mixed(nn.Module):
    """(N, 1, 8, 8) -> (N, CLASSES): layers of one operation each, norms by the batch alone."""

    def __init__(self, layers: int = 3, width: int = 6, *, twin: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width, track_running_stats=False))
        self.layers = nn.ModuleList(elastic.OneOf(operations(width, twin)) for _ in range(layers))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem(images))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def operations(width: int, twin: bool) -> dict[str, nn.Module]:
    """The candidates; with a twin, "conv3" is a copy of "conv1" that computes the same."""
    made: dict[str, nn.Module] = {"identity": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1), "conv1": conv(width, 1)}
    made["conv3"] = conv(width, 1 if twin else 3)
    if twin:
        made["conv3"].load_state_dict(made["conv1"].state_dict())
    return made


def conv(width: int, kernel: int) -> nn.Module:
    """Convolution, norm, ReLU."""
    layers = nn.Conv2d(width, width, kernel, padding="same"), nn.BatchNorm2d(width, track_running_stats=False)
    return nn.Sequential(*layers, nn.ReLU())
