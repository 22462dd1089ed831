# SPDX-License-Identifier: Apache-2.0
"""A chain of blocks of searched layers, four operations each, as block-wise methods divide it."""

from __future__ import annotations

from torch import Tensor, nn

from sartor.nn import OneOf

OPERATIONS = ("identity", "conv1", "conv3", "pool")


class ToyBlocks(nn.Module):
    """(N, 1, H, W) -> (N, classes) logits, through blocks of layers; every block but the first halves the map."""

    def __init__(self, classes: int = 10, width: int = 12, blocks: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential()
        for block in range(blocks):
            chain: list[nn.Module] = [OneOf(_operations(width)) for _ in range(layers)]
            self.blocks.append(nn.Sequential(*([nn.AvgPool2d(2)] if block else []), *chain))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, by torch's defaults."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


def _operations(width: int) -> dict[str, nn.Module]:
    return {
        "identity": nn.Identity(),
        "conv1": _convolution(width, 1),
        "conv3": _convolution(width, 3),
        "pool": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    }


def _convolution(width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
