# SPDX-License-Identifier: Apache-2.0
"""SNAS: sample architectures from a relaxed distribution, and train it and the weights by one loss.

Xie, Zheng, Liu and Lin, "SNAS: Stochastic Neural Architecture Search", ICLR 2019, arXiv:1812.09926.

The idea: search is the minimisation of E over Z of L(theta, Z) + eta * C(Z), with Z one-hot for each choice. The
concrete distribution relaxes Z, so that one backward pass trains the weights and the distribution, and every choice is
given its own part of the credit. As the temperature falls, Z becomes one-hot and the network the one that is read out.

Differs from the paper:
- The temperature falls linearly between the paper's ends.
- The cost is any expected cost of the weights, of which the paper's are parameters, FLOPs and memory accesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, logits_of
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import derived
from sartor.differentiable.relaxations import concrete, draws, linear_between
from sartor.space import SearchSpace

__all__ = ["SNAS"]

RECIPE = Recipe()  # DARTS's, clipping included


class SNAS:
    """The learner of SNAS: its batches are of the training data alone.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search.
        seed: of the initial logits and of the draws of each step.
        cost: expected cost of the weights of all choices, such as `sartor.costs.CostTable`.
        penalty: how the cost joins the loss; the paper's is `penalties.add(eta)`.
        recipe: see `Recipe`.
        temperatures: of the concrete distribution, first and last.
    """

    needs = "single"

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
        temperatures: tuple[float, float] = (1.0, 0.03),
    ) -> None:
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty = cost, penalty
        self.temperatures = temperatures
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    @property
    def temperature(self) -> float:
        """The temperature lambda of the next step."""
        return linear_between(*self.temperatures, self.descent.part)

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step of the weights and of the distribution on images (N, C, H, W) and labels (N,).

        Returns the loss without the cost, learning rate, entropy, temperature and, with a cost, the cost.
        """
        descent = self.descent
        temperature, rate = self.temperature, descent.learning_rate
        z = concrete(self.alphas.logits, temperature, draws(self.seed, descent.done, "snas"))
        assignment = self.alphas.assignment(z)
        loss = self.loss(logits_of(self.net, assignment, batch[0]), batch[1])
        cost = self.cost(assignment) if self.cost else loss.new_zeros(())
        descent.both(self.penalty(loss, cost) if self.cost else loss)  # single level: one loss, one backward pass
        descent.done += 1
        told = {"loss": float(loss.detach()), "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        return told | {"temperature": temperature} | ({"cost": float(cost.detach())} if self.cost else {})

    def sampled(self, generator_seed: int = 0) -> dict[str, Any]:
        """Return the assignment of one draw at the temperature reached: the network that the search ends with."""
        generator = draws(self.seed, generator_seed, "snas sampled")
        z: Tensor = concrete(self.alphas.logits.detach(), self.temperature, generator)
        return dict(self.alphas.assignment(z))

    def architecture(self) -> Architecture:
        """Return the most probable option of each choice; it can inherit the weights."""
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
