# SPDX-License-Identifier: Apache-2.0
"""A distribution that is first independent over choices, then joint over those of a layer (FP-NAS).

Yan, Dai, Zhang, Tian, Wu and Feiszli, "FP-NAS: Fast Probabilistic Neural Architecture Search", CVPR 2021,
arXiv:2011.10949.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from sartor.differentiable.alphas import Alphas
from sartor.differentiable.relaxations import entropy, log_probability, sample

__all__ = ["CoarseToFine", "layers_by_name"]

MOST = 1 << 16


class CoarseToFine(nn.Module):
    """Independent logits for all choices, and after `join` one table of logits for the combinations of each layer.

    Args:
        alphas: the independent logits.
        layers: names of the choices of each layer; a choice that is in none is a layer of its own.

    Raises ValueError for a name that is unknown or in two layers, and for a layer of more than 65,536 combinations.
    """

    joined: Tensor
    places: Tensor
    there: Tensor

    def __init__(self, alphas: Alphas, layers: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.coarse = alphas
        names = list(alphas.options)
        given = [name for layer in layers for name in layer]
        if wrong := [name for name in given if name not in names or given.count(name) > 1]:
            raise ValueError(f"{wrong[0]!r} is no choice, or in two layers: the choices are {', '.join(names)}")
        self.layers = [list(layer) for layer in layers] + [[name] for name in names if name not in given]
        counts = [[len(alphas.options[name]) for name in layer] for layer in self.layers]
        widest = max(map(math.prod, counts))
        if widest > MOST:
            raise ValueError(f"a layer has {widest} combinations, more than {MOST}: make it of fewer choices")
        # (C, L, P): the option of each choice in each combination of each layer, -1 where the choice is not its own
        places = torch.full((len(names), len(self.layers), widest), -1, dtype=torch.long, device="cpu")
        there = torch.zeros(len(self.layers), widest, dtype=torch.bool, device="cpu")
        for row, (layer, several) in enumerate(zip(self.layers, counts, strict=True)):
            total = math.prod(several)
            there[row, :total] = True
            digits = torch.unravel_index(torch.arange(total), several)
            for name, digit in zip(layer, digits, strict=True):
                places[names.index(name), row, :total] = digit
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("there", there, persistent=False)
        self.fine = nn.Parameter(torch.zeros(there.shape))
        self.register_buffer("joined", torch.zeros((), dtype=torch.bool))

    @property
    def logits(self) -> Tensor:
        """Logits of the independent categoricals in force: (C, K) of the choices, or (L, P) of the layers."""
        return self.fine.masked_fill(~self.possible(), -torch.inf) if self.joined else self.coarse.logits

    def possible(self) -> Tensor:
        """Return (L, P): which combinations exist and have allowed options alone."""
        allowed = self.coarse.allowed.unsqueeze(1).expand(-1, len(self.layers), -1)
        taken = allowed.gather(2, self.places.clamp_min(0))
        return self.there & (taken | (self.places < 0)).all(0)

    def join(self) -> None:
        """Go over to the joint logits: each combination's is the sum of its options' log-probabilities.

        The distribution stays what it is.
        """
        if self.joined:
            return
        logs = self.coarse.logits.detach().log_softmax(1).unsqueeze(1).expand(-1, len(self.layers), -1)
        taken = logs.gather(2, self.places.clamp_min(0)).masked_fill(self.places < 0, 0.0)
        with torch.no_grad():
            self.fine.copy_(taken.sum(0).masked_fill(~self.possible(), 0.0))
            self.joined.fill_(True)

    def sample(self, generator: Generator) -> Tensor:
        """Return the (C,) positions of one architecture."""
        found = sample(self.logits, generator)
        if not self.joined:
            return found
        own = self.places.gather(2, found.view(1, -1, 1).expand(len(self.places), -1, 1))
        return own.squeeze(2).amax(1)

    def log_probability(self, positions: Tensor) -> Tensor:
        """Return the log-probability of (C,) positions of an architecture."""
        if not self.joined:
            return log_probability(self.logits, positions)
        fits = (self.places == positions.view(-1, 1, 1)) | (self.places < 0)
        return log_probability(self.logits, (fits.all(0) & self.there).long().argmax(1))

    def entropy(self) -> Tensor:
        """Return the entropy of the architecture in nats: the sum over choices, or over layers."""
        return entropy(self.logits)

    def mode(self) -> Tensor:
        """Return the (C,) positions of the most probable architecture."""
        best = self.logits.detach().argmax(1)
        if not self.joined:
            return best
        return self.places.gather(2, best.view(1, -1, 1).expand(len(self.places), -1, 1)).squeeze(2).amax(1)

    def probabilities(self) -> Tensor:
        """Return the (C, K) probabilities of each choice's options, without gradient."""
        if not self.joined:
            return self.coarse.probabilities()
        p = self.logits.detach().softmax(1).masked_fill(~self.possible(), 0.0) * (self.places >= 0)
        found = p.new_zeros(self.coarse.allowed.shape)
        return found.scatter_add_(1, self.places.clamp_min(0).flatten(1), p.flatten(1))


def layers_by_name(names: Sequence[str]) -> list[list[str]]:
    """Return the names in groups of one module each: equal in front of the last point."""
    groups: dict[str, list[str]] = {}
    for name in names:
        head, point, _ = name.rpartition(".")
        groups.setdefault(head if point else name, []).append(name)
    return list(groups.values())
