# SPDX-License-Identifier: Apache-2.0
"""The runtime of Single-Path NAS: four or five measured values for each layer, and what lies between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable._superkernels import Superkernel, superkernels
from sartor.gates import key
from sartor.relaxation import Relaxation
from sartor.space import SearchSpace

__all__ = ["Corners", "Layer"]


@dataclass(frozen=True)
class Layer:
    """What a layer adds to the runtime of the largest network, which has it whole.

    names: the choices that decide it jointly. values: what each combination of their options adds, in the order of
    the space, the last choice running fastest. skip: the choice that leaves the layer out, by its option number `out`,
    and what the runtime is then less, `skipped`; None if there is none.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    skip: str | None
    out: int = 0
    skipped: float = 0.0

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expected runtime: at every corner, where weights are one-hot, what was measured, exactly."""
        like = next(iter(weights.values()))
        runtime = torch.tensor(self.values, dtype=like.dtype, device=like.device)
        for name in reversed(self.names):
            runtime = runtime.view(-1, len(weights[name])) @ weights[name]
        if self.skip is None:
            return runtime.sum()
        out = weights[self.skip][self.out]
        return (1.0 - out) * runtime.sum() + out * self.skipped


@dataclass(frozen=True)
class Corners:
    """A cost of assignments that adds up over layers, where the choices of one layer decide jointly.

    A layer has R = d50 * sum over k and e of p_k p_e R_k,e + (1 - d50) R_skip. Where R_3x3,e3 / R_5x5,e3 and R_3x3,e6 /
    R_5x5,e6 are one ratio rho, that is the paper's R = d50 (R_50 + d100 (R_100 - R_50)) (rho + (1 - rho) d55) + R_skip.

    base: the runtime of the largest network, in any unit. layers: what each layer adds to it.
    """

    space: SearchSpace
    base: float
    layers: tuple[Layer, ...]

    @classmethod
    def measured(cls, net: nn.Module, space: SearchSpace, cost: Callable[[Architecture], float]) -> Self:
        """Return the corners of a cost of architectures: each layer of a network changed alone in the largest one.

        Raises ValueError as `superkernels` does.
        """
        base = float(cost(space.largest()))
        return cls(space, base, tuple(_measured(layer, space, base, cost) for layer in superkernels(net, space)))

    def __call__(self, assignment: Mapping[str, Any]) -> Tensor:
        """Return the runtime of an assignment, as `activated` takes it: a scalar with gradients."""
        weights = self._relaxation.weights(assignment)
        return torch.stack([layer(weights) for layer in self.layers]).sum() + self.base

    @cached_property
    def _relaxation(self) -> Relaxation:
        return Relaxation(self.space)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache behind."""
        return {"space": self.space, "base": self.base, "layers": self.layers}


def _measured(
    superkernel: Superkernel, space: SearchSpace, base: float, cost: Callable[[Architecture], float]
) -> Layer:
    largest = space.largest()
    names = tuple(one[0] for one in (superkernel.kernel, superkernel.expand) if one)
    there = {superkernel.skip[0]: superkernel.skip[1][1]} if superkernel.skip else {}
    corners = itertools.product(*(space.choices[name] for name in names))
    changed = [{**largest, **there, **dict(zip(names, corner, strict=True))} for corner in corners]
    values = tuple(float(cost(space.canonical(one))) - base for one in changed)
    if not superkernel.skip:
        return Layer(names, values, None)
    name, (left_out, _) = superkernel.skip
    skipped = float(cost(space.canonical({**largest, name: left_out}))) - base
    return Layer(names, values, name, list(map(key, space.choices[name])).index(key(left_out)), skipped)
