"""Squeeze-and-excitation over a searched number of channels (Hu, Shen, Sun, CVPR 2018, arXiv:1709.01507)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.architecture import Option
from sartor.choice import Derived, Size, indices
from sartor.nn.conv import Conv2d

__all__ = ["SqueezeExcite", "round_channels"]


class SqueezeExcite(torch.nn.Module):
    """(N, channels, H, W) -> the same shape, each channel times a gate in [0, 1] that all channels decide.

    Args:
        channels: an int or a size.
        ratio: of the bottleneck to the channels (MobileNetV3, arXiv:1905.02244: 1/4).
        divisor: of the bottleneck, as in `round_channels`.
        reduced: width of the bottleneck itself, instead of ratio and divisor.
        activation, gate: functions behind the first and the second convolution.
    """

    def __init__(
        self,
        channels: int | Size,
        ratio: float = 0.25,
        divisor: int = 8,
        *,
        reduced: int | Size | None = None,
        activation: Callable[[Tensor], Tensor] = F.relu,
        gate: Callable[[Tensor], Tensor] = F.hardsigmoid,
    ) -> None:
        super().__init__()
        narrow = partial(_bottleneck, ratio, divisor)
        if reduced is None:
            reduced = Derived(narrow, channels) if isinstance(channels, Size) else narrow(channels)
        self.activation, self.gate = activation, gate
        self.reduce = Conv2d(channels, reduced, 1)
        self.reduce._elastic_gate = True
        self.expand = Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gate = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(gate)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never zero nor below 90 % (MobileNetV2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def _bottleneck(ratio: float, divisor: int, channels: Option) -> int:
    return round_channels(len(indices(channels)) * ratio, divisor)
