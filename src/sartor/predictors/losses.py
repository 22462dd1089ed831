# SPDX-License-Identifier: Apache-2.0
"""Losses of predictors: of values, and of the order of values.

Each takes scores (..., N) and standardised values (N,) and returns (...): one loss for each network of an ensemble. A
loss of the order is a mean over the pairs whose values differ, and 0 if there are none.

Pairwise hinge: Joachims, KDD 2002. BPR: Rendle et al., UAI 2009, arXiv:1205.2618. DiffKendall: Zheng et al., NeurIPS
2023, arXiv:2307.15317, for predictors of accuracy Dong et al., "ParZC", AAAI 2025, arXiv:2402.02105.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Loss", "bpr", "diffkendall", "huber", "mse", "pairwise_hinge"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def mse(scores: Tensor, values: Tensor) -> Tensor:
    """Return the mean squared error."""
    return (scores - values).square().mean(dim=-1)


def huber(scores: Tensor, values: Tensor) -> Tensor:
    """Return the mean of the Huber loss: squares up to an error of 1, absolute errors beyond."""
    return functional.huber_loss(scores, values.expand_as(scores), reduction="none").mean(dim=-1)


def pairwise_hinge(scores: Tensor, values: Tensor, margin: float = 0.1) -> Tensor:
    """Return the mean shortfall of the differences of scores, in the values' direction, from `margin`."""
    differences, directions = _pairs(scores, values)
    return _mean(functional.relu(margin - differences * directions), directions != 0)


def bpr(scores: Tensor, values: Tensor) -> Tensor:
    """Return the mean of -log p, where sigmoid(score of a - score of b) is the chance that a is better."""
    differences, directions = _pairs(scores, values)
    return _mean(-functional.logsigmoid(differences * directions), directions != 0)


def diffkendall(scores: Tensor, values: Tensor, alpha: float = 0.5) -> Tensor:
    """Return 1 minus a smooth Kendall tau, from 0 to 2; the exact tau as alpha goes to infinity.

    The mean over pairs i < j of tanh(alpha ds / 2) tanh(alpha dv / 2). (The authors' code sums over both orders of
    each pair, and so ranges to twice that.)
    """
    differences, directions = _pairs(scores, values)
    both = torch.tanh(alpha / 2 * differences) * torch.tanh(alpha / 2 * (values[:, None] - values))
    return 1.0 - _mean(both, directions != 0)


def _pairs(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of scores (..., N, N) and the signs of the differences of values (N, N)."""
    return scores[..., :, None] - scores[..., None, :], torch.sign(values[:, None] - values)


def _mean(terms: Tensor, counted: Tensor) -> Tensor:
    return (terms * counted).sum(dim=(-2, -1)) / counted.sum().clamp(min=1)
