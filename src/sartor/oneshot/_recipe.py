# SPDX-License-Identifier: Apache-2.0
"""The training recipe that learners share: optimiser, learning rate and regularisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sartor import distributed
from sartor.optimizers import LARS, RMSProp

Loss = Callable[[Tensor, Tensor], Tensor]
"""Predictions (N, K) and labels (N,) -> the mean loss, a scalar."""


@dataclass(frozen=True)
class Recipe:
    """How weights are trained. The defaults are those of BigNAS (Yu et al., ECCV 2020).

    A supernet and a baseline that are to be compared take one recipe.

    Args:
        optimizer: "rmsprop", "sgd", "adam", "adamw" or "lars".
        lr: initial learning rate at a batch of `lr_batch` samples. It scales with the root of the batch, as suits
            an optimiser that divides by the gradient's size (Malladi et al., NeurIPS 2022, arXiv:2205.10287);
            linear scaling would leave small batches with steps that are far too small. That of SGD and of LARS
            scales linearly (Goyal et al., 2017, arXiv:1706.02677).
        lr_batch: the batch that `lr` belongs to.
        warmup: share of the steps in which the learning rate rises from 0 to its peak.
        decay: what the learning rate is multiplied with at each decay.
        decays: number of decays, evenly spread over the training: every 2.4 of 360 epochs in the paper's
            family. So the schedule keeps its shape in a training of any length.
        final_lr: part of the initial learning rate below which it never falls (the constant ending).
        schedule: "exponential", which the three above describe; "cosine": half a cosine down to zero, which uses
            a training of minutes better (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983); "linear", down to
            zero; or "constant".
        momentum: of RMSProp, SGD and LARS.
        nesterov: of SGD.
        rho: decay of RMSProp's running mean of squared gradients.
        eps: added to that mean before the root is taken; Adam's own.
        betas: of Adam and AdamW.
        clip_norm: the largest norm of all gradients together; None for any.
        clip_value: the largest size of each entry of a gradient; None for any.
        label_smoothing: weight of the uniform distribution in the labels.
        dropout: probability set in the network's dropout layers; None leaves them as they are.
        weight_decay: factor of half the squared norm of all weights but biases and norms; of AdamW the share of a
            weight, times the learning rate, that a step takes away, apart from the gradient (Loshchilov and Hutter,
            ICLR 2019, arXiv:1711.05101).
    """

    lr: float = 0.256
    decay: float = 0.97
    decays: float = 150.0
    final_lr: float = 0.05
    schedule: Literal["exponential", "cosine", "linear", "constant"] = "exponential"
    momentum: float = 0.9
    rho: float = 0.9
    eps: float = 1e-3
    label_smoothing: float = 0.1
    dropout: float | None = 0.2
    weight_decay: float = 1e-5
    optimizer: Literal["rmsprop", "sgd", "adam", "adamw", "lars"] = "rmsprop"
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    lr_batch: int = 4096
    warmup: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def learning_rate(self, step: int, steps: int, batch_size: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then the schedule over what remains."""
        times = batch_size / self.lr_batch
        peak = self.lr * (times if self.optimizer in ("sgd", "lars") else math.sqrt(times))
        rising = self.warmup * steps
        if step < rising:
            return peak * (step + 1) / (rising + 1)
        return peak * self._part(min((step - rising) / max(steps - rising, 1), 1.0))  # and stays, beyond the end

    def _part(self, part: float) -> float:
        """Return the share of the peak when a share `part` of the schedule is over."""
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * part)) / 2
        if self.schedule == "linear":
            return 1 - part
        if self.schedule == "constant":
            return 1.0
        return max(self.decay ** math.floor(self.decays * part), self.final_lr)

    def optimizer_of(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these weights; its learning rate is set at each step, its decay is `decay_weights`.

        Raises ValueError for an unknown name.
        """
        group = {"params": list(parameters)}
        if self.optimizer == "rmsprop":
            return RMSProp(list(parameters), momentum=self.momentum, rho=self.rho, eps=self.eps)
        if self.optimizer == "sgd":
            return torch.optim.SGD([group], lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, foreach=True)
        if self.optimizer in ("adam", "adamw"):
            # One pass over the weights: on a processor 3.4 ms for 5M of them, where the other forms take 13 and 24.
            # Not for weights that are divided among workers.
            fused = not any(map(distributed.is_sharded, parameters))
            kind = {"fused": fused, "foreach": not fused}
            return torch.optim.Adam([group], lr=self.lr, betas=self.betas, eps=self.eps, **kind)
        if self.optimizer == "lars":
            return LARS(list(parameters), momentum=self.momentum)
        raise ValueError(f"optimizer={self.optimizer!r} is unknown: give 'rmsprop', 'sgd', 'adam', 'adamw' or 'lars'")

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

    def decay_weights(self, parameters: Sequence[nn.Parameter], rate: float) -> None:
        """Let those parameters that have a gradient decay: by the gradient of the L2 term, or at `rate` for AdamW."""
        pairs = [(p.grad, p.detach()) for p in parameters if p.grad is not None and p.dim() > 1]
        if not self.weight_decay or not pairs:
            return
        gradients, weights = map(list, zip(*pairs, strict=True))
        if self.optimizer == "adamw":
            torch._foreach_mul_(weights, 1.0 - rate * self.weight_decay)
        else:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)

    def clip(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clip the gradients, by their norm or by each value."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm, foreach=True)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value, foreach=True)


FINE_TUNING = Recipe(
    optimizer="adamw", lr=5e-5, lr_batch=32, schedule="linear", warmup=0.1, weight_decay=0.01, eps=1e-8, clip_norm=1.0,
    label_smoothing=0.0, dropout=None,
)  # fmt: skip
"""The usual fine-tuning of a pretrained transformer, with its own dropout (Devlin et al., "BERT", NAACL 2019)."""
