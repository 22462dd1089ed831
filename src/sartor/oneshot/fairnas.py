# SPDX-License-Identifier: Apache-2.0
"""FairNAS: train every option of every choice equally often, in each step.

Chu, Zhang, Xu: "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search", ICCV 2021,
arXiv:1907.01845.

The idea: under uniform sampling some options are ahead of others at any time, which the ranking then shows. A step
draws a permutation of the options of each choice, trains the sub-networks that these make up one after another, adds
their gradients, and takes one optimiser step, so that all options have had as many updates at every step.

Differs from the paper:
- Choices of fewer options than the widest begin another permutation; choices that a sub-network leaves inactive are
  not counted, so that options of gated choices are trained less often, though equally often on average.
- The recipe is the one that PA&DA compares it with on NAS-Bench-201 (Lu et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.sampling import fair
from sartor.space import SearchSpace

__all__ = ["RECIPE", "FairNAS"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.05, lr_batch=256, momentum=0.9, weight_decay=2.5e-4,
    schedule="cosine", clip_norm=5.0, label_smoothing=0.0, dropout=None,
)  # fmt: skip


class FairNAS:
    """The learner of FairNAS; a step makes as many passes as the widest choice has options.

    Args: as of `SPOS`; the space must have no constraint, which a fair set could not meet (ValueError).
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if space.constraint is not None:
            raise ValueError("a fair set of sub-networks meets no constraint: train the space without it")
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = float(max(map(len, space.choices.values())))

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the mean loss and the learning rate."""
        archs = fair(self.space, draws(self.seed, self.training.done))
        total = 0.0
        for images, labels in self.training.parts(batch):
            for arch in archs:
                loss = self.training.recipe.smoothed(self.loss, self.training.logits(arch, images), labels)
                self.training.backward(loss)  # gradients add up
                total += loss.item()
        mean = total / (len(archs) * self.training.means.accumulate)
        return {"loss": mean, "learning_rate": self.training.update()}

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
