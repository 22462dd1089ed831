# SPDX-License-Identifier: Apache-2.0
"""Plain supervised training of one network with the recipe of the supernets: the fair baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training

__all__ = ["Supervised"]


class Supervised:
    """The learner of one network without choices, such as an extracted one.

    Args:
        net: the network; its dropout layers get the recipe's probability, and images its resolution if it
            has one.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),  # noqa: B008 - frozen
    ) -> None:
        self.net, self.loss = net, loss
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the loss and the learning rate."""
        total = 0.0
        for images, labels in self.training.parts(batch):
            loss = self.training.recipe.smoothed(self.loss, self.training.logits({}, images), labels)
            self.training.backward(loss)
            total += float(loss.detach())
        return {"loss": total / self.training.means.accumulate, "learning_rate": self.training.update()}

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
