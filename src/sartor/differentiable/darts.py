# SPDX-License-Identifier: Apache-2.0
"""DARTS: softmax over operations, with architecture and weights in turns.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv:1806.09055. Official code:
quark0/darts.

The choice of an operation becomes a mixture of all, weighed by a softmax over logits alpha. The weights w go down the
loss of the training images and alpha goes down that of the validation images, by turns; in the second order alpha's
gradient sees the step that w is about to take. The architecture is read off alpha: each node keeps its two strongest
edges, each with its strongest operation, "none" never.

Differs from the paper:
- One table of logits for each choice of any space; cells that share their choices, as those of `spaces.darts` do, share
  the logits. A choice that is no edge of a cell takes its strongest option.
- An expected cost may join the validation loss.
- In the second order, batch-norm statistics do not see the images of the four passes that only serve the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable._unrolled import unrolled
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.space import SearchSpace

__all__ = ["DARTS"]

RECIPE = Recipe()  # the paper's, for CIFAR-10: batches of 64, 50 epochs on half of the images


class DARTS:
    """The learner of DARTS; a batch is one of training images and one of validation images.

    Args:
        net: the network with choices; `spaces.darts.DartsNetwork` is the paper's.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which the learning rate follows.
        seed: of the initial logits.
        cost: expected cost of an assignment; penalty: how it joins the loss of the alphas.
        recipe: of weights and alphas.
        order: 1, or 2 for the gradient through one step of the weights.
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
        order: Literal[1, 2] = 1,
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"order is {order}: it is 1, or 2 for the gradient through one step of the weights")
        self.net, self.loss, self.cost, self.penalty, self.order = net, loss, cost, penalty, order
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one step on alpha, then one on w (algorithm 1); images (N, C, H, W) and labels (N,) of each half.

        Returns the training loss, the validation loss with the cost joined, the learning rate and alpha's entropy.
        """
        train, validation = batch
        rate, cost = self.descent.learning_rate, 0.0

        def train_loss() -> Tensor:
            return total_loss(self.net, self.mixture(), train, self.loss)[0]

        def validation_loss() -> Tensor:
            nonlocal cost
            value, cost = total_loss(self.net, self.mixture(), validation, self.loss, self.cost, self.penalty)
            return value

        # 1. Update alpha by descending dL_val(w - xi dL_train(w, alpha)/dw, alpha)/dalpha; xi = 0 in the first order
        if self.order == 1:
            value = self.descent.architecture(validation_loss())
        else:
            value, gradients = unrolled(self.descent, train_loss, validation_loss)
            self.descent.step_architecture(gradients)
        # 2. Update w by descending dL_train(w, alpha)/dw
        fixed = self.mixture(fixed=True)
        loss = self.descent.weights(total_loss(self.net, fixed, train, self.loss)[0])
        self.descent.done += 1
        found = {"loss": loss, "validation_loss": value, "learning_rate": rate}
        found["entropy"] = float(self.alphas.entropy().detach())
        return found | ({"cost": cost} if self.cost is not None else {})

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return the mixture of equation 2, all edges of a node kept; `fixed`, without a gradient for the alphas."""
        return self.alphas.mixture(fixed)

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now (section 2.4)."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the alphas, the optimisers and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
