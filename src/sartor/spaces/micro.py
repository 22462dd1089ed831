# SPDX-License-Identifier: Apache-2.0
"""The micro space: three slots of four operations, small enough to train all 64 networks.

It is the ground truth of differentiable search: `sartor.tables.load("micro")` holds what each of the networks
reaches on the digits by itself, so that what a method reads out has a rank and a regret.

    stem (3x3 convolution, batch norm) - slot_0 - slot_1 - slot_2 - mean over the map - linear

An operation keeps the shape: nothing, the mean of 3x3, or ReLU, convolution of 1x1 or 3x3, batch norm, as in DARTS
(Liu, Simonyan and Yang, ICLR 2019, arXiv:1806.09055) and NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326).

Batch norm in the search. The norms track running statistics, as the networks of the table do, but those of a supernet
are statistics of the mixture, or of all the paths, that trained: they belong to no sub-network. So compare
architectures in training mode, where a norm uses its batch's own statistics, or extract and re-calibrate
(`evaluation.specialised`). `affine=False` leaves the scales out of the search form, as DARTS does: otherwise a scale
can undo an operation's weight. `mixed` makes a slot another way, as PC-DARTS's partial channels do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Choice
from sartor.nn import OneOf
from sartor.spaces.micro_slots import NAMES, OPERATIONS

__all__ = ["Micro"]


class Micro(nn.Module):
    """A classifier of three searched slots: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images; the table's are 8x8.
        width: channels of the stem and of every slot; the table's is 8.
        affine: whether the norms of the slots have scales and shifts; the table's do.
        mixed: makes a slot, `mixed(make, width, 1)` with `make(width)` the operations by name, and has a `choice`; a
            `OneOf` if None.

    Raises ValueError for images smaller than 3x3.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        size: tuple[int, int] = (8, 8),
        *,
        width: int = 8,
        affine: bool = True,
        mixed: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if min(size) < 3:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit Micro: give at least 3 pixels a side")
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.slots = nn.Sequential(*(_slot(name, width, affine, mixed) for name in NAMES))
        self.classifier = nn.Linear(width, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = F.relu(self.slots(self.stem(x))).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


def _slot(name: str, width: int, affine: bool, mixed: Callable[..., Any] | None) -> nn.Module:
    make = partial(_operations, affine=affine)
    slot: Any = OneOf(make(width)) if mixed is None else mixed(make, width, 1)
    slot.choice = Choice(OPERATIONS, name=name)
    found: nn.Module = slot
    return found


def _operations(width: int, affine: bool) -> dict[str, nn.Module]:
    return {name: _operation(name, width, affine) for name in OPERATIONS}


def _operation(name: str, width: int, affine: bool) -> nn.Module:
    if name == "skip":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    kernel = 3 if name == "conv_3x3" else 1
    convolution = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(width, affine=affine))
