# SPDX-License-Identifier: Apache-2.0
"""Channels that a searched width selects: where they are, permuting them, and sorting them by importance.

A width of k keeps the first k channels, so it matters which come first. Cai, Gan, Wang, Zhang and Han, "Once-for-All",
ICLR 2020, arXiv:1908.09791, sort them: the importance of a channel is the L1 norm of the weights that read it.

Channels that have the same size are one group: what makes them (convolutions, linear layers, embeddings), what treats
each alone (norms, depthwise convolutions), and what reads them. If all of these are permuted alike, the function of the
full network stays. Sizes are the same where they have the same value under every combination of their choices, so
`width * expand`, written twice, is one size. Concatenated and flattened channels are found in the places they were
given.

What cannot be permuted has a reason in `Channels.fault`. Two things are not seen: a module of the user's own that mixes
channels by their place (a shuffle), and tensors that it adds to an elastic layer. `OFA` therefore compares the
outputs before and after.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sartor.nn as elastic
from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size
from sartor.nn.conv import _Conv
from sartor.nn.norm import _BatchNorm
from sartor.sizes import concatenate, times
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["Channels", "Place", "channel_groups", "importance", "permute", "sort_channels"]

Role = Literal["makes", "follows", "reads", "gates"]
Key = tuple[object, ...]


class Place(NamedTuple):
    """A stretch of a tensor's dimension, of `block` entries for each channel, from `start` on.

    role: "makes" channels, "follows" them one by one, "reads" them, or reads them for their own gate ("gates").
    """

    path: str
    layer: nn.Module
    tensor: str
    dim: int
    start: int
    block: int
    role: Role


@dataclass
class Channels:
    """The channels that a size selects from, and all places that hold them; `fault` says why they cannot move."""

    size: Size
    places: list[Place] = field(default_factory=list)
    fault: str | None = None

    @property
    def extent(self) -> int:
        """How many there are."""
        return self.size.extent

    @property
    def name(self) -> str:
        """The path of the first layer that makes them."""
        return next((place.path for place in self.places if place.role == "makes"), repr(self.size))


class _Axis(NamedTuple):
    """A dimension of a tensor of a layer, and the size that it follows."""

    path: str
    layer: nn.Module
    tensor: str
    dim: int
    size: Size
    role: Role
    fault: str | None


def channel_groups(net: nn.Module) -> list[Channels]:
    """Return the groups of channels that move together, in the order of the layers that make them."""
    axes = [axis for path, layer in net.named_modules() for axis in _axes(path, layer)]
    gates = {module.reduce for module in net.modules() if isinstance(module, elastic.SqueezeExcite)}
    groups = {_key(part): Channels(part) for axis in axes if axis.role == "makes" for part, _ in _parts(axis.size)}
    for axis in axes:
        role = "gates" if axis.layer in gates and axis.role == "reads" else axis.role
        found = _located(axis.size, groups)
        for group, start, block in found:
            group.fault = group.fault or axis.fault
            if axis.tensor:
                group.places.append(Place(axis.path, axis.layer, axis.tensor, axis.dim, start, block, role))
        if not found:
            _refuse(groups, axis)
    _refuse_shared(net, groups)
    _refuse_heads(net, groups)
    return list(groups.values())


def permute(channels: Channels, order: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put channel `order[i]` in place i, wherever the channels are; moments of an optimiser and gradients go along.

    Raises ValueError where the channels cannot be permuted, and where `order` (extent,) is no permutation.
    """
    if channels.fault:
        raise ValueError(f"the channels of {channels.name} cannot be permuted: {channels.fault}")
    if order.dtype != torch.long or order.sort().values.tolist() != list(range(channels.extent)):
        raise ValueError(f"order is no permutation of the {channels.extent} channels of {channels.name}")
    moved = set()
    for place in channels.places:
        tensor = getattr(place.layer, place.tensor)
        if (id(tensor), place.dim, place.start) not in moved:  # tied layers hold one tensor
            moved.add((id(tensor), place.dim, place.start))
            for one in _with_moments(tensor, optimizer):
                _reorder(one, place, order.to(one.device))


def importance(channels: Channels) -> Tensor:
    """Return (extent,) the L1 norm of all weights that read each channel, summed over the layers that do.

    What reads channels only to compute gates of the same channels (squeeze-and-excitation) does not count.
    """
    total = torch.zeros(channels.extent)
    for place in channels.places:
        if place.role == "reads":
            weight = getattr(place.layer, place.tensor).detach().abs().transpose(0, place.dim).flatten(1).sum(1)
            kept = weight[place.start : place.start + channels.extent * place.block]
            total += kept.view(channels.extent, place.block).sum(1).float().cpu()
    return total


