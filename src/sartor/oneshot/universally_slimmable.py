# SPDX-License-Identifier: Apache-2.0
"""Universally slimmable networks: one set of weights that runs at any width of a range.

Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019, arXiv:1903.05134;
https://github.com/JiahuiYu/slimmable_networks.

The idea: what a feature sums up over k channels lies between what it sums up over the fewest and over all, so the error
at any width is bounded by those at the two ends. Each step therefore trains the widest and the narrowest network, and a
few between (the sandwich rule); the widest on the labels, all others on what it predicts (in-place distillation). Batch
statistics are computed after the training, for each width that is used.

Differs from the paper:
- Any space is slimmed: a width stands for the sub-network whose every choice is at the option nearest to that multiple
  of its largest, so that kernels, depths and resolutions shrink along. In a space of widths alone it is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._sandwich import sandwich_gradients
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.divergences import soft_cross_entropy
from sartor.oneshot.sampling import at_random_width, at_width, at_widths
from sartor.space import SearchSpace

__all__ = ["RECIPE", "UniversallySlimmable"]

RECIPE = Recipe(
    optimizer="sgd",
    nesterov=True,
    lr=0.5,
    lr_batch=1024,
    schedule="linear",
    weight_decay=1e-4,
    label_smoothing=0.0,
    dropout=None,
)
"""The authors', for MobileNets on ImageNet."""


class UniversallySlimmable:
    """The learner of universally slimmable networks. Deploy by `evaluation.specialised`, which calibrates batch norms.

    Args:
        net: a network with choices.
        space: the sub-networks that widths are taken from, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        networks: per step, n, at least the two ends; the paper's 4.
        lowest: the smallest multiplier; the largest is 1.
        uniform: whether a network between has one width for all choices, or one for each.
        recipe: optimiser, learning rate and regularisation. means: how to compute.
        seed: decides the widths; each step draws from its own seed.

    Raises ValueError for fewer than two networks, for a multiplier out of range, and where a constraint of the space
    excludes one of the two ends.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        networks: int = 4,
        lowest: float = 0.25,
        uniform: bool = True,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if networks < 2 or not 0 < lowest < 1:
            raise ValueError(f"networks is {networks} and lowest {lowest}: give at least 2, and between 0 and 1")
        self.net, self.space, self.loss = net, space, loss
        self.networks, self.lowest, self.uniform, self.seed = networks, lowest, uniform, seed
        self.ends = at_width(space, 1.0), at_width(space, lowest)
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = float(networks)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,).

        Returns the widest network's loss, the others' mean soft cross-entropy with it, and the learning rate.
        """
        loss, distillation = self.backward(batch, self.drawn())
        return {"loss": loss, "distillation": distillation, "learning_rate": self.training.update()}

    def drawn(self) -> list[Architecture]:
        """Return this step's sub-networks: the widest, the narrowest, and random ones."""
        rng = draws(self.seed, self.training.done)
        between = at_random_width if self.uniform else at_widths
        return [*self.ends, *(between(self.space, rng, self.lowest) for _ in range(self.networks - 2))]

    def backward(self, batch: tuple[Tensor, Tensor], archs: list[Architecture]) -> tuple[float, float]:
        """Add up the gradients of the sandwich; return the widest's loss and the others' mean distillation."""
        widest, *others = archs
        return sandwich_gradients(self.training, self.loss, widest, others, batch, soft_cross_entropy, dropout=True)

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
