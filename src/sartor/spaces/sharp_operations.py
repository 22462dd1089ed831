# SPDX-License-Identifier: Apache-2.0
"""The uniform block of sharpDARTS, SharpSepConv, and two lists of operations made of it, for the cells of DARTS.

Hundt, Jain & Hager: "sharpDARTS: Faster and More Accurate Differentiable Architecture Search", 2019, arXiv:1903.09900.

In DARTS a dilated convolution is applied once and a separable one twice, so that a search compares blocks of unequal
depth. Here every convolution is two depthwise ones, of which the first has the stride and the dilation:

    DartsNetwork(operations=SHARP_OPERATIONS)

Differs from the published code: padding keeps the sides at every kernel and dilation, that of the 5x5 ones included.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from sartor.spaces.cell_operations import OPERATIONS, Operation

__all__ = ["SHARP_DARTS_OPERATIONS", "SHARP_OPERATIONS", "SharpSepConv", "sharp"]

FLOOD = 4  # times the output's channels between the two depthwise convolutions
CHOKE = 32  # channels there, whatever the output's


class SharpSepConv(nn.Sequential):
    """ReLU, depthwise k x k, 1x1 to the middle, batch norm; again to the output: (N, C, H, W) -> (N, C', H', W').

    Args:
        in_channels, out_channels: C and C'.
        kernel: odd side of both depthwise convolutions.
        stride: of the first; sides become ceil(side / stride).
        dilation: of the first. The second has neither.
        middle: channels between the two; `out_channels` if None.
        affine: whether the batch norms have scales and shifts.

    Without dilation the receptive field is 2 * kernel - 1 at stride 1. Raises ValueError for an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        middle: int | None = None,
        affine: bool = True,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}: an even one cannot keep the sides, give an odd one")
        between = out_channels if middle is None else middle
        super().__init__(
            *_separable(in_channels, between, kernel, stride, dilation, affine),
            *_separable(between, out_channels, kernel, 1, 1, affine),
        )


def _separable(
    in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int, affine: bool
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(in_channels, in_channels, kernel, stride, padding, dilation, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(out_channels, affine=affine)]


def _sharp(
    kernel: int, dilation: int, times: int, fixed: int | None, width: int, stride: int, searching: bool
) -> nn.Module:
    return SharpSepConv(width, width, kernel, stride, dilation, fixed or times * width, not searching)


def sharp(kernel: int, dilation: int = 1, *, times: int = 1, fixed: int | None = None) -> Operation:
    """Return an operation of a cell: `times` the width in the middle (flood: 4), or a `fixed` number (choke: 32)."""
    return partial(_sharp, kernel, dilation, times, fixed)


SHARP_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "none": OPERATIONS["none"],
        "max_pool_3x3": OPERATIONS["max_pool_3x3"],
        "skip_connect": OPERATIONS["skip_connect"],
        "sep_conv_3x3": sharp(3),
        "dil_conv_3x3": sharp(3, 2),
        "flood_conv_3x3": sharp(3, times=FLOOD),
        "dil_flood_conv_3x3": sharp(3, 2, times=FLOOD),
        "choke_conv_3x3": sharp(3, fixed=CHOKE),
        "dil_choke_conv_3x3": sharp(3, 2, fixed=CHOKE),
    }
)
"""The nine operations of sharpDARTS."""

SHARP_DARTS_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        **OPERATIONS,
        "sep_conv_3x3": sharp(3),
        "sep_conv_5x5": sharp(5),
        "dil_conv_3x3": sharp(3, 2),
        "dil_conv_5x5": sharp(5, 2),
    }
)
"""The eight operations of DARTS, in its order, with SharpSepConv inside."""
