# SPDX-License-Identifier: Apache-2.0
"""Unstructured pruning of a plain network: one ranking over the weights of all its convolutions and linear layers.

    masked(net)  # masks, all ones
    prune(net, 0.8)  # 80 % of the weights are masked, those of the smallest magnitude
    reset(net)  # all are back, at the values that they had

Of n weights exactly round(sparsity * n) are masked; of equal scores the first ones. Norms and biases have none. Masks
are `Masked` parametrizations, so that `nn.baked` makes ordinary weights of them, zeros included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.nn.parametrized import parametrizations
from sartor.nn.sparsify import Masked

__all__ = ["Score", "magnitude", "masked", "masked_as_is", "prune", "reset", "sparsity", "transferred"]

Score = Callable[[str, Tensor], Tensor]
"""Name of a weight, as `stem.0.weight`, and its values -> the importance of each, in its shape; the largest stay."""


def magnitude(name: str, weight: Tensor) -> Tensor:
    """Return |weight|."""
    return weight.abs()


def masked(net: nn.Module) -> nn.Module:
    """Give masks of ones to the weights of all convolutions and linear layers, in place; return the network."""
    for layer in list(net.modules()):
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", Masked(layer.weight.detach()))
    return net


def masked_as_is(net: nn.Module) -> nn.Module:
    """Mask the weights that are zero or masked, in place, so that they stay so in training; return the network."""
    for _, mask, weight in parametrizations(masked(net), Masked):
        mask.mask.copy_(mask(weight.detach()) != 0)
    return net


def transferred(ticket: nn.Module, head: nn.Module, name: str = "classifier") -> nn.Module:
    """Return a copy of a ticket for another task: its weights and its zeros, which stay zero, and a new head.

    head: replaces the module `name`, and is not masked. Train it as any network, for example with `Supervised`.
    Raises ValueError where there is no such module.
    """
    if name not in dict(ticket.named_children()):
        raise ValueError(f"the ticket has no module {name!r}: give the name of its head")
    network = masked_as_is(copy.deepcopy(ticket))
    setattr(network, name, head)
    return network


@torch.no_grad()
def prune(net: nn.Module, sparsity: float, score: Score = magnitude) -> None:
    """Set the masks so that a share of all weights is masked, those of the lowest scores, whatever was masked before.

    Raises ValueError for a share outside of 0 to 1, and for a network without masks.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity}: it is a share of the weights, from 0 to 1")
    masks = list(parametrizations(net, Masked))
    if not masks:
        raise ValueError("the network has no mask: apply `masked` to it first")
    scores = torch.cat([score(name, weight.detach()).flatten() for name, _, weight in masks])
    kept, sizes = torch.ones_like(scores), [weight.numel() for _, _, weight in masks]
    kept[scores.argsort(stable=True)[: round(sparsity * len(scores))]] = 0.0
    for (_, mask, weight), part in zip(masks, torch.split(kept, sizes), strict=True):
        mask.mask.copy_(part.view(weight.shape))


def reset(net: nn.Module) -> None:
    """Set all masks to one: weights are back at the values that they had."""
    for mask in _masks(net):
        mask.fill_(1.0)


def sparsity(net: nn.Module) -> float:
    """Return the share of the weights with masks that is masked; 0 where there are none."""
    total = sum(mask.numel() for mask in _masks(net))
    return sum(int((mask == 0).sum()) for mask in _masks(net)) / max(total, 1)


def _masks(net: nn.Module) -> Iterator[Tensor]:
    return (mask.mask for _, mask, _ in parametrizations(net, Masked))
