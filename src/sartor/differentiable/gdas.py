# SPDX-License-Identifier: Apache-2.0
"""GDAS: one operation for each choice, drawn with Gumbel noise, and a gradient for the logits of all.

Dong and Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019, arXiv:1910.04465; code in
D-X-Y/AutoDL-Projects.

The idea: DARTS runs all operations. GDAS draws one by the Gumbel-max trick and runs that one alone, so that a step
costs what one network costs. The soft Gumbel probabilities lend the draw their gradient.

Differs from the paper:
- An expected cost may join the loss of the architecture step; the paper has none.
- As an option, `mix=gated`, operations that were not drawn tell what they would have done: they run in the backward
  pass of the architecture step, one after the other.
The paper's gain from norms without running statistics is the network's: build it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.mixers import Mix, mixed, zero_valued
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import derived
from sartor.differentiable.relaxations import draws, linear_between, straight_through
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["GDAS"]

RECIPE = Recipe(nesterov=True, weight_decay=5e-4)  # the rest as DARTS's: 0.025 to 0.001, Adam 3e-4 with decay 1e-3


class GDAS:
    """The learner of GDAS: its batches are pairs, of the weights' data and of the architecture's.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search.
        seed: of the initial logits and of the draws of each step.
        cost: expected cost of the weights of all choices; of a draw, it is the cost of that network.
        penalty: how the cost joins the loss of the architecture step.
        recipe: see `Recipe`.
        temperatures: tau, first and last, along a line.
        mix: what the logits of operations that were not drawn learn from. `mixers.zero_valued` is the published one,
            the gradient of their weight alone; `mixers.gated` has the gradient of the straight-through draw, in the
            memory of one path and the time of a forward pass of all.
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
        temperatures: tuple[float, float] = (10.0, 0.1),
        mix: Mix = zero_valued,
    ) -> None:
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty, self.mix = cost, penalty, mix
        self.temperatures = temperatures
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    @property
    def temperature(self) -> float:
        """The temperature tau of the next step."""
        return linear_between(*self.temperatures, self.descent.part)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch, then one of the logits on the second.

        Returns the loss of the weights, learning rate, entropy, tau and, with a cost, the cost of the second draw.
        """
        train, validation = batch
        descent, temperature, rate = self.descent, self.temperature, self.descent.learning_rate
        hard = self.alphas.hard(self.draw("weights").argmax(1))
        loss = descent.weights(total_loss(self.net, hard, train, self.loss)[0])
        assignment = mixed(self.alphas.assignment(self.draw("alphas")), self.mix)  # one path runs
        with activated(self.net, assignment):  # in the backward pass too, if gates run the others there
            value, cost = total_loss(self.net, assignment, validation, self.loss, self.cost, self.penalty)
            descent.architecture(value)
        descent.done += 1
        told = {"loss": loss, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        return told | {"temperature": temperature} | ({"cost": cost} if self.cost else {})

    def draw(self, purpose: str) -> Tensor:
        """Return (C, K) one-hot weights of this step, with the gradient of the soft ones."""
        generator = draws(self.seed, self.descent.done, f"gdas {purpose}")
        return straight_through(self.alphas.logits, self.temperature, generator)

    def architecture(self) -> Architecture:
        """Return the most probable option of each choice; of a cell's node the two strongest edges."""
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
