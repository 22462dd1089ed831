# SPDX-License-Identifier: Apache-2.0
"""Elastic mobile networks: the blocks, activations, sizes and first weights that their spaces share.

Sandler et al., "MobileNetV2", CVPR 2018, arXiv:1801.04381 (the inverted residual).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size
from sartor.nn import BatchNorm2d, Conv2d, TransformedConv2d, round_channels
from sartor.sizes import indices

__all__ = [
    "Activation",
    "ConvNorm",
    "InvertedResidual",
    "Residual",
    "check_size",
    "halvings",
    "has_resolutions",
    "initialise",
    "relu",
    "relu6",
    "scaled",
    "searched",
    "shortcut",
]

Activation = Callable[[Tensor], Tensor]
N = TypeVar("N", int, float)


def relu(x: Tensor) -> Tensor:
    """ReLU in place: for what a batch norm gave, which nothing else reads."""
    return F.relu(x, inplace=True)


def relu6(x: Tensor) -> Tensor:
    """ReLU6 in place, as `relu`."""
    return F.relu6(x, inplace=True)


def check_size(size: tuple[int, int], name: str) -> int:
    """Return the shorter side; ValueError outside of 8 to 224 pixels."""
    if not 8 <= min(size) <= max(size) <= 224:
        raise ValueError(f"images of {size[0]}x{size[1]} do not fit {name}: give 8 to 224 pixels a side")
    return min(size)


def halvings(size: int, most: int = 5) -> int:
    """How often a network halves images of this shorter side: until about 4x4, 7x7 from 224 pixels."""
    return 1 if size < 16 else min(most, math.ceil(math.log2(size / 4)))


def has_resolutions(size: tuple[int, int]) -> bool:
    """Whether the input resolution is searched: for square images that can shrink."""
    return size[0] == size[1] >= 24


def searched(options: Sequence[N], name: str | None = None) -> N | Choice:
    """A choice of numbers; the number itself where it is the only one."""
    return Choice(options, name=name) if len(options) > 1 else options[0]


def scaled(width: int | Size, factor: Option | Size) -> int | Size:
    """The width times a factor, rounded, to the multiple of 8 that `round_channels` gives."""
    if isinstance(width, Size) or isinstance(factor, Size):
        return Derived(_scaled, width, factor)
    return _scaled(width, factor)


def _scaled(width: Option, factor: Option) -> int:
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise ValueError(f"a width cannot be scaled by {factor!r}; give a number")
    return round_channels(round(len(indices(width)) * factor))


def _expanded(width: int | Size, expand: Option | Size) -> int | Size:
    """The width times the expansion: whole expansions exactly, others to a multiple of 8."""
    options = expand.options if isinstance(expand, Size) else (expand,)
    if not all(isinstance(option, int) for option in options):
        return scaled(width, expand)
    return width * (expand if isinstance(expand, Size) else int(options[0]))  # type: ignore[arg-type]


class ConvNorm(nn.Module):
    """Convolution without bias that halves by its stride alone, batch norm and activation: (N, C, H, W)."""

    def __init__(
        self,
        in_channels: int | Size,
        out_channels: int | Size,
        kernel: int,
        stride: int = 1,
        *,
        activation: Activation,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel, stride, "same", bias=False)
        self.norm = BatchNorm2d(out_channels, eps)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.activation(self.norm(self.conv(x)))


class Residual(nn.Module):
    """x -> x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        out: Tensor = x + self.branch(x)
        return out


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, a gate if given, project 1x1, plus a skip if given: (N, C, H, W).

    Args:
        kernels: searched, or one.
        expansions: of in_channels to those of the depthwise convolution; searched, or one. An expansion of 1 alone has
            no first convolution.
        gate: makes, of the expanded width, what follows the depthwise convolution, such as `nn.SqueezeExcite`.
        skip: what the branch is added to; None for nothing.
        transform: smaller kernels are learned transforms of larger ones, see `nn.TransformedConv2d`.
    """

    def __init__(
        self,
        in_channels: int | Size,
        out_channels: int | Size,
        stride: int,
        kernels: Sequence[int],
        expansions: Sequence[float],
        *,
        activation: Activation = relu,
        gate: Callable[[int | Size], nn.Module] | None = None,
        skip: nn.Module | None = None,
        transform: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.kernel, self.expand = searched(kernels), searched(expansions)
        self.activation = activation
        norm = partial(BatchNorm2d, eps=eps)
        hidden, self.expand_conv, self.expand_norm = in_channels, None, None
        if self.expand != 1:
            hidden = _expanded(in_channels, self.expand)
            self.expand_conv, self.expand_norm = Conv2d(in_channels, hidden, 1, bias=False), norm(hidden)
        depthwise = TransformedConv2d if transform else Conv2d
        self.depth_conv = depthwise(hidden, hidden, self.kernel, stride, "same", groups=hidden, bias=False)
        self.depth_norm = norm(hidden)
        self.squeeze = gate(hidden) if gate else None
        self.project_conv, self.project_norm = Conv2d(hidden, out_channels, 1, bias=False), norm(out_channels)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = x
        if self.expand_conv is not None and self.expand_norm is not None:
            y = self.activation(self.expand_norm(self.expand_conv(y)))
        y = self.activation(self.depth_norm(self.depth_conv(y)))
        if self.squeeze is not None:
            y = self.squeeze(y)
        out: Tensor = self.project_norm(self.project_conv(y))
        return out if self.skip is None else out + self.skip(x)


def shortcut(in_channels: int | Size, out_channels: int | Size, stride: int) -> nn.Sequential:
    """What a block adds its branch to: the identity, but for an average pool and a 1x1 convolution where needed."""
    layers: list[nn.Module] = []
    if stride > 1:
        layers.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
    if in_channels != out_channels:
        layers += [Conv2d(in_channels, out_channels, 1, bias=False), BatchNorm2d(out_channels)]
    return nn.Sequential(*layers)


def initialise(modules: Iterable[nn.Module]) -> None:
    """Initialise modules anew, elastic or extracted: convolutions He normal by fan-out, others as torch does.

    On the meta device nothing is done: there is nothing to fill, and torch would import its compiler to do so.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            if isinstance(module, TransformedConv2d):
                module.reset_parameters()
            filters_per_group = module.weight.shape[0] // int(module.groups)
            fan_out = module.weight[0, 0].numel() * filters_per_group
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.Linear)) and not module.weight.is_meta:
            module.reset_parameters()
