"""What every elastic layer shares: the marker class, and how the plain torch layer is made from slices."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from sartor.architecture import Option
from sartor.choice import Size, keep, select, take

__all__ = ["Elastic", "corner", "kept", "plain", "read"]

M = TypeVar("M", bound=torch.nn.Module)


class Elastic(torch.nn.Module):
    """A layer or container whose sizes are searched.

    Law: with hard choices its forward equals that of `extract()`; with soft ones it is the expectation of
        that over
    the options, so that one-hot weights equal the hard choice on the entries that are kept.
    """

    _elastic_gate = False
    """Whether it reads channels only to compute gates of the same channels, as squeeze-and-excitation does."""

    @abstractmethod
    def extract(self) -> torch.nn.Module:
        """The plain module at the options in force: a layer with copied slices, or a container's children."""

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Child, size and the values of it under which the child is part of the network; none for a layer."""
        return []


def kept(size: int | Size, *tensors: Tensor | None) -> list[Tensor | None]:
    """`keep` of each parameter or buffer, those included that a layer lacks; the size is read once."""
    value = size.hard if isinstance(size, Size) else None
    if value is None:
        return list(tensors)
    return [None if tensor is None else select(tensor, value) for tensor in tensors]


def corner(weight: Tensor, rows: int | Size, columns: int | Size) -> Tensor:
    """`take(keep(weight, rows), columns, 1)`, which is one view where both are prefixes.

    One view instead of two matters: a training step of a supernet makes, and differentiates, hundreds.
    """
    height = rows.hard if isinstance(rows, Size) else rows
    width = columns.hard if isinstance(columns, Size) else columns
    if type(height) is not int or type(width) is not int:
        return take(keep(weight, rows), columns, 1)
    if width == weight.shape[1]:
        return weight if height == weight.shape[0] else weight[:height]
    return weight.as_strided((height, width, *weight.shape[2:]), weight.stride())


def read(x: Tensor, size: int | Size, dim: int = 1) -> Tensor:
    """What a layer reads of its input (N, ...) along `dim`: under `PerSample`, zero where a sample does not keep it.

    Otherwise `x`: then the weights that meet it are sliced or scaled. Raises ValueError for another number of samples.
    """
    rows = None if not isinstance(size, Size) or size.hard is not None else size.rows
    if rows is None or not isinstance(size, Size):
        return x
    if len(rows) != len(x):
        raise ValueError(f"{size!r} has options for {len(rows)} samples, the input has {len(x)}: give one for each")
    shape = [1] * x.dim()
    shape[0], shape[dim] = x.shape[0], x.shape[dim]
    return x * size.mask(x).view(shape)


def plain(layer: torch.nn.Module, kind: type[M], tensors: dict[str, Tensor | None], **attributes: object) -> M:
    """`kind`, the torch class that `layer` extends, holding copies of `tensors` and `layer`'s other settings.

    `attributes` replace those of `layer`; bookkeeping, named `_elastic...`, and hooks stay behind. No
    initialiser runs and nothing of the supernet is copied but the slices. What torch parametrizes is a slice of
    its value from then on, a plain parameter, as no parametrization of the whole is one of its slices.
    """
    new = kind.__new__(kind)
    torch.nn.Module.__init__(new)
    own = new.__dict__
    for name, value in vars(layer).items():
        if name not in own and not name.startswith("_elastic"):
            own[name] = attributes.get(name, value)
            assert not isinstance(own[name], Size), f"{type(layer).__name__} left {name} elastic in its plain form"
    own["training"] = layer.training
    own["_non_persistent_buffers_set"] = set(layer._non_persistent_buffers_set)
    for name, parameter in layer._parameters.items():
        slice_ = tensors.get(name)
        if slice_ is None or parameter is None:
            own["_parameters"][name] = None
        else:
            own["_parameters"][name] = torch.nn.Parameter(_copied(slice_), parameter.requires_grad)
    for name in layer._modules.get("parametrizations") or ():  # type: ignore[union-attr]
        own["_parameters"][name] = torch.nn.Parameter(_copied(tensors[name]))
    for name in layer._buffers:
        slice_ = tensors.get(name)
        own["_buffers"][name] = None if slice_ is None else slice_.detach().clone()
    return new


def _copied(slice_: Tensor | None) -> Tensor:
    assert slice_ is not None
    return slice_.detach().clone(memory_format=torch.contiguous_format)
