# SPDX-License-Identifier: Apache-2.0
"""The second-order step of DARTS: the gradient of the architecture through one step of the weights.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv:1806.09055, equations 6 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sartor.differentiable.descent import Descent
from sartor.differentiable.diagnostics import undisturbed

__all__ = ["finite_difference", "unrolled"]

EPSILON = 0.01  # the length of the finite difference, in the space of the weights: the paper's section 2.3


def unrolled(
    descent: Descent,
    train: Callable[[], Tensor],
    validation: Callable[[], Tensor],
    *,
    rate: float | None = None,
    epsilon: float = EPSILON,
) -> tuple[float, list[Tensor]]:
    """Return the validation loss one step of the weights further, and its gradients in the architecture parameters.

    w' = w - rate * (momentum * buffer + dL_train/dw + decay * w), and the gradient is
    dL_val(w', alpha)/dalpha - rate * d2 L_train(w, alpha)/(dalpha dw) * dL_val(w', alpha)/dw' (equation 7), its second
    term by the finite difference of equation 8. Weights and buffers are afterwards what they were before, bit for bit.

    train, validation: the losses under the weights and architecture parameters in force, each call anew.
    rate: of the step; the weights' learning rate now if None, as published.
    """
    rate = descent.learning_rate if rate is None else rate
    weights, alphas = descent.weight_parameters, descent.alpha_parameters
    start = [one.detach().clone() for one in weights]
    with undisturbed(descent.net):
        descent.finite(loss := train(), "weights")
        step = _sgd(descent, torch.autograd.grad(loss, weights, allow_unused=True))
        try:
            _move(weights, start, step, -rate)
            loss = validation()
            value = descent.finite(loss, "architecture parameters")
            found = torch.autograd.grad(loss, [*alphas, *weights], allow_unused=True, materialize_grads=True)
        finally:  # also where the loss is not finite
            _move(weights, start, [None] * len(weights), 0.0)
        direct, direction = found[: len(alphas)], found[len(alphas) :]
        implicit = finite_difference(train, weights, alphas, direction, epsilon)
    return value, [one - rate * other for one, other in zip(direct, implicit, strict=True)]


def finite_difference(
    loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    direction: Sequence[Tensor],
    epsilon: float = EPSILON,
) -> list[Tensor]:
    """Return d2 loss/(dalpha dw) times a direction in the weights: (dL(w+)/dalpha - dL(w-)/dalpha) / (2 eps).

    w+ and w- are w plus and minus eps * direction, eps = epsilon / |direction| (equation 8). Zeros for a direction of
    length 0. The weights end as they were; buffers, such as running statistics, move with every call of `loss`.
    """
    length = float(torch.stack([one.detach().norm() for one in direction]).norm())
    if length == 0.0:
        return [torch.zeros_like(alpha) for alpha in alphas]
    start = [one.detach().clone() for one in weights]
    sides = []
    devices = {one.get_device() for one in weights if one.is_cuda}
    try:
        for scale in (epsilon / length, -epsilon / length):
            _move(weights, start, direction, scale)
            with torch.random.fork_rng(devices):  # both sides under the same dropout
                sides.append(torch.autograd.grad(loss(), alphas, allow_unused=True, materialize_grads=True))
    finally:
        _move(weights, start, [None] * len(start), 0.0)
    return [(plus - minus) * (length / (2 * epsilon)) for plus, minus in zip(*sides, strict=True)]


def _sgd(descent: Descent, gradients: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Return what SGD would go along: momentum, gradient and decay; None for a weight without a gradient."""
    decay, momentum = descent.recipe.weight_decay, descent.recipe.momentum
    steps: list[Tensor | None] = []
    for weight, gradient in zip(descent.weight_parameters, gradients, strict=True):
        if gradient is None:
            steps.append(None)
            continue
        step = gradient + decay * weight.detach()
        buffer = descent.weight_optimizer.state.get(weight, {}).get("momentum_buffer")
        steps.append(step if buffer is None else step + momentum * buffer)
    return steps


@torch.no_grad()
def _move(weights: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor | None], scale: float) -> None:
    """Put the weights at start + scale * direction; at the start where the direction is None."""
    for weight, origin, along in zip(weights, start, direction, strict=True):
        weight.copy_(origin if along is None else origin + scale * along)
