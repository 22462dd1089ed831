# SPDX-License-Identifier: Apache-2.0
"""The steps of a differentiable search: one on the weights, one on the architecture parameters, never on both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.nn import channels_last, resized
from sartor.optimizers import restore
from sartor.supernet import activated

__all__ = ["TRAVEL", "Batch", "Cost", "Descent", "Loss", "Recipe", "logits_of", "total_loss"]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Cost = Callable[[Mapping[str, Any]], Tensor]
"""The expected cost of an assignment: `sartor.costs.CostTable`, or a predictor of soft architectures."""

PUBLISHED_STEPS = 19_500  # of DARTS: 50 epochs of 25,000 images in batches of 64
TRAVEL = 3e-4 * PUBLISHED_STEPS  # how far Adam can move an alpha in them
FASTEST, LEAST_LR = 0.05, 0.1  # learning rates of alphas and of weights in a search of few steps


@dataclass(frozen=True)
class Recipe:
    """How weights and alphas descend; the defaults are DARTS's (its section 3.1 and its code).

    lr, lr_min: of SGD, from the first to the last step along half a cosine. momentum, nesterov, weight_decay: of SGD.
    clip: the largest norm of the weights' gradient. alpha_lr, alpha_betas, alpha_weight_decay: of Adam.
    bounded: whether the method bounds `lr` from above, so that `shortened` leaves it.
    """

    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 3e-4
    clip: float = 5.0
    alpha_lr: float = 3e-4
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    bounded: bool = False

    def shortened(self, steps: int) -> Recipe:
        """Return the recipe for a search of few steps: one rule for all methods, and nothing else of a recipe changes.

        Adam moves an architecture parameter by about its learning rate in a step. Its rate is raised until it times the
        steps is what it is in DARTS's published search, at most to 0.05; otherwise nothing would be decided in a few
        hundred steps. That of the weights is at least 0.1, unless it is `bounded`.
        """
        if steps >= PUBLISHED_STEPS:
            return self
        alpha_lr = max(self.alpha_lr, min(FASTEST, TRAVEL / max(steps, 1)))
        return replace(self, alpha_lr=alpha_lr, lr=self.lr if self.bounded else max(self.lr, LEAST_LR))

    def learning_rate(self, done: int, steps: int) -> float:
        """Return the weights' learning rate after `done` of `steps` steps."""
        return self.lr_min + (self.lr - self.lr_min) * (1.0 + math.cos(math.pi * done / max(steps, 1))) / 2.0

    def weight_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return SGD over the weights; its learning rate is set at each step."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            foreach=True,
        )

    def alpha_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam over the architecture parameters."""
        group = {"params": list(parameters)}  # a group may be empty, as for a method without such parameters
        return torch.optim.Adam([group], lr=self.alpha_lr, betas=self.alpha_betas, weight_decay=self.alpha_weight_decay)


class Descent:
    """Weights and architecture parameters, each with its optimiser, and how far the training is.

    A backward pass computes the gradients of one group alone, which spares those of the convolutions' weights in an
    alpha step; the other group's gradients and moments are never touched. Parameters without a gradient, as those of
    operations that did not run, are left alone, weight decay and momentum included.

    Args:
        net: the network with choices. alphas: a module whose parameters are those of the architecture.
        steps: length of the training, which the learning rate follows.
        recipe: see `Recipe`.
        weight_optimizer: another optimiser of the weights than the recipe's SGD; its learning rate is still set.
        learning_rate: another schedule, (done, steps) -> learning rate.

    Raises ValueError for a negative number of steps.
    """

    def __init__(
        self,
        net: nn.Module,
        alphas: nn.Module,
        *,
        steps: int,
        recipe: Recipe,
        weight_optimizer: torch.optim.Optimizer | None = None,
        learning_rate: Callable[[int, int], float] | None = None,
    ) -> None:
        if steps < 0:
            raise ValueError(f"steps is {steps}: a training has 0 or more, which its learning rate follows")
        self.net, self.alphas, self.steps, self.recipe = channels_last(net), alphas, steps, recipe
        self.weight_parameters = [p for p in net.parameters() if p.requires_grad]
        self.alpha_parameters = [p for p in alphas.parameters() if p.requires_grad]
        self.weight_optimizer = weight_optimizer or recipe.weight_optimizer(self.weight_parameters)
        self.alpha_optimizer = recipe.alpha_optimizer(self.alpha_parameters)
        self.schedule = learning_rate or recipe.learning_rate
        self.done = 0

    @property
    def part(self) -> float:
        """How much of the training is done, 0 to 1."""
        return self.done / max(self.steps, 1)

    @property
    def learning_rate(self) -> float:
        """The weights' learning rate at this step."""
        return self.schedule(self.done, self.steps)

    def weights(self, loss: Tensor) -> float:
        """Take a step down `loss` on the weights; return its value."""
        value = self.finite(loss, "weights")
        self.step_weights(torch.autograd.grad(loss, self.weight_parameters, allow_unused=True))
        return value

    def step_weights(self, gradients: Iterable[Tensor | None]) -> None:
        """Take a step on the weights along gradients that are given, clipped."""
        for parameter, gradient in zip(self.weight_parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.weight_parameters, self.recipe.clip)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad(set_to_none=True)

    def architecture(self, loss: Tensor) -> float:
        """Take a step down `loss` on the architecture parameters; return its value."""
        value = self.finite(loss, "architecture parameters")
        self.step_architecture(torch.autograd.grad(loss, self.alpha_parameters, allow_unused=True))
        return value

    def step_architecture(self, gradients: Iterable[Tensor | None]) -> None:
        """Take a step on the architecture parameters along gradients that are given."""
        for parameter, gradient in zip(self.alpha_parameters, gradients, strict=True):
            parameter.grad = gradient
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)

    def both(self, loss: Tensor) -> float:
        """Take a step down one loss on weights and architecture parameters, from one backward pass; return its value.

        Only for methods of a single level, which say so.
        """
        value = self.finite(loss, "weights and architecture parameters")
        count = len(self.weight_parameters)
        found = torch.autograd.grad(loss, [*self.weight_parameters, *self.alpha_parameters], allow_unused=True)
        self.step_weights(found[:count])
        self.step_architecture(found[count:])
        return value

    def finite(self, loss: Tensor, what: str) -> float:
        """Return the loss as a number; ValueError, before anything is changed, if it is not finite."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"the loss of the {what} is {value} at step {self.done + 1}, on batch {self.done} of the stream: lower "
                f"the learning rate (now {self.learning_rate:.3g}; alphas {self.recipe.alpha_lr:.3g}) or look for "
                "values in that batch that are not finite"
            )
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return weights, architecture parameters, both optimisers' state and the number of steps done."""
        return {
            "net": self.net.state_dict(),
            "alphas": self.alphas.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.net.load_state_dict(state["net"])
        self.alphas.load_state_dict(state["alphas"])
        restore(self.weight_optimizer, state["weight_optimizer"])
        restore(self.alpha_optimizer, state["alpha_optimizer"])
        self.done = state["done"]


def logits_of(net: nn.Module, assignment: Mapping[str, Any], images: Tensor) -> Tensor:
    """Return the (N, K) logits of images (N, C, H, W) under an assignment, in training mode."""
    net.train()
    with activated(net, assignment):
        logits: Tensor = net(resized(channels_last(images), net))
    return logits


def total_loss(
    net: nn.Module,
    assignment: Mapping[str, Any],
    batch: Batch,
    loss: Loss = F.cross_entropy,
    cost: Cost | None = None,
    penalty: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, float]:
    """Return the loss of a batch under an assignment, the expected cost joined to it, and that cost as a number."""
    value = loss(logits_of(net, assignment, batch[0]), batch[1])
    if cost is None or penalty is None:
        return value, 0.0
    expected = cost(assignment)
    return penalty(value, expected), float(expected.detach())
