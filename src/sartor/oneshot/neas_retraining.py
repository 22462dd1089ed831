# SPDX-License-Identifier: Apache-2.0
"""Training of one ensemble by itself: each member has its loss, and the trunk the mean of their gradients.

As `sartor.oneshot.supervised`, for the network that NEAS found: `Retraining(extract(learner.net, arch), ...)`. The
published retraining sums the members' losses, and divides the gradient that enters the trunk by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.oneshot._ensemble import JoinedNetwork
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training

__all__ = ["Retraining"]


class Retraining:
    """The learner of a plain ensemble.

    Args:
        net: what was extracted; `sartor.recipes.training.reset_parameters` gives it new weights.
        loss: mean loss of predictions (N, K) and labels (N,), of each member.
        steps: length of the training. batch_size: samples per step.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
    """

    def __init__(
        self,
        net: JoinedNetwork,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        means: Means = Means(),  # noqa: B008 - frozen
    ) -> None:
        self.net, self.loss = net, loss
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = float(max(len(net.heads), 1))

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the members' mean loss, and the rate."""
        total, smoothed = 0.0, self.training.recipe.smoothed
        for images, labels in self.training.parts(batch):
            with self.net.separated():
                logits = self.training.logits({}, images)
            losses = torch.stack([smoothed(self.loss, member, labels) for member in logits.unbind(1)])
            self.training.backward(losses.sum())
            total += float(losses.detach().mean())
        return {"loss": total / self.training.means.accumulate, "learning_rate": self.training.update()}

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; each member counts as a pass."""
        effort = self.training.effort
        return effort._replace(passes=effort.passes * int(self.passes_per_step))

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
