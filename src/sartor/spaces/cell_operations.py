# SPDX-License-Identifier: Apache-2.0
"""What edges of searched cells compute: the operations of NASNet and DARTS, and drop-path.

Zoph, Vasudevan, Shlens & Le, CVPR 2018, arXiv:1707.07012; Liu, Simonyan & Yang, "DARTS: Differentiable Architecture
Search", ICLR 2019, arXiv:1806.09055.

An operation is made for a width, a stride and a form. In the search form no batch norm has a scale, which the weights
of a mixture would make redundant, and a pool is followed by a batch norm, so that all outputs mixed have one scale.

Where a side is odd, stride 2 rounds it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.nn import Zero
from sartor.nn.mixing import scaled_norm

__all__ = [
    "OPERATIONS",
    "DilatedConv",
    "DropPath",
    "FactorizedReduce",
    "Operation",
    "Pool",
    "ReLUConvBN",
    "SeparableConv",
    "set_progress",
]

Memo = dict[str, Tensor]
Operation = Callable[[int, int, bool], nn.Module]
"""(width, stride, whether for the search) -> a module (N, width, H, W) -> (N, width, ceil(H / stride), ...)."""


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution without bias, batch norm: (N, in_channels, H, W) -> (N, out_channels, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        norm = nn.BatchNorm2d(out_channels, affine=affine, track_running_stats=track_running_stats)
        super().__init__(nn.ReLU(), conv, norm)

    @staticmethod
    def together(operations: Sequence[Any], x: Tensor, weights: Sequence[Tensor], memo: Memo) -> list[Tensor]:
        """Weighted outputs on one input; see `sartor.nn.mixing`."""
        x = _relu(x, memo)
        return [scaled_norm(one[2], one[1](x), weight) for one, weight in zip(operations, weights, strict=True)]


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of every second pixel, the second one pixel further, side by side: halves the sides."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        out: Tensor = self.norm(self._reduced(F.relu(x)))
        return out

    def _reduced(self, x: Tensor) -> Tensor:
        # every second pixel first: torch's 1x1 convolution of stride 2 writes beyond its memory where channels are few
        even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
        if x.shape[2] % 2 or x.shape[3] % 2:
            odd = F.pad(odd, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return torch.cat((self.conv_1(even), self.conv_2(odd)), 1)

    @staticmethod
    def together(operations: Sequence[Any], x: Tensor, weights: Sequence[Tensor], memo: Memo) -> list[Tensor]:
        """Weighted outputs on one input; see `sartor.nn.mixing`."""
        x = _relu(x, memo)
        return [scaled_norm(one.norm, one._reduced(x), weight) for one, weight in zip(operations, weights, strict=True)]


class DilatedConv(nn.Sequential):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, batch norm."""

    def __init__(self, width: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__(*_separable(width, kernel, stride, affine, dilation=2))

    @staticmethod
    def together(operations: Sequence[Any], x: Tensor, weights: Sequence[Tensor], memo: Memo) -> list[Tensor]:
        """Weighted outputs on one input; see `sartor.nn.mixing`.

        Entries of even and of odd rows and columns do not meet in a convolution of dilation 2: it is the plain one of
        each of the four parts, or of one part where the stride is 2, too. That is several times as fast to train.
        """
        x = _relu(x, memo)
        stride, (height, width) = operations[0][1].stride[0], x.shape[2:]
        if any(one[1].stride[0] != stride for one in operations) or (stride == 1 and (height % 2 or width % 2)):
            convs = [one[1](x) for one in operations]
        else:
            part = _once(memo, f"parts of stride {stride}", _parts if stride == 1 else _quarter, x)
            convs = [
                F.conv2d(part, one[1].weight, None, 1, one[1].kernel_size[0] // 2, 1, len(one[1].weight))
                for one in operations
            ]
        outputs = [
            scaled_norm(one[3], one[2](y), weight) for one, y, weight in zip(operations, convs, weights, strict=True)
        ]
        return [_whole(y, len(x)) if len(y) > len(x) else y for y in outputs]


class SeparableConv(nn.Sequential):
    """ReLU, depthwise convolution, 1x1 convolution, batch norm, all of it twice; the first has the stride."""

    def __init__(self, width: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__(*_separable(width, kernel, stride, affine), *_separable(width, kernel, 1, affine))

    @staticmethod
    def together(operations: Sequence[Any], x: Tensor, weights: Sequence[Tensor], memo: Memo) -> list[Tensor]:
        """Weighted outputs on one input; see `sartor.nn.mixing`."""
        x = _relu(x, memo)
        inner = [_through(list(one)[1:7], x) for one in operations]
        return [scaled_norm(one[7], y, weight) for one, y, weight in zip(operations, inner, weights, strict=True)]


def _separable(width: int, kernel: int, stride: int, affine: bool, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=width, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width, affine=affine)]


class Pool(nn.Sequential):
    """A 3x3, 5x5 or 7x7 pool, "max" or "avg", that keeps the sides at stride 1; in the search form normalised."""

    def __init__(self, kind: str, kernel: int, width: int, stride: int = 1, searching: bool = False) -> None:
        padding = kernel // 2
        pool: nn.Module = nn.MaxPool2d(kernel, stride, padding)
        if kind == "avg":
            pool = nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)
        super().__init__(pool, *([nn.BatchNorm2d(width, affine=False)] if searching else []))

    @staticmethod
    def together(operations: Sequence[Any], x: Tensor, weights: Sequence[Tensor], memo: Memo) -> list[Tensor]:
        """Weighted outputs on one input; see `sartor.nn.mixing`."""
        first, training = operations[0], operations[0].training
        alike = all(_settings(one) == _settings(first) for one in operations)
        norms = [module for one in operations for module in one if isinstance(module, nn.BatchNorm2d)]
        cumulative = any(norm.momentum is None for norm in norms)
        if not alike or cumulative or (norms and not training):  # in evaluation, each has statistics of its own
            return [weight * one(x) for one, weight in zip(operations, weights, strict=True)]
        y = first[0](x)
        if norms:
            y = _normalised(norms, y)
        return [weight * y for weight in weights]


class DropPath(nn.Module):
    """Zero whole images with a probability and divide the others by what is left of 1; nothing outside training.

    final: the probability at the end of training. `probability` is that of now; `set_progress` sets it.
    """

    def __init__(self, final: float) -> None:
        super().__init__()
        if not 0 <= final < 1:
            raise ValueError(f"drop-path of probability {final}: it is at least 0 and below 1")
        self.final, self.probability = final, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape."""
        if not self.training or not self.probability:
            return x
        keep = 1 - self.probability
        return x * x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """The probability at the end."""
        return f"final={self.final}"


def set_progress(network: nn.Module, progress: float) -> None:
    """Tell a network's drop-path how far training is, from 0 to 1: its probability grows linearly (ScheduledDropPath).

    Raises ValueError for a progress outside.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"the progress of training is {progress}: give the share that is done, from 0 to 1")
    for module in network.modules():
        if isinstance(module, DropPath):
            module.probability = module.final * progress


