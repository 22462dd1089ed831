"""Elastic convolutions: searched channels, kernel size and groups, in one to three dimensions.

A smaller kernel is the centred crop of the largest. Groups are searched in one of two ways: a searched
*number* of groups of constant width (depthwise: width 1, `groups=width`), or a searched *width* of a fixed
number of groups (`per_group(width, groups)`). Channels thus never change their group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from sartor.architecture import Option
from sartor.choice import Derived, Size, concat, extent, indices, keep, take
from sartor.nn.elastic import Elastic, corner, kept, plain, read
from sartor.nn.groups import width_of_groups

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "centre"]

Ints = int | tuple[int, ...]


class _Conv(Elastic):
    """(N, in_channels, ...) -> (N, out_channels, ...), as the torch class of the same name.

    Beyond torch's arguments: `in_channels` may be a tuple, for concatenated inputs; `kernel_size` may be a
    size, the same in every dimension; `padding` is that of the *largest* kernel, and a smaller one shrinks it
    so that the output keeps its shape ("same" is half of the largest kernel).
    Raises ValueError where channels do not divide into the groups, or kernels cannot be centred.
    """

    _elastic_kind: type[_ConvNd]
    _elastic_function: Callable[..., Tensor]
    weight: Tensor
    bias: Any  # Tensor | None, where torch declares a Tensor
    in_channels: Any  # int | Size, where torch declares an int
    out_channels: Any
    groups: Any
    kernel_size: Any  # tuple[int, ...] | Size
    stride: Any  # what torch declares differs by dimension
    padding: Any
    dilation: Any
    padding_mode: Any

    def __init__(
        self,
        in_channels: int | Size | tuple[int | Size, ...],
        out_channels: int | Size,
        kernel_size: Ints | Size,
        stride: Ints = 1,
        padding: Ints | str = 0,
        *,
        dilation: Ints = 1,
        groups: int | Size = 1,
        bias: bool = True,
        **torch_only: Any,
    ) -> None:
        inputs = concat(*in_channels) if isinstance(in_channels, tuple) else in_channels
        kernel = kernel_size.extent if isinstance(kernel_size, Size) else kernel_size
        per_group = [
            _width_per_group(size, groups, name)
            for name, size in (("in_channels", inputs), ("out_channels", out_channels))
        ]
        padded = _padding(padding, kernel, dilation)
        places = extent(inputs), extent(out_channels), kernel, stride, padded
        super().__init__(*places, dilation=dilation, groups=extent(groups), bias=bias, **torch_only)
        self.in_channels, self.out_channels, self.groups = inputs, out_channels, groups
        self._elastic_inputs, self._elastic_outputs = per_group
        if isinstance(kernel_size, Size):
            self._check_kernels(kernel_size)
            self.kernel_size = kernel_size

    def _check_kernels(self, kernel: Size) -> None:
        largest, padding = kernel.extent, self.padding
        for k in kernel.options:
            if not isinstance(k, int) or (largest - k) % 2:
                raise ValueError(f"kernel {k!r} cannot be centred in kernel {largest}; use all odd or all even ints")
            if any(p < d * (largest - k) // 2 for p, d in zip(padding, self.dilation, strict=True)):
                raise ValueError(
                    f"padding {padding} of the largest kernel {largest} is too small for kernel {k} to keep "
                    f"the output's shape; give padding='same'"
                )
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode={self.padding_mode!r} needs a fixed kernel; use 'zeros' with {kernel!r}")

    def channels(self) -> Tensor:
        """The weight at the channels in force, kernels whole."""
        return corner(self.weight, self.out_channels, self._elastic_inputs)

    def active(self) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
        """The weight, bias and padding in force."""
        weight, (bias,), padding = self.channels(), kept(self.out_channels, self.bias), self.padding
        kernel = self.kernel_size
        if not isinstance(kernel, Size):
            return weight, bias, padding
        if kernel.is_soft:
            return weight * _crop_chance(kernel, weight), bias, padding
        cut = (kernel.extent - int(kernel)) // 2
        if cut:
            weight = centre(weight, cut)
            padding = tuple([p - d * cut for p, d in zip(padding, self.dilation, strict=True)])
        return weight, bias, padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, ...) -> (N, out_channels, ...)."""
        weight, bias, padding = self.active()
        x = self._read(x)
        if self.padding_mode != "zeros":
            around = [p for p in reversed(padding) for _ in range(2)]
            x, padding = F.pad(x, around, mode=self.padding_mode), (0,) * len(padding)
        function = type(self)._elastic_function
        return function(x, weight, bias, self.stride, padding, self.dilation, self._groups())

    def _read(self, x: Tensor) -> Tensor:
        """The input as it is read: a searched number of groups passes its channels on, for the reader to mask."""
        return x if isinstance(self.groups, Size) else read(x, self.in_channels)

    def _groups(self) -> int:
        groups = self.groups
        if not isinstance(groups, Size):
            return int(groups)
        return groups.extent if groups.is_soft else int(groups)

    def extract(self) -> torch.nn.Module:
        """The plain layer at the channels, groups and kernel in force."""
        weight, bias, padding = self.active()
        return plain(
            self,
            self._elastic_kind,
            {"weight": weight, "bias": bias},
            in_channels=int(self.in_channels),
            out_channels=int(self.out_channels),
            kernel_size=tuple(weight.shape[2:]),
            padding=padding,
            groups=self._groups(),
            _reversed_padding_repeated_twice=tuple(p for p in reversed(padding) for _ in range(2)),
        )


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` whose channels, kernel size and groups may be searched."""

    _elastic_kind, _elastic_function = torch.nn.Conv1d, F.conv1d


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` whose channels, kernel size and groups may be searched."""

    _elastic_kind, _elastic_function = torch.nn.Conv2d, F.conv2d


class Conv3d(_Conv, torch.nn.Conv3d):
    """`torch.nn.Conv3d` whose channels, kernel size and groups may be searched."""

    _elastic_kind, _elastic_function = torch.nn.Conv3d, F.conv3d


class ConvTranspose2d(_Conv, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` whose channels, kernel size and groups may be searched."""

    _elastic_kind, _elastic_function = torch.nn.ConvTranspose2d, F.conv_transpose2d

    def channels(self) -> Tensor:
        """The weight (in_channels, out_channels / groups, k, k) at the channels in force."""
        # A searched number of groups keeps inputs and outputs together: the reader of the outputs masks both.
        select = keep if isinstance(self.groups, Size) else take
        return keep(select(self.weight, self.in_channels, 0), self._elastic_outputs, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, H, W); `output_size` as torch's."""
        weight, bias, padding = self.active()
        kernel, dilation = list(weight.shape[2:]), self.dilation
        extra = self._output_padding(x, output_size, self.stride, list(padding), kernel, 2, dilation)
        x = self._read(x)
        return F.conv_transpose2d(x, weight, bias, self.stride, padding, extra, self._groups(), dilation)


