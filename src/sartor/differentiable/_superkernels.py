# SPDX-License-Identifier: Apache-2.0
"""Superkernels of Single-Path NAS: where the parts of a layer are in its weights, and which choices they decide."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Size, indices
from sartor.differentiable.relaxations import nested
from sartor.gates import key
from sartor.nn import Conv1d, Conv2d, Conv3d
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["Superkernel", "superkernels"]

Options = tuple[Option, ...]


SHOWN = 3  # choices that an error names


@dataclass(frozen=True, eq=False)
class Superkernel:
    """A convolution that holds all candidates of a layer, and what is searched of it.

    conv: its weight is (channels, ..., k, ..., k). kernel, expand, skip: name and allowed options, smallest first, of
    the choice of the kernel, of that behind the output channels, and of that which leaves the layer out; None where
    nothing is searched. bounds: how many output channels each option of `expand` keeps, after a 0.
    """

    conv: nn.Module
    kernel: tuple[str, Options] | None
    expand: tuple[str, Options] | None
    skip: tuple[str, Options] | None
    bounds: tuple[int, ...] = field(default=())

    @property
    def choices(self) -> list[tuple[str, Options]]:
        """What is searched here, in the order in which it is decided."""
        return [one for one in (self.kernel, self.expand, self.skip) if one]

    def weights(self, on: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the weights of each choice's options, smallest first.

        on: a part of the weight -> its indicator, a scalar; called from the innermost part to the whole.
        """
        found: dict[str, Tensor] = {}
        weight = self.conv.weight
        assert isinstance(weight, Tensor)
        if self.kernel:  # W_k = W_33 + 1[||W_55|| > t_k] W_55
            centre, *rings = _rings(weight, self.kernel[1])
            kept = torch.stack([on(weight * ring) for ring in rings])
            found[self.kernel[0]] = nested(kept)
            weight = weight * (centre + torch.tensordot(kept.cumprod(0), torch.stack(rings), 1))
        parts = [weight[low:high] for low, high in itertools.pairwise(self.bounds)]
        if self.expand:  # W_k,50 + 1[||W_k,100|| > t_100] W_k,100
            found[self.expand[0]] = nested(torch.stack([on(part) for part in parts[1:]]))
        if self.skip:  # 1[||W_k,50|| > t_50] ( ... )
            found[self.skip[0]] = nested(on(parts[0]).view(1))
        return found


def superkernels(net: nn.Module, space: SearchSpace) -> list[Superkernel]:
    """Return the superkernels of a network: convolutions with a searched kernel, in the order of its modules.

    What leaves a layer out is read off the gate of its kernel. That branch must run under a weight of 0, too, as in
    `sartor.spaces.SinglePath`: an indicator that is off has no gradient otherwise, and stays off.

    Raises ValueError for a searched choice that belongs to no superkernel, and a width or gate that hangs on several.
    """
    names = {id(choice): name for name, choice in named_choices(net).items()}
    free = {name: _sorted(options) for name, options in space.choices.items() if len(options) > 1}
    found: list[Superkernel] = []
    for module in net.modules():
        if isinstance(module, Conv1d | Conv2d | Conv3d) and isinstance(module.kernel_size, Size):
            one = _superkernel(module, names, space, free)
            free = {name: options for name, options in free.items() if name not in dict(one.choices)}
            found += [one] if one.choices else []
    if free:
        shown = ", ".join(free) if len(free) <= SHOWN else f"{', '.join([*free][:SHOWN])} and {len(free) - SHOWN} more"
        raise ValueError(
            f"{shown} belong to no convolution with a searched kernel: restrict each to one option, or take a space of "
            "superkernels, as single_path"
        )
    return found


def _superkernel(
    conv: Conv1d | Conv2d | Conv3d, names: Mapping[int, str], space: SearchSpace, free: Mapping[str, Options]
) -> Superkernel:
    width = conv.out_channels if isinstance(conv.out_channels, Size) else None
    kernel = _only([names[id(root)] for root in conv.kernel_size.roots], free, "the kernel")
    expand = _only([names[id(root)] for root in width.roots], free, "the width") if width else None
    gate = space.gates.get(names[id(conv.kernel_size.roots[0])], ())
    on = {name: options for alternative in gate for name, options in alternative if name in free}
    skip = _only(list(on), free, "the gate")
    if skip:
        (name, options) = skip
        rest = tuple(option for option in options if key(option) not in set(map(key, on[name])))
        if len(rest) != 1 or len(options) != 2:
            raise ValueError(f"{name} leaves a layer out by {rest} of {options}: it must be one option of two")
        skip = name, (*rest, *on[name])
    bounds: tuple[int, ...] = (0, conv.weight.shape[0])
    if width and expand:
        fixed = {names[id(root)]: root.options[root.position] for root in width.roots}
        settings = [{**fixed, expand[0]: option} for option in expand[1]]
        values = [width.evaluate(lambda root, at=at: at[names[id(root)]]) for at in settings]  # type: ignore[misc]
        bounds = (0, *(len(indices(value)) for value in values))
    return Superkernel(conv, kernel, expand, skip, bounds)


def _only(several: Sequence[str], free: Mapping[str, Options], what: str) -> tuple[str, Options] | None:
    found = [name for name in several if name in free]
    if len(found) > 1:
        raise ValueError(f"{what} of a superkernel hangs on {' and '.join(found)}: restrict all but one to one option")
    return (found[0], free[found[0]]) if found else None


def _rings(weight: Tensor, sizes: Options) -> Iterator[Tensor]:
    """Yield for each kernel size, from the smallest, the mask of the positions that it adds."""
    extent, before = weight.shape[-1], weight.new_zeros(weight.shape[2:])
    for size in sizes:
        assert isinstance(size, int)
        cut = (extent - size) // 2
        crop = torch.zeros_like(before)
        crop[(slice(cut, extent - cut),) * before.dim()] = 1.0
        yield crop - before
        before = crop


def _sorted(options: Options) -> Options:
    """Numbers by size; others as they are."""
    return tuple(sorted(options)) if all(isinstance(one, int) for one in options) else options  # type: ignore[type-var]
