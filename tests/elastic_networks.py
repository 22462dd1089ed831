# SPDX-License-Identifier: Apache-2.0
"""Networks with choices: one of bare attributes, and one with a stem, a searched stack and a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.choice import Choice


class Bare(nn.Module):
    """Holds whatever attributes it is given."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Net(nn.Module):
    """Stem, searched stack, head: (N, 2, H, W) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = Choice([2, 4, 6])
        self.stem = elastic.Conv2d(2, self.width, 3, padding=1)
        blocks = [
            elastic.OneOf({"conv": elastic.Conv2d(self.width, self.width, Choice([1, 3]), padding="same"),
                           "none": nn.Identity()})
            for _ in range(3)
        ]  # fmt: skip
        self.stack = elastic.Repeat(*blocks, depth=Choice([1, 2, 3]))
        self.norm = elastic.BatchNorm2d(self.width)
        self.head = elastic.Linear(self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.norm(self.stack(self.stem(x)))).mean((2, 3)))
        return out
