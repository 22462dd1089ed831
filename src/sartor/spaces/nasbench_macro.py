# SPDX-License-Identifier: Apache-2.0
"""The network of NAS-Bench-Macro: eight searched layers of MobileNetV2 blocks.

Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021, arXiv:2103.11922;
Sandler et al., "MobileNetV2", CVPR 2018, arXiv:1801.04381 (the block). The choices are those of
`nasbench_macro_layers`, and so of the table that `sartor.tables` ships.

    network = extract(NASBenchMacro(), from_string("02012100"))  # plain torch.nn layers
    network.architecture() == from_string("02012100")

Parameters of an extracted network are the table's `params_m`, its multiply-accumulates for 32x32 images the
table's `flops_m`: the published count is of convolutions and the classifier alone, one a multiply-accumulate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.nn import OneOf
from sartor.spaces.nasbench_macro_layers import NAMES, OPERATIONS, STAGES

__all__ = ["Downsample", "InvertedResidual", "NASBenchMacro"]

_SHAPES = {"mb3_k3": (3, 3), "mb6_k5": (6, 5)}
_HEAD = 1280


class Downsample(nn.Sequential):
    """What an identity is where shapes change: a 1x1 convolution of stride 2 and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), nn.BatchNorm2d(out_channels))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1, plus the input where shapes allow: (N, C, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int, kernel: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.expand, self.kernel = expand, kernel
        self.has_skip = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()),
            nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False),
            *(nn.BatchNorm2d(hidden), nn.ReLU()),
            *(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.conv(x)
        return out + x if self.has_skip else out


class NASBenchMacro(nn.Module):
    """A classifier of eight searched layers: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images; the benchmark's are 32x32.
        width: of the stem; each of the three stages doubles it.

    Raises ValueError for images smaller than 8x8.
    """

    def __init__(
        self, classes: int = 10, channels: int = 3, size: tuple[int, int] = (32, 32), *, width: int = 32
    ) -> None:
        super().__init__()
        if min(size) < 8:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit NASBenchMacro: give at least 8 pixels a side")
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.layers = nn.Sequential()
        names = iter(NAMES)
        for depth in STAGES:
            for position in range(depth):
                stride = 2 if position == 0 else 1
                operations = {name: _operation(name, width, stride) for name in OPERATIONS}
                self.layers.append(OneOf(operations, name=next(names)))
                width *= stride
        self.head_conv, self.head_norm = nn.Conv2d(width, _HEAD, 1, bias=False), nn.BatchNorm2d(_HEAD)
        self.classifier = nn.Linear(_HEAD, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.layers(F.relu(self.stem(x)))
        x = F.relu(self.head_norm(self.head_conv(x))).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults, as the benchmark did."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()

    def architecture(self) -> Architecture:
        """Return the architecture, read from the modules of an extracted network (the choices in force, before).

        Raises ValueError where a choice is soft or a layer holds another operation.
        """
        return Architecture({name: _option(layer) for name, layer in zip(NAMES, self.layers, strict=True)})


def _operation(name: str, width: int, stride: int) -> nn.Module:
    if name != "identity":
        expand, kernel = _SHAPES[name]
        return InvertedResidual(width, width * stride, stride, expand, kernel)
    return nn.Identity() if stride == 1 else Downsample(width, width * stride)


def _option(layer: nn.Module) -> Option:
    if isinstance(layer, OneOf):
        return layer.choice.value
    if isinstance(layer, (nn.Identity, Downsample)):
        return "identity"
    for name, shape in _SHAPES.items():
        if isinstance(layer, InvertedResidual) and shape == (layer.expand, layer.kernel):
            return name
    raise ValueError(f"{layer} is no operation of NAS-Bench-Macro: these are {', '.join(OPERATIONS)}")
