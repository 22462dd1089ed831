# SPDX-License-Identifier: Apache-2.0
"""HYDRA's three stages for one network, and what DASS shares with it: stages, scores, masks.

Sehwag, Wang, Mittal, Jana: "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020, arXiv:2002.10509. A
network is pre-trained, pruned by learning which weights to keep while they stay as they are, and fine-tuned.

    supernet = sparse(Micro(), 0.05)
    network = extract(supernet, {**found, KEPT: 0.05})
    network.reset_parameters()
    fit(HYDRA(network, steps=800), batches, steps=800)
    baked(network)  # masked weights become ordinary ones; re-estimate batch norm

Differs from the paper: accuracy instead of robustness; no weight decay on scores; stages are shares of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Choice
from sartor.differentiable.descent import Batch, Descent, Loss, Recipe, logits_of
from sartor.nn import OneOf
from sartor.nn.parametrized import parametrizations
from sartor.nn.sparsify import TopK, sparsified
from sartor.supernet import named_choices

__all__ = ["HYDRA", "KEPT", "Scores", "Stages", "sparse"]

RECIPE = Recipe()
KEPT = "kept"
"""The choice that `sparse` adds: the share of the weights that are kept, or 1."""


@dataclass(frozen=True)
class Stages:
    """How long each stage is.

    rounds: how often the three repeat. shares: of a round that are pre-training, pruning and fine-tuning. A stage of
    less than a step may have none.
    Raises ValueError for no rounds, and for shares that do not sum to 1.
    """

    rounds: int = 1
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25)

    def __post_init__(self) -> None:
        """Check rounds and shares."""
        if self.rounds < 1 or min(self.shares) < 0.0 or not math.isclose(sum(self.shares), 1.0):
            raise ValueError(f"{self.rounds} rounds of shares {self.shares}: give at least 1, and three that sum to 1")

    def at(self, done: int, steps: int) -> tuple[int, int, float]:
        """Return the round, the stage (0 pre-train, 1 prune, 2 fine-tune) and how much of it is done, 0 to 1."""
        turn, within = divmod(done * self.rounds, max(steps, 1))
        place, start = within / max(steps, 1), 0.0
        for stage, share in enumerate(self.shares):
            if place < start + share - 1e-12 or stage == 2:
                return turn, stage, min((place - start) / share, 1.0) if share else 1.0
            start += share
        raise AssertionError("the last stage has no end")

    def begins(self, done: int, steps: int) -> bool:
        """Whether this step is the first of its stage."""
        return done == 0 or self.at(done, steps)[:2] != self.at(done - 1, steps)[:2]

    def learning_rate(self, done: int, steps: int, recipe: Recipe, prune: float, finetune: float) -> float:
        """Return the rate of what is trained at this step: along half a cosine in each stage, to 0 in the last two."""
        _, stage, part = self.at(done, steps)
        cosine = (1.0 + math.cos(math.pi * part)) / 2.0
        return (recipe.lr_min + (recipe.lr - recipe.lr_min) * cosine, prune * cosine, finetune * cosine)[stage]


class Scores:
    """The scores of a network's masks and their optimiser: SGD with momentum.

    They are frozen here, so that an optimiser of the weights that is made next leaves them out; `thaw` ends it.
    """

    def __init__(self, net: nn.Module, momentum: float = 0.9) -> None:
        self.masks = [(mask, weight) for _, mask, weight in parametrizations(net, TopK)]
        if not self.masks:
            raise ValueError("the network has no mask to learn scores for: apply `sparse` to it first")
        self.parameters = [mask.score.requires_grad_(False) for mask, _ in self.masks]
        self.optimizer = torch.optim.SGD(self.parameters, momentum=momentum, foreach=True)

    def thaw(self) -> None:
        """Let scores have gradients."""
        for score in self.parameters:
            score.requires_grad_(True)

    @torch.no_grad()
    def restart(self) -> None:
        """Let scores follow from the weights, proportional to them (HYDRA's scaled values), and forget the momentum."""
        for mask, weight in self.masks:
            mask.score.copy_(TopK(weight, 1.0).score)
        self.optimizer.state.clear()

    def step(self, loss: Tensor, descent: Descent) -> float:
        """Take a step down `loss` on the scores alone, at the rate of a descent; return its value."""
        value = descent.finite(loss, "scores")
        for score, gradient in zip(
            self.parameters, torch.autograd.grad(loss, self.parameters, allow_unused=True), strict=True
        ):
            score.grad = gradient
        self.optimizer.param_groups[0]["lr"] = descent.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value


class HYDRA:
    """The learner that trains one sparse network: pre-train, prune, fine-tune.

    Args:
        net: a network without choices whose masks keep the shares it is to have.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, over which the stages are laid.
        recipe: of the weights; its learning rate is that of pre-training.
        stages: how long each stage is.
        prune_lr, finetune_lr: learning rates of the scores and of the weights that are left, each to 0 along a cosine.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        recipe: Recipe = RECIPE,
        stages: Stages = Stages(),
        prune_lr: float = 0.1,
        finetune_lr: float = 0.01,
    ) -> None:
        self.net, self.loss, self.stages = net, loss, stages
        self.rates = recipe, prune_lr, finetune_lr
        self.scores = Scores(net, recipe.momentum)
        self.descent = Descent(net, nn.Module(), steps=steps, recipe=recipe, learning_rate=self.learning_rate)
        self.scores.thaw()

    def learning_rate(self, done: int, steps: int) -> float:
        """Return the rate of what is trained in the stage of this step."""
        return self.stages.learning_rate(done, steps, *self.rates)

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take the step of the stage on images (N, C, H, W) and labels (N,)."""
        done, steps, rate = self.descent.done, self.descent.steps, self.descent.learning_rate
        _, stage, _ = self.stages.at(done, steps)
        if stage == 1 and self.stages.begins(done, steps):
            self.scores.restart()
        with self._dense() if stage == 0 else nullcontext():
            loss = self.loss(logits_of(self.net, {}, batch[0]), batch[1])
            value = self.scores.step(loss, self.descent) if stage == 1 else self.descent.weights(loss)
        self.descent.done += 1
        return {"loss": value, "learning_rate": rate, "stage": float(stage)}

    @contextmanager
    def _dense(self) -> Iterator[None]:
        """Keep all weights in the block."""
        shares = [mask.keep for mask, _ in self.scores.masks]
        try:
            for mask, _ in self.scores.masks:
                mask.keep = 1.0
            yield
        finally:
            for (mask, _), share in zip(self.scores.masks, shares, strict=True):
                mask.keep = share

    def state_dict(self) -> dict[str, Any]:
        """Return weights, scores, optimisers and the number of steps done."""
        return {"descent": self.descent.state_dict(), "scores": self.scores.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state["descent"])
        self.scores.optimizer.load_state_dict(state["scores"])


def sparse(net: nn.Module, keep: float) -> nn.Module:
    """Give scores to the weights of a network, in place; return it. It is dense until the choice `kept` says otherwise.

    Masked are the linear layers, and the convolutions of searched operations that are not depthwise. All share one
    choice, between `keep` and 1. A network that has it already is left as it is, if its share is the same.
    Raises ValueError for another share, and for a network with nothing to mask.
    """
    present = named_choices(net).get(KEPT)
    if present is not None:
        if present.options != _shares(keep):
            raise ValueError(f"the network keeps shares {present.options}, not {keep}: give the same or a new network")
        return net
    searched = {id(layer) for module in net.modules() if isinstance(module, OneOf) for layer in module.modules()}
    layers = [
        layer
        for layer in net.modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and id(layer) in searched and layer.groups == 1)
    ]
    if not layers:
        raise ValueError("the network has no linear layer and no searched convolution: nothing can be pruned")
    choice = Choice(_shares(keep), name=KEPT)
    for layer in layers:
        sparsified(layer, choice)
    return net


def _shares(keep: float) -> tuple[float, ...]:
    return (keep, 1.0) if keep != 1.0 else (1.0,)
