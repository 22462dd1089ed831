# SPDX-License-Identifier: Apache-2.0
"""FBNet: a stochastic supernet and a table of latencies find the network for one device.

Wu, Dai, Zhang, Wang, Sun, Wu, Tian, Vajda, Jia and Keutzer, "FBNet: Hardware-Aware Efficient ConvNet Design via
Differentiable Neural Architecture Search", CVPR 2019, arXiv:1812.03443. No official code of the search.

The idea: each layer has an independent choice of blocks, with a Gumbel-softmax over them as its mask. The same mask
weighs the blocks' outputs and their latencies, so that one loss, CE * alpha * log(LAT)^beta, trains both. After the
search several networks are sampled from the distribution, and the best of them is kept.

Differs from the paper:
- An epoch is a 1/90 of the steps. Weights and theta take turns within it, or within five steps if it is shorter: four
  fifths train the weights on the first batch of the pair, the last fifth trains theta on the second. While theta is
  frozen, all steps train the weights.
- The weights' steps leave the latency out: it does not depend on the weights, and its factor would only scale their
  learning rate, beyond all bounds for a large beta.
- One Gumbel draw serves a batch.
- Sampled networks are compared by any score, such as their accuracy with the supernet's weights; the paper trains each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, logits_of
from sartor.differentiable.penalties import Penalty, mul_log
from sartor.differentiable.readout import derived, sample_and_select
from sartor.differentiable.relaxations import concrete, draws
from sartor.space import SearchSpace

__all__ = ["FBNet"]

RECIPE = Recipe(
    lr=0.1,
    lr_min=0.0,
    weight_decay=1e-4,
    clip=math.inf,
    alpha_lr=0.01,
    alpha_betas=(0.9, 0.999),
    alpha_weight_decay=5e-4,
)
SHORTEST_EPOCH = 5


class FBNet:
    """The learner of FBNet: its batches are pairs, of the weights' 80 % of the data and of theta's 20 %.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, `epochs` in all.
        seed: of the initial logits and of the draws of each step.
        cost: expected latency of the weights of all choices, above 1 (microseconds), such as `sartor.costs.CostTable`.
        penalty: how the latency joins the loss; the paper's is 0.2 * log(LAT)^0.6 (equation 2).
        recipe: see `Recipe`.
        epochs, frozen: epochs in all, and those at the beginning in which theta does not change.
        temperature, decay: tau in the first epoch, and its factor from each epoch to the next.

    Raises ValueError where no epoch is left for theta.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        seed: int = 0,
        cost: Cost | None = None,
        penalty: Penalty = mul_log(0.2, 0.6),  # noqa: B008 - frozen
        recipe: Recipe = RECIPE,
        epochs: int = 90,
        frozen: int = 10,
        temperature: float = 5.0,
        decay: float = 0.956,
    ) -> None:
        if not 0 <= frozen < epochs:
            raise ValueError(f"theta is frozen for {frozen} of {epochs} epochs: leave it at least one")
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty = cost, penalty
        self.epochs, self.frozen, self.first, self.decay = epochs, frozen, temperature, decay
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the next step."""
        return self.descent.done * self.epochs // max(self.descent.steps, 1)

    @property
    def temperature(self) -> float:
        """The temperature tau of the next step."""
        return self.first * self.decay**self.epoch

    @property
    def trains_theta(self) -> bool:
        """Whether the next step is one of theta: in the last fifth of an epoch, once theta is not frozen."""
        length = max(SHORTEST_EPOCH, self.descent.steps // self.epochs)
        return self.epoch >= self.frozen and self.descent.done % length >= math.ceil(0.8 * length)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch, or of theta on the second.

        Returns the loss without the latency, learning rate, entropy, tau and, with a cost, the expected latency.
        """
        descent, theta = self.descent, self.trains_theta
        temperature, rate = self.temperature, descent.learning_rate
        images, labels = batch[1] if theta else batch[0]
        assignment = self.alphas.assignment(self.masks() if theta else self.masks().detach())
        loss = self.loss(logits_of(self.net, assignment, images), labels)
        latency = self.cost(assignment) if self.cost else loss.new_zeros(())
        if theta:
            descent.architecture(self.penalty(loss, latency) if self.cost else loss)  # equation 2
        else:
            descent.weights(loss)
        descent.done += 1
        told = {"loss": float(loss.detach()), "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        return told | {"temperature": temperature} | ({"cost": float(latency.detach())} if self.cost else {})

    def masks(self) -> Tensor:
        """Return this step's (C, K) masks m, drawn at the temperature tau."""
        generator = draws(self.seed, self.descent.done, "fbnet")
        return concrete(self.alphas.logits, self.temperature, generator)

    def select(self, score: Callable[[Architecture], float], count: int = 6, seed: int = 0) -> Architecture:
        """Return the best by `score` of `count` networks sampled from the distribution, and of the most probable."""
        return sample_and_select(self.alphas, draws(seed, 0, "fbnet select"), count, score)

    def architecture(self) -> Architecture:
        """Return the most probable block of each layer."""
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
