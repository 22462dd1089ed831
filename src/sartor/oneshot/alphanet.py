# SPDX-License-Identifier: Apache-2.0
"""AlphaNet: distil a supernet's sub-networks by a divergence that punishes too much certainty as well as too little.

Wang, Gong, Li, Liu and Chandra: "AlphaNet: Improved Training of Supernets with Alpha-Divergence", ICML 2021,
arXiv:2102.07954. Official code: facebookresearch/AlphaNet.

The idea: distillation by KL(teacher || student) hardly punishes a student for being less certain than its teacher. A
divergence D_alpha punishes that with a negative alpha, and the opposite with a positive one; for each sample, the
larger of the two is the loss. All else is the sandwich of BigNAS, the random sub-networks drawn uniformly.

Differs from the paper:
- Drop-connect is the network's, if it has any.
- alpha = 0 can be given; in the official code a zero means the default.
- The learning rate's warm-up (5 of 360 epochs) and cosine follow the length of the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._sandwich import sandwich_gradients
from sartor.oneshot._training import Batch, Effort, Means, Training, draws
from sartor.oneshot.divergences import adaptive_alpha_divergence
from sartor.oneshot.sampling import ends, uniform
from sartor.space import SearchSpace

__all__ = ["RECIPE", "AlphaNet"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.1, lr_batch=256, momentum=0.9, nesterov=True, weight_decay=1e-5,
    schedule="cosine", warmup=5 / 360, clip_value=1.0, label_smoothing=0.1, dropout=0.2,
)  # fmt: skip
"""That of AttentiveNAS. Gradients are clipped by value, which a negative alpha needs."""


class AlphaNet:
    """The learner of AlphaNet.

    Args:
        net: a network with choices; its dropout layers get the recipe's probability.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        alpha_min, alpha_max: of the two divergences. clip: the largest importance ratio (p / q)^alpha that counts.
        sampled: random sub-networks of a step beside the largest and the smallest.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks, each step's for itself.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        alpha_min: float = -1.0,
        alpha_max: float = 1.0,
        clip: float = 5.0,
        sampled: int = 2,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.loss, self.seed, self.sampled = net, space, loss, seed, sampled
        self.divergence = partial(adaptive_alpha_divergence, least=alpha_min, most=alpha_max, clip=clip)
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.largest, self.smallest = ends(space)
        self.passes_per_step = 2.0 + sampled

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,).

        Returns the largest sub-network's loss, the others' mean divergence from it, and the learning rate.
        """
        others = [*uniform(self.space, draws(self.seed, self.training.done), self.sampled), self.smallest]
        loss, distillation = sandwich_gradients(self.training, self.loss, self.largest, others, batch, self.divergence)
        return {"loss": loss, "distillation": distillation, "learning_rate": self.training.update()}

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
