# SPDX-License-Identifier: Apache-2.0
"""RARTS: relaxed architecture search with two copies of the weights, first order only.

Xue, Qi, Xin: "RARTS: An Efficient First-Order Relaxed Architecture Search Method", IEEE Access 2022,
arXiv:2008.03901. No official code.

First-order DARTS does not see how the weights depend on the architecture, and second-order DARTS pays for it. RARTS
splits the network instead: the weights y are trained on the validation half, the weights w on the training half, a
quadratic term ties them, and both share one set of alphas. So the alphas get gradients from all data, and each step
goes down one function, the relaxed Lagrangian

    L_r(y, w, alpha) = L_val(y, alpha) + lambda * L_train(w, alpha) + beta / 2 * |y - w|^2.

Differs from the paper:
- The published lambda and beta could not be checked; 10 and 10 are the values as commonly given for CIFAR.
- Weights descend with momentum, weight decay and clipping, and the alphas with Adam, as in DARTS (`Recipe`). The
  theorem is about plain gradient steps.
- An expected cost joins the validation loss, and so L_r.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.space import SearchSpace

__all__ = ["RARTS", "lagrangian", "sweep", "tie"]

RECIPE = Recipe(bounded=True)  # as the rate times beta must stay well below 2
LAMBDA = BETA = 10.0


class RARTS:
    """The learner of RARTS.

    Args:
        net: the network with choices; it becomes y, and a copy of it w.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which the learning rate follows.
        seed: of the initial alphas.
        cost: expected cost of an assignment; penalty: how it joins the validation loss.
        recipe: of weights and alphas, DARTS's.
        lambda_: weight of the training loss.
        beta: weight of the tie.

    Raises ValueError for a negative weight, and where the learning rate times beta is 2 or more: the tie would throw
    the copies apart.
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
        lambda_: float = LAMBDA,
        beta: float = BETA,
    ) -> None:
        if lambda_ < 0.0 or beta < 0.0:
            raise ValueError(f"lambda is {lambda_} and beta {beta}: both weigh what is minimised, give 0 or more")
        if recipe.lr * beta >= 2.0:
            raise ValueError(f"learning rate {recipe.lr} times beta {beta} is 2 or more and diverges: lower either")
        self.loss, self.cost, self.penalty = loss, cost, penalty
        self.lambda_, self.beta = lambda_, beta
        self.alphas = Alphas(net, space, seed=seed)
        self.net, self.copy = net, copy.deepcopy(net)
        both = nn.ModuleDict({"y": self.net, "w": self.copy})
        self.descent = Descent(both, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one sweep over w, y and alpha on a batch of each half: images (N, C, H, W) and labels (N,).

        Returns the training loss of w, the validation loss of y with the cost joined, the distance |y - w| and more.
        """
        rate, cost = self.descent.learning_rate, 0.0

        def train(net: nn.Module) -> Tensor:
            return total_loss(net, self.mixture(), batch[0], self.loss)[0]

        def validation(net: nn.Module) -> Tensor:
            nonlocal cost
            value, cost = total_loss(net, self.mixture(), batch[1], self.loss, self.cost, self.penalty)
            return value

        losses = sweep(self.descent, self.copy, self.net, train, validation, lambda_=self.lambda_, beta=self.beta)
        self.descent.done += 1
        found = {"loss": losses[0], "validation_loss": losses[1], "learning_rate": rate}
        found |= {"distance": float((2.0 * tie(self.net, self.copy, 1.0)).detach().sqrt())}
        found |= {"entropy": float(self.alphas.entropy().detach())}
        return found | ({"cost": cost} if self.cost is not None else {})

    def mixture(self) -> Assignment:
        """Return the mixture of all operations that both copies run."""
        return self.alphas.mixture()

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now, read out as in DARTS."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return both copies of the weights, the alphas, the optimisers and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)


Objective = Callable[[nn.Module], Tensor]


def sweep(
    descent: Descent,
    w: nn.Module,
    y: nn.Module,
    train: Objective,
    validation: Objective,
    *,
    lambda_: float,
    beta: float,
) -> tuple[float, float]:
    """Take the three steps of the paper's loop in Gauss-Seidel order; return the losses of w and of y, both new.

    descent: over the weights of both networks and the alphas that they share. train, validation: losses of a network
    under the alphas in force.
    With lambda_ and beta 0 the alphas step as in first-order DARTS on y, and w stays but for its decay.
    """
    # 1. w <- w - eta * (lambda * dL_train(w, alpha)/dw + beta * (w - y))
    descent.weights(lambda_ * train(w) + tie(w, y, beta))
    # 2. y <- y - eta * (dL_val(y, alpha)/dy + beta * (y - w)), with the new w
    descent.weights(validation(y) + tie(y, w, beta))
    # 3. alpha <- alpha - eta * d(lambda * L_train(w, alpha) + L_val(y, alpha))/dalpha, both new
    training, validating = train(w), validation(y)
    descent.architecture(lambda_ * training + validating)
    return float(training.detach()), float(validating.detach())


def tie(moving: nn.Module, fixed: nn.Module, beta: float) -> Tensor:
    """Return beta / 2 * |a - b|^2 over the parameters of two equal networks, with gradients for the first alone.

    Buffers, as batch norm's statistics, are not tied.
    """
    pairs = [(a, b.detach()) for a, b in zip(moving.parameters(), fixed.parameters(), strict=True) if a.requires_grad]
    return beta / 2.0 * torch.stack([(a - b).square().sum() for a, b in pairs]).sum()


def lagrangian(
    w: nn.Module, y: nn.Module, train: Objective, validation: Objective, *, lambda_: float, beta: float
) -> Tensor:
    """Return the relaxed Lagrangian L_r(y, w, alpha), which `sweep` with small plain steps never raises."""
    return validation(y) + lambda_ * train(w) + tie(y, w, beta)
