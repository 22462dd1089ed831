# SPDX-License-Identifier: Apache-2.0
"""Ways to mix the operations of a choice that run one path, and still give every logit its gradient.

Each is for `sartor.choice.Mixed`: (weights (K,), operations, input) -> output. The weighted sum of all that is not
exactly zero needs none of them: it is what `sartor.nn.OneOf` does under plain weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sartor.choice import Mixed

__all__ = ["Mix", "among", "gated", "mixed", "zero_valued"]

Operations = Sequence[Callable[[Tensor], Tensor]]
Mix = Callable[[Tensor, Operations, Tensor], Tensor]


def mixed(assignment: Mapping[str, Any], mixes: Mix | Mapping[str, Mix]) -> dict[str, Any]:
    """Return an assignment whose weighted choices mix by `mixes`, one for all or one for each name."""
    return {
        name: Mixed(value, mixes[name] if isinstance(mixes, Mapping) else mixes) if isinstance(value, Tensor) else value
        for name, value in assignment.items()
    }


def among(positions: Sequence[int], mix: Mix) -> Mix:
    """Return `mix` over the operations at some positions alone: the others never run, nor do their weights count."""
    places = list(positions)

    def restricted(weights: Tensor, operations: Operations, x: Tensor) -> Tensor:
        return mix(weights[places], [operations[place] for place in places], x)

    return restricted


def zero_valued(weights: Tensor, operations: Operations, x: Tensor) -> Tensor:
    """Return w_i * o_i(x) of the one operation with weight 1, plus the other weights, which are 0 in value.

    GDAS's acceleration (Dong & Yang, CVPR 2019, section 3.3, as in its code): one operation runs, and the others'
    logits get the gradient of their weight alone. Raises ValueError unless the weights are one-hot in value.
    """
    values = weights.tolist()
    if sorted(values) != [0.0] * (len(values) - 1) + [1.0]:
        raise ValueError(f"weights {values} are not one-hot: draw them with relaxations.straight_through")
    place = values.index(1.0)
    out: Tensor = weights[place] * operations[place](x)
    rest = torch.cat([weights[:place], weights[place + 1 :]])
    return out + rest.sum()


def gated(weights: Tensor, operations: Operations, x: Tensor) -> Tensor:
    """Return o_i(x) of the one operation with gate 1; the gates' gradient is <dL/dy, o_j(x)> for every operation.

    ProxylessNAS's binary gates (Cai et al., ICLR 2019, equation 4): y = sum over j of g_j o_j(x). The operations that
    are off run when the gates' gradient is asked for, one after the other and without a graph, so that one path is in
    memory at a time. An operation whose gate has no gradient to give, as of a weight step, does not run at all.
    Raises ValueError unless one gate is 1 and the others 0.
    """
    values = weights.tolist()
    if sorted(values) != [0.0] * (len(values) - 1) + [1.0]:
        raise ValueError(f"gates {values} are not binary: one is 1 and the others 0")
    out = operations[values.index(1.0)](x)
    if not weights.requires_grad:
        return out
    gate: Any = _Gate.apply
    found: Tensor = gate(out, weights, x.detach(), operations, values.index(1.0))
    return found


class _Gate(torch.autograd.Function):
    """The output of the path that is on, with gradients for the gates of all."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, gates: Tensor, x: Tensor, operations: Operations, active: int) -> Tensor:
        ctx.save_for_backward(out, x)
        ctx.operations, ctx.active, ctx.count = operations, active, len(gates)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        out, x = ctx.saved_tensors
        found = gradient.new_zeros(ctx.count)
        if ctx.needs_input_grad[1]:
            with torch.no_grad():
                for place, operation in enumerate(ctx.operations):
                    other = out if place == ctx.active else operation(x)
                    found[place] = (gradient * other).sum()
        return gradient, found, None, None, None
