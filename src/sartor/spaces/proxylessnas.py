# SPDX-License-Identifier: Apache-2.0
"""The ProxylessNAS chain: 21 layers, each one of six inverted bottlenecks or left out.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019,
arXiv:1812.00332.

A layer is a bottleneck of kernel 3, 5 or 7 and expansion 3 or 6, named `mb3_k5` and the like; where its shortcut is the
identity, `zero` leaves the identity alone, so that the depth is searched too. The choices are named
`stages.<i>.blocks.<j>`. At 64 pixels and above stages have the published widths (24, 40, 80, 96, 192, 320), layers (4,
4, 4, 4, 4, 1) and, at 224, strides (2, 2, 2, 1, 2, 1); see `_chain.plan_for` for smaller images.

Differs from the paper: a candidate is a whole block with its shortcut, so that a mixture whose weights add up to one is
the shortcut plus the mixture of the branches, and a layer left out costs nothing.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from sartor.nn import OneOf
from sartor.spaces._chain import MOBILE, Chain, MBConv

__all__ = ["CANDIDATES", "ProxylessNAS"]

CANDIDATES = {f"mb{expand}_k{kernel}": (kernel, expand) for kernel, expand in itertools.product((3, 5, 7), (3, 6))}
"""Name to kernel and expansion."""


class ProxylessNAS(Chain):
    """A classifier of the chain: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 224.
        dropout: before the classifier.

    Raises ValueError for an image size outside of 8 to 224.
    """

    def __init__(
        self, classes: int = 1000, channels: int = 3, size: tuple[int, int] = (224, 224), *, dropout: float = 0.0
    ) -> None:
        super().__init__(MOBILE, _layer, classes, channels, size, activation=nn.ReLU6, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _layer(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    blocks: dict[str, nn.Module] = {
        candidate: MBConv(in_channels, out_channels, stride, kernel, expand, activation=nn.ReLU6)
        for candidate, (kernel, expand) in CANDIDATES.items()
    }
    if stride == 1 and in_channels == out_channels:
        blocks["zero"] = nn.Identity()
    return OneOf(blocks, name=name)
