# SPDX-License-Identifier: Apache-2.0
"""Channels of a plain network that are taken out for good, from every layer that holds them and from the optimiser.

A module says which channels of it come and go together by a method `channels() -> Channels`, after extraction. `shrink`
changes the tensors in place: parameters stay the same objects, so that an optimiser goes on with the moments of what
is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Channels", "channels_of", "macs_of_channels", "shrink"]


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels that come and go together, and all layers that hold them.

    scale: the batch norm whose weights, gamma, say how much each channel counts; one of `norms`.
    made_by: convolutions whose outputs they are. norms: of them. alone: depthwise convolutions over them.
    read_by: convolutions whose inputs they are. holder: a module whose attribute `width` is their number.
    """

    scale: nn.modules.batchnorm._BatchNorm
    made_by: tuple[nn.Conv2d, ...]
    norms: tuple[nn.modules.batchnorm._BatchNorm, ...]
    alone: tuple[nn.Conv2d, ...]
    read_by: tuple[nn.Conv2d, ...]
    holder: nn.Module

    def __len__(self) -> int:
        return len(self.scale.weight)

    @property
    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        """All convolutions that hold them."""
        return self.made_by + self.alone + self.read_by

    def macs(self, sizes: dict[nn.Conv2d, int]) -> float:
        """Return the multiply-accumulates of one channel; sizes are the pixels of each convolution's output."""
        made = sum(sizes[layer] * layer.weight[0].numel() for layer in self.made_by + self.alone)
        return float(made + sum(sizes[layer] * layer.weight[:, 0].numel() for layer in self.read_by))

    def places(self) -> Iterator[tuple[nn.Module, str, int]]:
        """Yield each tensor that holds the channels: layer, name and dimension."""
        for layer in self.made_by + self.alone:
            yield from ((layer, name, 0) for name in ("weight", "bias"))
        for norm in self.norms:
            yield from ((norm, name, 0) for name in ("weight", "bias", "running_mean", "running_var"))
        yield from ((layer, "weight", 1) for layer in self.read_by)

    def resize(self, count: int) -> None:
        """Write the number of channels into the layers' attributes."""
        for layer in self.made_by + self.alone:
            layer.out_channels = count
        for layer in self.alone + self.read_by:
            layer.in_channels = count
        for layer in self.alone:
            layer.groups = count
        for norm in self.norms:
            norm.num_features = count
        vars(self.holder)["width"] = count


def channels_of(net: nn.Module) -> dict[str, Channels]:
    """Return what every module says of its channels, by path; none where no module does."""
    saying = ((path, getattr(module, "channels", None)) for path, module in net.named_modules())
    return {path: say() for path, say in saying if callable(say)}


@torch.no_grad()
def macs_of_channels(net: nn.Module, channels: Mapping[str, Channels], images: Tensor) -> dict[str, float]:
    """Return the multiply-accumulates of one channel of each, for an image (1, C, H, W); the network runs once."""
    sizes: dict[nn.Conv2d, int] = {}

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        sizes[layer] = output.shape[2] * output.shape[3]

    hooks = [layer.register_forward_hook(note) for one in channels.values() for layer in one.convolutions]
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {path: one.macs(sizes) for path, one in channels.items()}


@torch.no_grad()
def shrink(channels: Channels, kept: Sequence[int], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Keep only the channels of these numbers, in place, in weights, norms, masks and an optimiser's moments.

    Gradients must have been forgotten. Raises ValueError for numbers that are not increasing or not there.
    """
    numbers = list(kept)
    if numbers != sorted({n for n in numbers if 0 <= n < len(channels)}):
        raise ValueError(f"channels {numbers} of {len(channels)} cannot be kept: give increasing numbers below it")
    index = torch.tensor(numbers, dtype=torch.long, device=channels.scale.weight.device)
    for layer, name, dim in channels.places():
        for tensor in _stored(layer, name):
            _select(tensor, dim, index, optimizer)
    channels.resize(len(numbers))


def _stored(layer: nn.Module, name: str) -> Iterator[Tensor]:
    """The tensor of a layer, or where it is parametrized all of its shape that it is computed from, masks included."""
    if parametrize.is_parametrized(layer, name):
        chain: Any = layer.parametrizations[name]  # type: ignore[index]
        value = getattr(layer, name)
        yield from (t for t in (*chain.parameters(), *chain.buffers()) if t.shape == value.shape)
    elif (tensor := getattr(layer, name)) is not None:
        yield tensor


def _select(tensor: Tensor, dim: int, index: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    shape = tensor.shape
    moments = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for name, value in moments.items():
        if isinstance(value, Tensor) and value.shape == shape:
            moments[name] = _selected(value, dim, index)
    tensor.data = _selected(tensor.data, dim, index)


def _selected(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.index_select(dim, index).contiguous(memory_format=layout)
