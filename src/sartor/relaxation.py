# SPDX-License-Identifier: Apache-2.0
"""Architectures between architectures: the code of a soft one, differentiable in its weights.

A predictor or a table that was made for the one-hot code of architectures (`sartor.encodings.onehot`) can so be asked
for a mixture, and its answer has gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from sartor.architecture import Option
from sartor.choice import Kept, Mixed, indices
from sartor.gates import key
from sartor.space import SearchSpace

__all__ = ["Relaxation", "strongest"]

Assignment = Mapping[str, Option | Tensor | Kept | Mixed]
_COMBINATIONS = 1 << 16


class Relaxation:
    """The soft one-hot code of a space.

    An assignment gives each choice an option (hard) or a tensor of weights, one for each option (soft), as
    `sartor.supernet.activated` takes it. Weights of indices, `Kept`, become weights of options: in proportion to the
    product of the weights of the indices that an option keeps.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def code(self, assignment: Assignment) -> Tensor:
        """Return the (D,) code: the weight of each option, times the chance that its choice matters.

        Choices are taken as independent. Hard, it is the architecture's row of `sartor.encodings.onehot`; weights of
        several assignments are not batched. Raises ValueError for a choice that is missing, weights of another length,
        `Kept` weights under which every option has a zero, and a gate that hangs on too many choices.
        """
        weights = self.weights(assignment)
        parts = [weight * self._chance(name, weights) for name, weight in weights.items()]
        return torch.cat(parts)

    def weights(self, assignment: Assignment) -> dict[str, Tensor]:
        """Return the weights of every choice in order, one-hot where the assignment is hard."""
        soft = (value.weights if isinstance(value, Kept | Mixed) else value for value in assignment.values())
        like = next((value for value in soft if isinstance(value, Tensor)), torch.zeros(()))
        found = {}
        for name, options in self.space.choices.items():
            if name not in assignment:
                raise ValueError(f"the choice {name!r} is missing: give it one of {options} or a weight for each")
            found[name] = _weights(name, options, assignment[name], like)
        return found

    def _chance(self, name: str, weights: Mapping[str, Tensor]) -> Tensor | float:
        """Return the chance that a choice matters: over all combinations of the choices that its gate hangs on."""
        if name not in self.space.gates:
            return 1.0
        roots, active = self._gates[name]
        chance = active.to(weights[name])
        for root in reversed(roots):  # sums over the last dimension, which is this root's
            chance = chance @ weights[root]
        return chance

    @cached_property
    def _gates(self) -> dict[str, tuple[list[str], Tensor]]:
        """For each gated choice: those that its gate hangs on, and for each of their combinations if it matters."""
        return {name: self._active(name) for name in self.space.gates}

    def _active(self, name: str) -> tuple[list[str], Tensor]:
        roots = self._roots(name)
        options = [self.space.choices[root] for root in roots]
        shape = [len(several) for several in options]
        if math.prod(shape) > _COMBINATIONS:
            raise ValueError(f"the gate of {name!r} hangs on {len(roots)} choices, which is too many to relax")
        active = [
            self.space.is_active(name, dict(zip(roots, combination, strict=True)))
            for combination in itertools.product(*options)
        ]
        return roots, torch.tensor(active).reshape(shape)

    def _roots(self, name: str) -> list[str]:
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            gate = self.space.gates.get(waiting.pop(), ())
            for other in (other for alternative in gate for other, _ in alternative):
                if other not in found:
                    found[other] = None
                    waiting.append(other)
        return sorted(found)


def strongest(weights: Tensor, keep: int) -> Tensor:
    """Return (n,) weights of which the `keep` largest are left, at their sum, with the gradient of the soft ones.

    One kept is the straight-through estimator. Fewer than one is a ValueError.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: keep at least 1 option of each choice")
    if keep >= len(weights):
        return weights
    values, places = weights.detach().topk(keep)
    total = values.sum()
    shares = values / total if total > 0 else torch.full_like(values, 1 / keep)
    hard = torch.zeros_like(weights).scatter(0, places, shares * weights.detach().sum())
    return weights + (hard - weights).detach()


def _weights(name: str, options: tuple[Option, ...], value: Option | Tensor | Kept | Mixed, like: Tensor) -> Tensor:
    if isinstance(value, Kept):
        return _of_options(name, options, value.weights)
    if isinstance(value, Mixed):
        value = value.weights
    if isinstance(value, Tensor):
        if value.shape != (len(options),):
            raise ValueError(f"{name!r} needs weights of shape ({len(options)},), got {tuple(value.shape)}")
        return value
    chosen = torch.tensor([key(option) == key(value) for option in options], device=like.device)
    if not bool(chosen.any()):
        raise ValueError(f"{value!r} is no option of {name!r}: its options are {options}")
    return chosen.to(like.dtype if like.is_floating_point() else torch.float32)


def _of_options(name: str, options: tuple[Option, ...], weights: Tensor) -> Tensor:
    lists = [option for option in options if isinstance(option, tuple)]
    extent = 1 + max((max(indices(option)) for option in lists), default=-1)
    if len(lists) < len(options) or weights.shape != (extent,):
        raise ValueError(
            f"{name!r} cannot be under Kept weights of shape {tuple(weights.shape)}: its options are {options}"
        )
    products = torch.stack([weights[list(indices(option))].prod() for option in lists])
    total = products.sum()
    if not float(total.detach()) > 0:
        raise ValueError(f"no option of {name!r} has weights above 0 for all that it keeps: {weights.tolist()}")
    return products / total
