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
    *,
    label_share: float = 0.0,
    dropout: bool = False,
    decay: bool = True,
) -> tuple[float, float]:
    """Add up the gradients of all sub-networks on a batch.

    label_share: part of the loss of the others that is of the labels.
    dropout: whether it drops in the others, too. decay: whether what the largest does not use decays, too.

    Returns the largest's loss, and the others' mean divergence from it.
    """
    sums = torch.zeros(2)
    for images, labels in training.parts(batch):
        logits = training.logits(largest, images)
        own = training.recipe.smoothed(loss, logits, labels)
        training.backward(own)
        if not decay:
            training.decay_what_has_gradients()  # now, when only what the largest uses has a gradient
        teacher, total = logits.detach(), torch.zeros(())
        for arch in others:
            logits = training.logits(arch, images, regularise=dropout)
            distance = divergence(logits, teacher)
            training.backward(_mixed(distance, loss, logits, labels, label_share))
            total = total + distance.detach().cpu()
        sums += torch.stack([own.detach().cpu(), total / max(len(others), 1)])
    found, mean = (sums / training.means.accumulate).tolist()
    return found, mean


def _mixed(distance: Tensor, loss: Loss, logits: Tensor, labels: Tensor, label_share: float) -> Tensor:
    return (1.0 - label_share) * distance + label_share * loss(logits, labels) if label_share else distance