def sort_channels(
    net: nn.Module, trained: SearchSpace | None = None, optimizer: torch.optim.Optimizer | None = None
) -> list[Channels]:
    """Sort all channels that can be, by falling importance; return the groups that were sorted.

    trained: the options that weights were trained with. Channels stay within the bands between the widths that these
        give, so that no trained sub-network changes. Without it, the largest width alone counts as trained.
    optimizer: whose moments go along.

    Sizes with index lists are left alone, as these name channels.
    """
    options = {c: trained.choices.get(name, c.options) for name, c in named_choices(net).items()} if trained else {}
    sorted_ = []
    for channels in channel_groups(net):
        bounds = _bounds(channels.size, options)
        if channels.fault or bounds is None:
            continue
        values = importance(channels)
        bands = [values[a:b].sort(descending=True, stable=True).indices + a for a, b in itertools.pairwise(bounds)]
        permute(channels, torch.cat(bands), optimizer)
        sorted_.append(channels)
    return sorted_


def _bounds(size: Size, options: Mapping[Choice, Sequence[Option]]) -> list[int] | None:
    """Return 0, the widths that were trained, and the extent; None where an option is no prefix."""
    if not all(isinstance(option, int) for option in size.options):
        return None
    given = [options.get(root, ()) for root in size.roots]
    values = [size.evaluate(dict(zip(size.roots, one, strict=True)).__getitem__) for one in itertools.product(*given)]
    return sorted({0, size.extent, *(value for value in values if isinstance(value, int))})


def _axes(path: str, layer: nn.Module) -> Iterator[_Axis]:
    """Yield which dimensions of a layer's tensors follow which sizes."""
    fault = _fault(layer)
    for tensor, dim, size, role in _dimensions(layer):
        if isinstance(size, Size):
            yield _Axis(path, layer, tensor, dim, size, role, f"{path} {fault}" if fault else None)


def _dimensions(layer: nn.Module) -> Iterator[tuple[str, int, object, Role]]:
    if isinstance(layer, _Conv):
        yield from _of_convolution(layer)
    elif isinstance(layer, elastic.Linear):
        yield from _present(layer, (("weight", 0), ("bias", 0)), layer.out_features, "makes")
        yield "weight", 1, layer.in_features, "reads"
    elif isinstance(layer, elastic.Embedding):
        yield "weight", 1, layer.embedding_dim, "makes"
    elif isinstance(layer, _BatchNorm):
        tensors = [(name, 0) for name in ("weight", "bias", "running_mean", "running_var")]
        yield from _present(layer, tensors, layer.num_features, "follows")
    elif isinstance(layer, elastic.LayerNorm | elastic.RMSNorm | elastic.GroupNorm):
        size = layer.num_channels if isinstance(layer, elastic.GroupNorm) else layer.normalized_shape
        yield from _present(layer, (("weight", 0), ("bias", 0)), size, "follows")
        if getattr(layer, "weight", None) is None:  # nothing to permute, but it mixes channels
            yield "", 0, size, "follows"
    elif isinstance(layer, elastic.Elastic):
        for value in vars(layer).values():
            yield "", 0, value, "follows"


def _of_convolution(layer: _Conv) -> Iterator[tuple[str, int, object, Role]]:
    transposed = isinstance(layer, elastic.ConvTranspose2d)
    if _is_depthwise(layer):
        yield from _present(layer, (("weight", 0), ("bias", 0)), layer.out_channels, "follows")
        return
    yield "weight", int(transposed), layer.out_channels, "makes"
    yield from _present(layer, (("bias", 0),), layer.out_channels, "makes")
    yield "weight", int(not transposed), layer.in_channels, "reads"


def _is_depthwise(layer: _Conv) -> bool:
    return isinstance(layer.groups, Size) and layer._elastic_inputs == 1 == layer._elastic_outputs


def _present(
    layer: nn.Module, tensors: Sequence[tuple[str, int]], size: object, role: Role
) -> Iterator[tuple[str, int, object, Role]]:
    for name, dim in tensors:
        if getattr(layer, name, None) is not None:
            yield name, dim, size, role


