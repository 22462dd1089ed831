# SPDX-License-Identifier: Apache-2.0
"""Weighted sums of operations that read the same input, with what they have in common computed once.

A cell of DARTS reads each of its states by up to five edges of eight operations. What these would compute alike (an
activation, a pool and its normalisation) is computed once for all of them, and a weight is not a product of its own
where the operation ends in a batch norm, whose scale it can be.

An operation takes part by a static method of its class:

    together(operations, x, weights, memo) -> list of Tensor

gives `weight * operation(x)` for each of several operations of the class, by whatever way is short. `weights` are
scalar tensors. `memo` is a dict that lives as long as `x` is read, for what other classes can use, too. Outputs,
gradients and changed buffers must be those of the plain products; an operation without the method is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sartor.nn.zero import Zero

__all__ = ["Mixture", "mixtures", "scaled_norm", "summed"]

Mixture = Sequence[tuple[str, nn.Module, Tensor]]
"""Name, operation and weight of the operations of one mixed operation that run."""


def mixtures(several: Sequence[Mixture], x: Any) -> list[Tensor]:
    """Return the weighted sum of each of several mixtures that read `x`; each has at least one operation.

    A `Zero` is not run beside others. The sums are taken in the order of the operations of the first mixture.
    """
    groups: dict[tuple[str, type], list[tuple[int, nn.Module, Tensor]]] = {}
    for i, mixture in enumerate(several):
        real = [one for one in mixture if not isinstance(one[1], Zero)]
        for name, operation, weight in real or mixture:
            groups.setdefault((name, type(operation)), []).append((i, operation, weight))
    memo: dict[str, Tensor] = {}
    terms: list[list[Tensor]] = [[] for _ in several]
    for (_, kind), group in groups.items():
        places, operations, weights = zip(*group, strict=True)
        together = getattr(kind, "together", None)
        if together is None:
            outputs = [weight * operation(x) for operation, weight in zip(operations, weights, strict=True)]
        else:
            outputs = together(operations, x, weights, memo)
        for i, output in zip(places, outputs, strict=True):
            terms[i].append(output)
    return [summed(one) for one in terms]


def summed(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of one or more tensors of one shape, first to last."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def scaled_norm(norm: nn.BatchNorm2d, x: Tensor, weight: Tensor) -> Tensor:
    """Return a scalar tensor times `norm(x)`, as a batch norm of that scale: no pass over the output of its own."""
    scale: Tensor | None = norm.weight
    bias: Tensor | None = norm.bias
    scale = weight.expand(norm.num_features).contiguous() if scale is None else scale * weight
    bias = None if bias is None else bias * weight
    momentum, counter = norm.momentum, norm.num_batches_tracked
    if norm.training and counter is not None:
        counter.add_(1)
        momentum = 1.0 / float(counter) if momentum is None else momentum
    batch = norm.training or norm.running_mean is None
    mean, variance = norm.running_mean, norm.running_var
    return torch.nn.functional.batch_norm(x, mean, variance, scale, bias, batch, momentum or 0.0, norm.eps)