def _once(memo: Memo, name: str, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`fn(x)`, kept under a name for others that read the same input."""
    if name not in memo:
        memo[name] = fn(x)
    return memo[name]


def _through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _relu(x: Tensor, memo: Memo) -> Tensor:
    return _once(memo, "relu", F.relu, x)


def _parts(x: Tensor) -> Tensor:
    """(N, C, H, W) of even sides -> (4 * N, C, H / 2, W / 2): even and odd rows and columns apart."""
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
    return rows.permute(2, 4, 0, 1, 3, 5).reshape(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2)


def _whole(parts: Tensor, n: int) -> Tensor:
    """The inverse of `_parts`."""
    _, c, h, w = parts.shape
    rows = parts.permute(0, 2, 3, 1).reshape(2, 2, n, h, w, c)
    return rows.permute(2, 3, 0, 4, 1, 5).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _quarter(x: Tensor) -> Tensor:
    return x[:, :, ::2, ::2]


def _settings(pool: Pool) -> tuple[object, ...]:
    window: Any = pool[0]
    momenta = [norm.momentum for norm in pool.modules() if isinstance(norm, nn.BatchNorm2d)]
    return type(window), window.kernel_size, window.stride, pool.training, momenta


def _normalised(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    """What each of several batch norms without scales gives in training; all of them note the batch's statistics."""
    first, others = norms[0], norms[1:]
    old = [t.clone() for t in (first.running_mean, first.running_var) if t is not None] if others else []
    y: Tensor = first(x)
    for name, before in zip(("running_mean", "running_var"), old, strict=False):
        kept = 1 - (first.momentum or 0.0)
        buffers = [getattr(norm, name) for norm in others]
        torch._foreach_mul_(buffers, kept)
        torch._foreach_add_(buffers, [getattr(first, name) - kept * before] * len(buffers))
    if old:
        torch._foreach_add_([norm.num_batches_tracked for norm in others if norm.num_batches_tracked is not None], 1)
    return y


def _none(width: int, stride: int, searching: bool) -> nn.Module:
    return Zero(stride)


def _skip(width: int, stride: int, searching: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(width, width, not searching)


def _pool(kind: str, kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    return Pool(kind, kernel, width, stride, searching)


def _sep_conv(kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    return SeparableConv(width, kernel, stride, not searching)


def _dil_conv(kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    return DilatedConv(width, kernel, stride, not searching)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "none": _none,
        "max_pool_3x3": partial(_pool, "max", 3),
        "avg_pool_3x3": partial(_pool, "avg", 3),
        "skip_connect": _skip,
        "sep_conv_3x3": partial(_sep_conv, 3),
        "sep_conv_5x5": partial(_sep_conv, 5),
        "dil_conv_3x3": partial(_dil_conv, 3),
        "dil_conv_5x5": partial(_dil_conv, 5),
    }
)
"""The eight operations of DARTS, in its order."""
