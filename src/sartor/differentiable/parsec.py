# SPDX-License-Identifier: Apache-2.0
"""PARSEC: a distribution over architectures that moves towards those samples that explain the data best.

Casale, Gordon and Fusi, "Probabilistic Neural Architecture Search", 2019, arXiv:1902.05116. No official code.

The idea: choices are independent categoricals, and training maximises the marginal likelihood of the data over them
(empirical Bayes). A step draws K architectures and runs them one by one, in the memory of one network. Weights and
distribution follow the samples, each as much as its likelihood says.

Differs from the paper:
- The log-likelihood of a batch is its mean over images, divided by a temperature, not the sum: with the sum of a usual
  batch one sample has all the weight. A temperature of 1 / batch size is the sum.
- A part of the search can train the weights alone, with the uniform distribution it starts from (`warm_up`).
- The initial distribution is uniform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.importance import importance_weights, negative_evidence, weighted_gradients
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import derived
from sartor.differentiable.relaxations import draws, log_probability, sample
from sartor.space import SearchSpace

__all__ = ["PARSEC"]

RECIPE = Recipe(alpha_lr=0.03, alpha_betas=(0.9, 0.999), alpha_weight_decay=0.0)


class PARSEC:
    """The learner of PARSEC: its batches are pairs, of the weights' data and of the distribution's.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean negative log-likelihood of predictions (N, K) and labels (N,).
        steps: length of the search.
        seed: of the draws of each step.
        cost: of a sampled network; the paper has none. penalty: how it joins the sample's loss in the distribution's
            weights.
        recipe: see `Recipe`.
        samples: K, for the weights and for the distribution each.
        temperature: the mean log-likelihoods are divided by it.
        warm_up: part of the search in which the distribution does not move.

    Raises ValueError for fewer than two samples, whose weights would say nothing.
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
        penalty: Penalty = add(1.0),  # noqa: B008 - frozen
        recipe: Recipe = RECIPE,
        samples: int = 8,
        temperature: float = 0.1,
        warm_up: float = 0.0,
    ) -> None:
        if samples < 2 or temperature <= 0.0:
            raise ValueError(f"{samples} samples at temperature {temperature}: give at least 2, and one above 0")
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty = cost, penalty
        self.samples, self.temperature, self.warm_up = samples, temperature, warm_up
        self.alphas = Alphas(net, space, scale=0.0, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch, then one of the distribution on the second.

        Returns the weighted loss of the samples, learning rate, entropy, the part of the samples that their weights
        leave effective and, with a cost, the samples' mean cost.
        """
        train, validation = batch
        descent, rate = self.descent, self.descent.learning_rate
        gradients, value = weighted_gradients(self.losses(train), descent.weight_parameters)
        descent.step_weights(gradients)
        effective, cost = self.move(validation)
        descent.done += 1
        told = {"loss": float(value), "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        return told | {"effective": effective} | ({"cost": cost} if self.cost else {})

    def drawn(self, purpose: str) -> list[Tensor]:
        """Return the (C,) positions of K samples of the distribution."""
        generator = draws(self.seed, self.descent.done, f"parsec {purpose}")
        return [sample(self.alphas.logits, generator) for _ in range(self.samples)]

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (log weight, loss) of each sample for the weights: grad_v is the sum of omega_k * grad_v log p."""
        for positions in self.drawn("weights"):
            loss = total_loss(self.net, self.alphas.hard(positions), batch, self.loss)[0]
            self.descent.finite(loss, "weights")
            yield -loss.detach() / self.temperature, loss

    def move(self, batch: Batch) -> tuple[float, float]:
        """Move the distribution by the sum of omega_k * grad log p(a_k); return the effective part and mean cost."""
        several = self.drawn("distribution")
        with torch.no_grad():
            found = [
                total_loss(self.net, self.alphas.hard(one), batch, self.loss, self.cost, self.penalty)
                for one in several
            ]
        log_weights = -torch.stack([loss for loss, _ in found]) / self.temperature
        self.descent.finite(log_weights.sum(), "distribution")
        if self.descent.part >= self.warm_up:
            logs = torch.stack([log_probability(self.alphas.logits, one) for one in several])
            self.descent.architecture(negative_evidence(logs, log_weights))
        omega = importance_weights(log_weights)
        return float(1.0 / omega.square().sum()) / len(several), sum(cost for _, cost in found) / len(several)

    def architecture(self) -> Architecture:
        """Return the mode of the distribution: the most probable option of each choice."""
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
