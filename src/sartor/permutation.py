# SPDX-License-Identifier: Apache-2.0
"""Channels that a searched width selects: where they are, permuting them, and sorting them by importance.

A width of k keeps the first k channels, so it matters which come first. Cai, Gan, Wang, Zhang and Han, "Once-for-All",
ICLR 2020, arXiv:1908.09791, sort them: the importance of a channel is the L1 norm of the weights that read it.

Channels that have the same size are one group: what makes them (convolutions, linear layers, embeddings), what treats
each alone (norms, depthwise convolutions), and what reads them. If all of these are permuted alike, the function of the
full network stays. Sizes are the same where they have the same value under every combination of their choices, so
`width * expand`, written twice, is one size. Concatenated and flattened channels are found in the places they were
given.

Whole blocks of channels (`sizes.blocks`), as attention heads are, move as one: the channels of the group are then the
heads, whether a layer has a single entry for each, one block of them, or several blocks behind one another.

What cannot be permuted has a reason in `Channels.fault`. Two things are not seen: a module of the user's own that mixes
channels by their place (a shuffle, or heads whose size was written as a product), and tensors that it adds to an
elastic layer. `OFA` and `adapt.sort_by_importance` therefore compare the outputs before and after.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size
from sartor.nn.dimensions import Dimension, Identity, Part, dimensions, identity, whole
from sartor.sizes import blocks, concatenate, times
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = [
    "Channels",
    "Place",
    "channel_groups",
    "importance",
    "order_by",
    "permute",
    "sort_channels",
    "trained_options",
]

Blocks = Mapping[Identity, tuple[Size, int]]
"""What sizes of whole blocks are made of: the size that counts the blocks, and the length of one."""


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
    role: Part

    @property
    def whole(self) -> Tensor:
        """The tensor itself, with all options in it."""
        return whole(self.layer, self.tensor)

    def per_channel(self, values: Tensor, channels: int) -> Tensor:
        """(channels,) float32 on the CPU: the sum of values, one for each entry of the tensor, that a channel has."""
        totals = values.transpose(0, self.dim).flatten(1).sum(1, dtype=torch.float32)
        stretch = totals[self.start : self.start + channels * self.block]
        return stretch.view(channels, self.block).sum(1).cpu()


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


def channel_groups(net: nn.Module) -> list[Channels]:
    """Return the groups of channels that move together, in the order of the layers that make them."""
    found = [one for path, layer in net.named_modules() for one in dimensions(path, layer)]
    wholes = _blocks(found)
    groups: dict[Identity, Channels] = {}
    for one in found:
        for part, _ in _parts(one.size) if one.part == "makes" else ():
            units, _ = _units(part, wholes)
            groups.setdefault(identity(units), Channels(units))
    for one in found:
        located = _located(one.size, groups, wholes)
        for group, start, block in located:
            group.fault = group.fault or one.fault
            if one.tensor:
                group.places.append(Place(one.path, one.layer, one.tensor, one.dim, start, block, one.part))
        if not located:
            _refuse(groups, one)
    _refuse_shared(net, groups)
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
        tensor = place.whole
        if (id(tensor), place.dim, place.start) not in moved:  # tied layers hold one tensor
            moved.add((id(tensor), place.dim, place.start))
            for one in _with_moments(tensor, optimizer):
                _reorder(one, place, order.to(one.device))


def importance(channels: Channels) -> Tensor:
    """Return (extent,) the L1 norm of all weights that read each channel, summed over the layers that do.

    What reads channels only to compute gates of the same channels (squeeze-and-excitation) does not count.
    """
    total = torch.zeros(channels.extent, device="cpu")
    for place in channels.places:
        if place.role == "reads":
            total += place.per_channel(place.whole.detach().abs(), channels.extent)
    return total


def order_by(
    channels: Channels, values: Tensor, trained: Mapping[Choice, Sequence[Option]] | None = None
) -> Tensor | None:
    """Return (extent,) the order of falling values; None for channels that cannot be sorted.

    These are channels with a fault, and sizes with index lists, as these name channels.
    values: (extent,) trained: options that weights were trained with. Channels stay within the bands between the
        widths that these give.
    """
    bounds = _bounds(channels.size, trained or {})
    if channels.fault or bounds is None:
        return None
    bands = [values[a:b].sort(descending=True, stable=True).indices + a for a, b in itertools.pairwise(bounds)]
    return torch.cat(bands)


def sort_channels(
    net: nn.Module, trained: SearchSpace | None = None, optimizer: torch.optim.Optimizer | None = None
) -> list[Channels]:
    """Sort all channels that can be, by falling importance; return the groups that were sorted.

    trained: the options that weights were trained with. Channels stay within the bands between the widths that these
        give, so that no trained sub-network changes. Without it, the largest width alone counts as trained.
    optimizer: whose moments go along.

    Sizes with index lists are left alone, as these name channels.
    """
    options, sorted_ = trained_options(net, trained), []
    for channels in channel_groups(net):
        order = order_by(channels, importance(channels), options)
        if order is not None:
            permute(channels, order, optimizer)
            sorted_.append(channels)
    return sorted_


def trained_options(net: nn.Module, trained: SearchSpace | None) -> dict[Choice, Sequence[Option]]:
    """Return the options of each choice that weights were trained with; none where nothing is said."""
    if trained is None:
        return {}
    return {choice: trained.choices.get(name, choice.options) for name, choice in named_choices(net).items()}


def _bounds(size: Size, options: Mapping[Choice, Sequence[Option]]) -> list[int] | None:
    """Return 0, the widths that were trained, and the extent; None where an option is no prefix."""
    if not all(isinstance(option, int) for option in size.options):
        return None
    given = [options.get(root, ()) for root in size.roots]
    values = [size.evaluate(dict(zip(size.roots, one, strict=True)).__getitem__) for one in itertools.product(*given)]
    return sorted({0, size.extent, *(value for value in values if isinstance(value, int))})


def _parts(size: Size) -> Iterator[tuple[Size, int]]:
    """Yield the sizes that a size concatenates, and where each begins; itself where it does not."""
    if not (isinstance(size, Derived) and isinstance(size.fn, partial) and size.fn.func is concatenate):
        yield size, 0
        return
    (extents,) = size.fn.args
    for parent, start in zip(size.parents, itertools.accumulate((0, *extents)), strict=False):
        for part, offset in _parts(parent) if isinstance(parent, Size) else ():
            yield part, start + offset


def _blocks(found: Iterable[Dimension]) -> Blocks:
    """Return the sizes of whole blocks: a size that one layer has in blocks, another has in blocks too."""
    known: dict[Identity, tuple[Size, int]] = {}
    for one in found:
        for part, _ in _parts(one.size):
            if isinstance(part, Derived) and part.fn is blocks:
                units, length = part.parents
                if isinstance(units, Size) and isinstance(length, int) and length > 1:
                    known[identity(part)] = units, length
    return known


def _units(size: Size, wholes: Blocks) -> tuple[Size, int]:
    """Return the size whose units move, and how many entries each has."""
    block = 1
    while (inner := wholes.get(identity(size))) is not None:
        size, block = inner[0], block * inner[1]
    return size, block


def _located(size: Size, groups: Mapping[Identity, Channels], wholes: Blocks) -> list[tuple[Channels, int, int]]:
    """Return the groups a size selects from, where each begins, and how many entries a channel has.

    A multiple of a width that nothing makes is a width whose channels were flattened. Nothing, if any part is unknown.
    """
    found = []
    for part, start in _parts(size):
        part, block = _units(part, wholes)
        while identity(part) not in groups:
            parents = part.parents if isinstance(part, Derived) and part.fn is times else ()
            inner = [parent for parent in parents if isinstance(parent, Size)]
            factor = next((parent for parent in parents if isinstance(parent, int)), None)
            if len(inner) != 1 or factor is None:
                return []
            part, each = _units(inner[0], wholes)
            block *= factor * each
        found.append((groups[identity(part)], start, block))
    return found


def _refuse(groups: Mapping[Identity, Channels], one: Dimension) -> None:
    """Refuse what may be read by a size that follows from the same choices in an unknown way."""
    for group in groups.values():
        if one.tensor and not set(group.size.roots).isdisjoint(one.size.roots):
            group.fault = group.fault or f"{one.path} reads {one.size!r}, which nothing makes"


def _refuse_shared(net: nn.Module, groups: Mapping[Identity, Channels]) -> None:
    """Refuse what holds a tensor that another layer uses in another way."""
    uses = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    claims: dict[tuple[int, int], list[tuple[Channels, Place]]] = defaultdict(list)
    for group in groups.values():
        for place in group.places:
            claims[id(place.whole), place.dim].append((group, place))
    for (tensor, _), claimed in claims.items():
        stretches = {(id(group), place.start, place.block) for group, place in claimed}
        if uses[tensor] > 1 and len(claimed) != uses[tensor] * len(stretches):
            for group, place in claimed:
                group.fault = group.fault or f"{place.path}.{place.tensor} is shared with a layer of other sizes"


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
