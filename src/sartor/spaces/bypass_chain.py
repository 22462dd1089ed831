# SPDX-License-Identifier: Apache-2.0
"""A chain of convolutions with channel-level bypass, in which depth is a width of 0: small images, 8x8 to 32x32.

After Yang, Liao and Sze, "NetAdaptV2: Efficient Neural Architecture Search with Fast Super-Network Training and
Architecture Optimization", CVPR 2021, arXiv:2104.00031.

Searched: for each layer the number of filters, of which 0 leaves it out, and the kernel. A layer that leaves filters
out passes on as many channels of its input; see `sartor.nn.Bypass`.

Differs from the paper: a plain chain instead of MobileNetV3's blocks, sized for experiments on a processor.
"""

from __future__ import annotations

from torch import Tensor, nn

from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Bypass, Conv2d, Filters, Linear

__all__ = ["BypassChain"]

STEM = 8
STAGES = ((3, (0, 4, 8, 16)), (3, (0, 8, 16, 32)))  # layers, and the filters of each
KERNELS = (1, 3)


class BypassChain(nn.Module):
    """(N, channels, H, W) normalised images -> (N, classes) logits: a stem, and stages that each begin by halving.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 32.

    Raises ValueError for an image size outside of 8 to 32.
    """

    def __init__(self, classes: int, channels: int = 1, size: tuple[int, int] = (8, 8)) -> None:
        super().__init__()
        if not 8 <= min(size) <= max(size) <= 32:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit BypassChain: give 8 to 32 pixels a side")
        self.stem = _layer(channels, STEM, 3, 1 if max(size) < 16 else 2)
        layers: list[Bypass] = []
        for count, options in STAGES:
            for i in range(count):
                name = f"layers.{len(layers)}"
                filters, kernel = Filters(options, name=f"{name}.width"), Choice(KERNELS, name=f"{name}.kernel")
                before, stride = layers[-1].width if layers else STEM, 1 if i else 2
                layers.append(Bypass(_layer(before, filters, kernel, stride), before, filters, stride))
        self.layers = nn.Sequential(*layers)
        self.classifier = Linear(layers[-1].width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        logits: Tensor = self.classifier(self.layers(self.stem(x)).mean((2, 3)))
        return logits


def _layer(in_channels: int | Size, out_channels: int | Size, kernel: int | Size, stride: int) -> nn.Sequential:
    """Convolution, norm and ReLU: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
    conv = Conv2d(in_channels, out_channels, kernel, stride, "same", bias=False)
    return nn.Sequential(conv, BatchNorm2d(out_channels), nn.ReLU())