def _fault(layer: nn.Module) -> str | None:
    """Return why the channels of a layer cannot be permuted, if so."""
    if parametrize.is_parametrized(layer):
        return "is parametrized: bake it first"
    if isinstance(layer, _Conv):
        grouped = not _is_depthwise(layer) and (isinstance(layer.groups, Size) or layer.groups != 1)
        return "has groups, which no channel may leave" if grouped else None
    if isinstance(layer, elastic.GroupNorm):
        alone = layer.num_groups == 1 or _key_of(layer.num_groups) == _key_of(layer.num_channels)
        return None if alone else "normalises groups, which no channel may leave"
    known = elastic.Linear | elastic.Embedding | elastic.LayerNorm | elastic.RMSNorm | _BatchNorm
    if isinstance(layer, elastic.Elastic) and not isinstance(layer, known):
        return f"is a {type(layer).__name__}, of whose tensors nothing is known"
    return None


def _key_of(size: object) -> object:
    return _key(size) if isinstance(size, Size) else size


def _key(size: Size) -> Key:
    """Return what a size is: its value under every combination of its choices."""
    roots = tuple(sorted(size.roots, key=id))
    if isinstance(size, Choice):
        return (*roots, size.options)
    combinations = itertools.product(*(root.options for root in roots))
    return (*roots, tuple(size.evaluate(dict(zip(roots, one, strict=True)).__getitem__) for one in combinations))


def _parts(size: Size) -> Iterator[tuple[Size, int]]:
    """Yield the sizes that a size concatenates, and where each begins; itself where it does not."""
    if not (isinstance(size, Derived) and isinstance(size.fn, partial) and size.fn.func is concatenate):
        yield size, 0
        return
    (extents,) = size.fn.args
    for parent, start in zip(size.parents, itertools.accumulate((0, *extents)), strict=False):
        for part, offset in _parts(parent) if isinstance(parent, Size) else ():
            yield part, start + offset


def _located(size: Size, groups: Mapping[Key, Channels]) -> list[tuple[Channels, int, int]]:
    """Return the groups a size selects from, where each begins, and how many entries a channel has.

    A multiple of a width that nothing makes is a width whose channels were flattened. Nothing, if any part is unknown.
    """
    found = []
    for part, start in _parts(size):
        block = 1
        while _key(part) not in groups:
            parents = part.parents if isinstance(part, Derived) and part.fn is times else ()
            inner = [parent for parent in parents if isinstance(parent, Size)]
            factor = next((parent for parent in parents if isinstance(parent, int)), None)
            if len(inner) != 1 or factor is None:
                return []
            part, block = inner[0], block * factor
        found.append((groups[_key(part)], start, block))
    return found


def _refuse(groups: Mapping[Key, Channels], axis: _Axis) -> None:
    """Refuse what may be read by a size that follows from the same choices in an unknown way."""
    for group in groups.values():
        if axis.tensor and not set(group.size.roots).isdisjoint(axis.size.roots):
            group.fault = group.fault or f"{axis.path} reads {axis.size!r}, which nothing makes"


def _refuse_shared(net: nn.Module, groups: Mapping[Key, Channels]) -> None:
    """Refuse what holds a tensor that another layer uses in another way."""
    uses = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    claims: dict[tuple[int, int], list[tuple[Channels, Place]]] = defaultdict(list)
    for group in groups.values():
        for place in group.places:
            claims[id(getattr(place.layer, place.tensor)), place.dim].append((group, place))
    for (tensor, _), claimed in claims.items():
        stretches = {(id(group), place.start, place.block) for group, place in claimed}
        if uses[tensor] > 1 and len(claimed) != uses[tensor] * len(stretches):
            for group, place in claimed:
                group.fault = group.fault or f"{place.path}.{place.tensor} is shared with a layer of other sizes"


def _refuse_heads(net: nn.Module, groups: Mapping[Key, Channels]) -> None:
    for path, module in net.named_modules():
        if isinstance(module, elastic.MultiheadAttention):
            for size in (module.q_proj.out_features, module.k_proj.out_features):
                for group, _, _ in _located(size, groups) if isinstance(size, Size) else ():
                    group.fault = group.fault or f"{path} has heads, which no channel may leave"


def _with_moments(tensor: Tensor, optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Yield a tensor, its gradient, and what an optimiser keeps for each of its entries."""
    yield tensor
    if tensor.grad is not None:
        yield tensor.grad
    for value in (optimizer.state.get(tensor, {}) if optimizer else {}).values():
        if isinstance(value, Tensor) and value.shape == tensor.shape and value.dim():
            yield value


@torch.no_grad()
def _reorder(tensor: Tensor, place: Place, order: Tensor) -> None:
    """Move the blocks of a stretch, in place."""
    index = torch.arange(tensor.shape[place.dim], device=tensor.device)
    stretch = index[place.start : place.start + len(order) * place.block].view(len(order), place.block)
    stretch.copy_(stretch[order])
    tensor.copy_(tensor.index_select(place.dim, index))
