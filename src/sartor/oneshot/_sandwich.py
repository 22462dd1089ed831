# SPDX-License-Identifier: Apache-2.0
"""The gradients of a sandwich: the largest sub-network learns from the labels, all others from the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sartor.architecture import Architecture
from sartor.oneshot._recipe import Loss
from sartor.oneshot._training import Batch, Training

__all__ = ["Divergence", "sandwich_gradients"]

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(N, K) logits of student and teacher -> a mean."""


def sandwich_gradients(
    training: Training,
    loss: Loss,
    largest: Architecture,
    others: Sequence[Architecture],
    batch: Batch,
    divergence: Divergence,
) -> tuple[float, float]:
    """Add up the gradients of all sub-networks on a batch; dropout drops in the largest alone.

    Returns the largest's loss, and the others' mean divergence from it.
    """
    sums = torch.zeros(2)
    for images, labels in training.parts(batch):
        logits = training.logits(largest, images)
        own = training.recipe.smoothed(loss, logits, labels)
        training.backward(own)
        teacher, total = logits.detach(), torch.zeros(())
        for arch in others:
            distance = divergence(training.logits(arch, images, regularise=False), teacher)
            training.backward(distance)
            total = total + distance.detach().cpu()
        sums += torch.stack([own.detach().cpu(), total / max(len(others), 1)])
    found, mean = (sums / training.means.accumulate).tolist()
    return found, mean
