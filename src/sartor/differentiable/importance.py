# SPDX-License-Identifier: Apache-2.0
"""Importance weights of sampled architectures: what a sample counts, by how well it explains the data.

Casale, Gordon and Fusi, "Probabilistic Neural Architecture Search", 2019, arXiv:1902.05116.

With p(y | X, v) = sum over a of p(y | X, v, a) p(a), the gradients of its logarithm are, over samples a_k of p(a),
sum over k of omega_k * grad log p(a_k) and sum over k of omega_k * grad_v log p(y | X, v, a_k), where omega is the
softmax of the samples' log-likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["importance_weights", "negative_evidence", "weighted_gradients"]


def importance_weights(log_weights: Tensor) -> Tensor:
    """Return the (K,) weights omega of K samples: the softmax, of sum 1, that no common constant changes."""
    return log_weights.softmax(0)


def negative_evidence(log_probabilities: Tensor, log_weights: Tensor) -> Tensor:
    """Return the scalar whose gradient is -sum over k of omega_k * grad log p(a_k).

    log_probabilities: (K,) of the samples under the distribution, with gradients. log_weights: (K,) without.
    """
    return -(importance_weights(log_weights.detach()) * log_probabilities).sum()


def weighted_gradients(
    losses: Iterable[tuple[Tensor, Tensor]], parameters: Sequence[Tensor]
) -> tuple[list[Tensor | None], Tensor]:
    """Return sum over k of omega_k * grad loss_k, and the same sum of the losses, a scalar.

    The samples come one at a time, each as (log weight, loss), and are not kept: there is one graph and one sum of
    gradients in memory, whatever K. A parameter that no sample used has None. Raises ValueError for no sample.
    """
    sums: list[Tensor | None] = [None] * len(parameters)
    top, total, value = -math.inf, 0.0, torch.zeros(())
    for log_weight, loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        now = float(log_weight.detach())
        highest = max(top, now)
        keep, weight = math.exp(top - highest), math.exp(now - highest)  # what came before, and this, under the maximum
        sums = [_joined(old, keep, new, weight) for old, new in zip(sums, found, strict=True)]
        top, total, value = highest, keep * total + weight, keep * value + weight * loss.detach()
    if not total > 0.0:
        raise ValueError(f"the log-weights of the samples end at {top}: give at least one sample, with a finite one")
    return [None if one is None else one / total for one in sums], value / total


def _joined(old: Tensor | None, keep: float, new: Tensor | None, weight: float) -> Tensor | None:
    if new is None:
        return None if old is None else keep * old
    return weight * new if old is None else keep * old + weight * new
