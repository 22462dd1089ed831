# SPDX-License-Identifier: Apache-2.0
"""The training recipe that learners share: optimiser, learning rate and regularisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sartor.rmsprop import RMSProp

Loss = Callable[[Tensor, Tensor], Tensor]
"""Predictions (N, K) and labels (N,) -> the mean loss, a scalar."""


@dataclass(frozen=True)
class Recipe:
    """How weights are trained. The defaults are those of BigNAS (Yu et al., ECCV 2020).

    A supernet and a baseline that are to be compared take one recipe.

    Args:
        lr: initial learning rate at a batch of 4096 samples. It scales with the root of the batch, as suits
            an optimiser that divides by the gradient's size (Malladi et al., NeurIPS 2022, arXiv:2205.10287);
            linear scaling would leave small batches with steps that are far too small.
        decay: what the learning rate is multiplied with at each decay.
        decays: number of decays, evenly spread over the training: every 2.4 of 360 epochs in the paper's
            family. So the schedule keeps its shape in a training of any length.
        final_lr: part of the initial learning rate below which it never falls (the constant ending).
        schedule: "exponential", which the three above describe, or "cosine": half a cosine down to zero, which uses
            a training of minutes better (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983).
        momentum: of the optimiser.
        rho: decay of the optimiser's running mean of squared gradients.
        eps: added to that mean before the root is taken.
        label_smoothing: weight of the uniform distribution in the labels.
        dropout: probability set in the network's dropout layers; None leaves them as they are.
        weight_decay: factor of half the squared norm of all weights but biases and norms.
    """

    lr: float = 0.256
    decay: float = 0.97
    decays: float = 150.0
    final_lr: float = 0.05
    schedule: Literal["exponential", "cosine"] = "exponential"
    momentum: float = 0.9
    rho: float = 0.9
    eps: float = 1e-3
    label_smoothing: float = 0.1
    dropout: float | None = 0.2
    weight_decay: float = 1e-5

    def learning_rate(self, step: int, steps: int, batch_size: int) -> float:
        """Return the learning rate of a step: exponential decay in stairs, then the constant ending; or a cosine."""
        peak, part = self.lr * math.sqrt(batch_size / 4096), step / max(steps, 1)
        if self.schedule == "cosine":
            return peak * (1 + math.cos(math.pi * part)) / 2
        return peak * max(self.decay ** math.floor(self.decays * part), self.final_lr)

    def optimizer(self, net: nn.Module) -> RMSProp:
        """Return the optimiser of a network's weights; its learning rate is set at each step."""
        return RMSProp(list(net.parameters()), momentum=self.momentum, rho=self.rho, eps=self.eps)

    def smoothed(self, loss: Loss, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return `loss` under label smoothing: for cross-entropy, torch's `label_smoothing` exactly."""
        hard = loss(predictions, labels)
        if not self.label_smoothing:
            return hard
        uniform = -predictions.log_softmax(1).mean()
        return (1 - self.label_smoothing) * hard + self.label_smoothing * uniform

    def dropouts(self, net: nn.Module) -> list[nn.Module]:
        """Return the network's dropout layers, set to this recipe's probability."""
        layers = [module for module in net.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        for layer in layers:
            layer.p = layer.p if self.dropout is None else self.dropout
        return list(layers)

    def decay_weights(self, parameters: list[nn.Parameter]) -> None:
        """Add the gradient of the L2 term to those parameters that have a gradient."""
        pairs = [(p.grad, p.detach()) for p in parameters if p.grad is not None and p.dim() > 1]
        if self.weight_decay and pairs:
            gradients, weights = map(list, zip(*pairs, strict=True))
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)
