# SPDX-License-Identifier: Apache-2.0
"""Sampling for several distributions at once from their mixture, and what a sample counts for each (FBNetV5).

All functions work on the (T, C, K) logits of T distributions over C choices.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from sartor.differentiable.relaxations import log_probability, sample

__all__ = ["importance", "mixture_log_probability", "mixture_sample", "surrogate"]


def mixture_sample(logits: Tensor, uniform: float, generator: Generator) -> Tensor:
    """Return the (C,) positions of one sample of q = (1 - uniform) / T * sum over t of pi_t + uniform * U.

    logits: (T, C, K). U is uniform over the options allowed.
    """
    if float(torch.rand((), generator=generator)) < uniform:
        return sample(_uniform(logits), generator)
    return sample(logits[int(torch.randint(len(logits), (), generator=generator))], generator)


def mixture_log_probability(logits: Tensor, positions: Tensor, uniform: float) -> Tensor:
    """Return log q of (C,) positions: see `mixture_sample`."""
    several = torch.stack([log_probability(one, positions) for one in logits])
    own = several.logsumexp(0) + _log((1.0 - uniform) / len(logits))
    return torch.logaddexp(own, log_probability(_uniform(logits), positions) + _log(uniform))


def importance(logits: Tensor, positions: Tensor, uniform: float) -> Tensor:
    """Return the (T,) weights r_t = pi_t(a) / q(a), whose mean under q is 1."""
    several = torch.stack([log_probability(one, positions) for one in logits])
    return (several - mixture_log_probability(logits, positions, uniform)).exp()


def surrogate(logits: Tensor, positions: Tensor, weights: Tensor, advantages: Tensor) -> Tensor:
    """Return the scalar whose gradient in pi_t's logits is r_t * advantage_t * grad log pi_t(a)."""
    several = torch.stack([log_probability(one, positions) for one in logits])
    return (weights * advantages * several).sum()


def _uniform(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits[0]).masked_fill(logits[0].detach() == -torch.inf, -torch.inf)


def _log(part: float) -> float:
    return math.log(part) if part > 0.0 else -math.inf