def centre(weight: Tensor, cut: int) -> Tensor:
    """A view of the kernels without `cut` positions on each side; one operator for all dimensions."""
    shape = [*weight.shape[:2], *[n - 2 * cut for n in weight.shape[2:]]]
    start = weight.storage_offset() + cut * sum(weight.stride()[2:])
    return weight.as_strided(shape, weight.stride(), start)


def _padding(padding: Ints | str, kernel: Ints, dilation: Ints) -> Ints:
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return 0
    if padding != "same":
        raise ValueError(f"padding={padding!r} is unknown; give 'same', 'valid' or ints")
    spatial = max(len(v) if isinstance(v, tuple) else 1 for v in (kernel, dilation))
    ks, ds = (v if isinstance(v, tuple) else (v,) * spatial for v in (kernel, dilation))
    if any(k % 2 == 0 for k in ks):
        raise ValueError(f"padding='same' needs an odd kernel, got {kernel}; give the padding as an int")
    half = tuple(d * (k - 1) // 2 for k, d in zip(ks, ds, strict=True))
    return half if isinstance(kernel, tuple) or isinstance(dilation, tuple) else half[0]


def _width_per_group(size: int | Size, groups: int | Size, name: str) -> int | Size:
    """The channels of one group: constant when the number of groups is searched, else searched as `size`."""
    if isinstance(groups, Size):
        return width_of_groups(size, groups, name)
    if groups == 1:
        return size
    if isinstance(size, Size):
        return Derived(partial(_head_of_each, groups, size.extent), size)
    if size % groups:
        raise ValueError(f"{name}={size} does not divide into {groups} groups")
    return size // groups


def _head_of_each(groups: int, full: int, value: Option) -> Option:
    """The entries kept of one group of `full // groups`, the same in each."""
    width = full // groups
    kept = [tuple(i - g * width for i in indices(value) if g * width <= i < (g + 1) * width) for g in range(groups)]
    if full % groups or len(set(kept)) > 1:
        raise ValueError(
            f"size {value!r} does not keep the same channels of each of {groups} groups of {full} "
            f"channels; use per_group(width, {groups})"
        )
    return kept[0]


def _crop_chance(kernel: Size, weight: Tensor) -> Tensor:
    """Per kernel position, the chance that the centred crop in force holds it: shape (K,) * dimensions."""
    dimensions, largest = weight.dim() - 2, kernel.extent
    chance = weight.new_zeros((largest,) * dimensions)
    for probability, k in zip(kernel.probabilities(weight), kernel.options, strict=True):
        cut = (largest - k) // 2  # type: ignore[operator]
        inside = torch.zeros_like(chance)
        inside[(slice(cut, largest - cut),) * dimensions] = 1.0
        chance = chance + probability * inside
    return chance
