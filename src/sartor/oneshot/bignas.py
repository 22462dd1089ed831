# SPDX-License-Identifier: Apache-2.0
"""BigNAS: train all sub-networks of a supernet jointly, once, so that each is deployable as it is.

Yu, Jin, Liu, Bender, Kindermans, Tan, Huang, Song, Pang, Le: "BigNAS: Scaling Up Neural Architecture Search
with Big Single-Stage Models", ECCV 2020, arXiv:2003.11142. No official code.

The idea: each step trains the largest sub-network on the labels, and the smallest and a few random ones on
what the largest predicts (the sandwich rule with in-place distillation); only the largest is regularised.

Differs from the paper:
- Decay and constant ending follow the length of the training, not a number of epochs; see `Recipe`.
- The learning rate scales with the root of the batch size; see `Recipe`.
- The loss of the others may have a part of the labels (`label_share`, 0 by default).
- Coarse-to-fine selection belongs to the search, not to this file.
The rest of the paper's recipe is the network's: residual blocks start as the identity (the scale of their
last norm is 0) and every block has a skip. Batch-norm statistics kept in the supernet are a mixture over
sub-networks and serve none: extract, then `recalibrate_batchnorm`.
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
from sartor.oneshot.divergences import kl
from sartor.oneshot.sampling import ends, sandwich
from sartor.space import SearchSpace

__all__ = ["BigNAS"]


class BigNAS:
    """The learner of BigNAS.

    Args:
        net: a network with choices; its dropout layers get the recipe's probability.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        n_random: random sub-networks per step beside the largest and the smallest.
        label_share: part of the loss of the others that is of the labels; the paper's 0 is distillation alone. In a
            training too short for the largest to become a good teacher, 0.5 serves the others much better.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the random sub-networks; each step draws from its own seed, so that the workers of a
            distributed training and a resumed run draw the same.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        n_random: int = 2,
        label_share: float = 0.0,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.loss = net, space, loss
        self.n_random, self.label_share, self.seed = n_random, label_share, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.largest, _ = ends(space)
        self.passes_per_step = 2.0 + n_random

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,): the paper's training algorithm.

        Returns the largest sub-network's loss, the others' mean divergence from it, and the learning rate.
        """
        loss, distillation = self.backward(batch, self.others())
        return {"loss": loss, "distillation": distillation, "learning_rate": self.training.update()}

    def others(self) -> list[Architecture]:
        """Return this step's sub-networks beside the largest: the smallest and `n_random` random ones."""
        return sandwich(self.space, draws(self.seed, self.training.done), self.n_random)[1:]

    def backward(self, batch: tuple[Tensor, Tensor], others: list[Architecture]) -> tuple[float, float]:
        """Add up the gradients of the sandwich; return the largest's loss and the others' mean divergence."""
        share = self.label_share
        return sandwich_gradients(
            self.training, self.loss, self.largest, others, batch, kl, label_share=share, decay=False
        )

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
