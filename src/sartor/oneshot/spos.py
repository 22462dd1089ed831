# SPDX-License-Identifier: Apache-2.0
"""SPOS: train one random sub-network at each step, every weight with any combination of the others.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun: "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
ECCV 2020, arXiv:1904.00420. Official code: megvii-model/SinglePathOneShot.

The idea: without weights for the architecture, nothing couples it to the training. Each step trains a single path,
drawn from a fixed prior; weights off the path are left alone, by decay and momentum too. Search comes afterwards and
only runs inference (`sartor.strategies.spos_evolution`), so that limits are met exactly.

Differs from the paper:
- Any space of choices: widths, kernels and depths are drawn like operations. Where a sub-network uses a slice of a
  weight, the rest of that weight has the gradient 0 and decays; a weight of which nothing is used is untouched.
- The prior is an option. The paper's is uniform in each choice; its code draws a bin of costs uniformly, and then a
  network of that bin, which is not uniform in each choice.
- Norms are the network's own; the code's have no scale and shift.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot._binned import Bins
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.space import SearchSpace

__all__ = ["RECIPE", "SPOS", "binned"]

Prior = Callable[[SearchSpace, random.Random], Architecture]
"""Draws a sub-network of a space."""

RECIPE = Recipe(
    optimizer="sgd", lr=0.5, lr_batch=1024, momentum=0.9, weight_decay=4e-5,
    schedule="linear", label_smoothing=0.1, dropout=None,
)  # fmt: skip
"""That of the official code."""


def binned(bins: Bins) -> Prior:
    """Return the prior of the official code: one of the bins of a cost, all alike, and a network within it."""

    def prior(space: SearchSpace, rng: random.Random) -> Architecture:
        return bins.sample(rng.choice(bins.met), rng)

    return prior


class SPOS:
    """The learner of SPOS; with the uniform prior it is plain uniform sampling.

    Args:
        net: a network with choices.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        prior: "uniform", every choice for itself; or a function of the space and randomness that draws a sub-network,
            such as `binned`, which balances costs.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks, each step's for itself.

    Raises ValueError for an unknown prior.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        prior: Literal["uniform"] | Prior = "uniform",
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if prior != "uniform" and not callable(prior):
            raise ValueError(f"prior={prior!r} is unknown: give 'uniform', or a function (space, rng) -> architecture")
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.prior: Prior = SearchSpace.sample if prior == "uniform" else prior
        self.passes_per_step = 1.0
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the path's loss and the learning rate."""
        arch = self.prior(self.space, draws(self.seed, self.training.done))  # a ~ Gamma(A)
        total = 0.0
        for images, labels in self.training.parts(batch):
            loss = self.training.recipe.smoothed(self.loss, self.training.logits(arch, images), labels)
            self.training.backward(loss)  # L(N(a, W(a))): weights off the path have no gradient
            total += loss.item()
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
