# SPDX-License-Identifier: Apache-2.0
"""Which dimensions of a layer's tensors follow which sizes, and what the layer does along each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.choice import Choice, Derived, Size
from sartor.nn.conv import ConvTranspose2d, _Conv
from sartor.nn.elastic import Elastic
from sartor.nn.linear import Embedding, Linear
from sartor.nn.norm import GroupNorm, LayerNorm, RMSNorm, _BatchNorm
from sartor.nn.sized import Sized
from sartor.sizes import within

__all__ = ["Dimension", "Identity", "Part", "dimensions", "identity", "whole"]

Part = Literal["makes", "follows", "reads", "gates"]
"""A layer makes channels, follows them one by one, reads them, or reads them for their own gate."""

Identity = tuple[object, ...]

_Found = tuple[str, int, object, Part]  # tensor, dimension, size, part


class Dimension(NamedTuple):
    """A dimension of a tensor of a layer, and the size that it follows.

    tensor: "" where no tensor follows, but the layer acts on the channels. fault: why they cannot be permuted, if so.
    """

    path: str
    layer: nn.Module
    tensor: str
    dim: int
    size: Size
    part: Part
    fault: str | None


def dimensions(path: str, layer: nn.Module) -> Iterator[Dimension]:
    """Yield those of one layer, not of its children; `path` is how it is named in what is yielded."""
    fault = _fault(layer)
    for tensor, dim, size, part in _found(layer):
        if isinstance(size, Size):
            gates = part == "reads" and isinstance(layer, Elastic) and layer._elastic_gate
            said = f"{path} {fault}" if fault else None
            yield Dimension(path, layer, tensor, dim, size, "gates" if gates else part, said)


def whole(layer: nn.Module, tensor: str) -> Tensor:
    """A parameter or buffer of a layer with all options in it."""
    found = layer.whole(tensor) if isinstance(layer, Sized) else getattr(layer, tensor)
    assert isinstance(found, Tensor)
    return found


def identity(size: Size) -> Identity:
    """What a size is: its value under every combination of its choices, and the places that its units belong to."""
    roots = sorted(size.roots, key=id)
    if isinstance(size, Choice):
        return (*roots, size.options)
    combinations = itertools.product(*(root.options for root in roots))
    values = [size.evaluate(dict(zip(roots, one, strict=True)).__getitem__) for one in combinations]
    return (*dict.fromkeys(_places(size)), *roots, tuple(values))


def _places(size: Size) -> Iterator[str]:
    if isinstance(size, Derived):
        if isinstance(size.fn, partial) and size.fn.func is within:
            yield size.fn.args[0]
        for parent in size.parents:
            yield from _places(parent) if isinstance(parent, Size) else ()


def _found(layer: nn.Module) -> Iterator[_Found]:
    if isinstance(layer, Sized):
        for tensor, dim, size, role in layer.axes:
            yield tensor, dim, size, "follows" if role == "mixes" else role
    elif isinstance(layer, _Conv):
        yield from _of_convolution(layer)
    elif isinstance(layer, Linear):
        yield from _present(layer, (("weight", 0), ("bias", 0)), layer.out_features, "makes")
        yield "weight", 1, layer.in_features, "reads"
    elif isinstance(layer, Embedding):
        yield "weight", 1, layer.embedding_dim, "makes"
    elif isinstance(layer, _BatchNorm):
        tensors = [(name, 0) for name in ("weight", "bias", "running_mean", "running_var")]
        yield from _present(layer, tensors, layer.num_features, "follows")
    elif isinstance(layer, LayerNorm | RMSNorm | GroupNorm):
        size = layer.num_channels if isinstance(layer, GroupNorm) else layer.normalized_shape
        yield from _present(layer, (("weight", 0), ("bias", 0)), size, "follows")
        if getattr(layer, "weight", None) is None:  # nothing to permute, but it mixes channels
            yield "", 0, size, "follows"
    elif isinstance(layer, Elastic):
        for value in vars(layer).values():
            yield "", 0, value, "follows"


def _of_convolution(layer: _Conv) -> Iterator[_Found]:
    transposed = isinstance(layer, ConvTranspose2d)
    if _is_depthwise(layer):
        yield from _present(layer, (("weight", 0), ("bias", 0)), layer.out_channels, "follows")
        return
    yield "weight", int(transposed), layer.out_channels, "makes"
    yield from _present(layer, (("bias", 0),), layer.out_channels, "makes")
    yield "weight", int(not transposed), layer.in_channels, "reads"


def _is_depthwise(layer: _Conv) -> bool:
    return isinstance(layer.groups, Size) and layer._elastic_inputs == 1 == layer._elastic_outputs


def _present(layer: nn.Module, tensors: Sequence[tuple[str, int]], size: object, part: Part) -> Iterator[_Found]:
    for name, dim in tensors:
        if getattr(layer, name, None) is not None:
            yield name, dim, size, part


def _fault(layer: nn.Module) -> str | None:
    """Why the channels of a layer cannot be permuted, if so."""
    if parametrize.is_parametrized(layer):
        return "is parametrized: bake it first"
    if isinstance(layer, _Conv):
        grouped = not _is_depthwise(layer) and (isinstance(layer.groups, Size) or layer.groups != 1)
        return "has groups, which no channel may leave" if grouped else None
    if isinstance(layer, GroupNorm):
        groups, channels = layer.num_groups, layer.num_channels
        alone = groups == 1 or _is_one(groups, channels)
        return None if alone else "normalises groups, which no channel may leave"
    known = Sized | Linear | Embedding | LayerNorm | RMSNorm | _BatchNorm
    if isinstance(layer, Elastic) and not isinstance(layer, known):
        return f"is a {type(layer).__name__}, of whose tensors nothing is known"
    return None


def _is_one(groups: int | Size, channels: int | Size) -> bool:
    """Whether each channel is a group of its own, whatever the choices."""
    if isinstance(groups, Size) and isinstance(channels, Size):
        return identity(groups) == identity(channels)
    return type(groups) is int and groups == channels
