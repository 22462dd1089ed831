# SPDX-License-Identifier: Apache-2.0
"""FBNetV5: one search for many tasks, each with a distribution of its own over one supernet.

Wu et al., "FBNetV5: Neural Architecture Search for Multiple Tasks in One Run", 2021, arXiv:2111.10007. No
official code of the search.

The idea: images that carry the labels of all tasks, and a simple head for each, stand in for the tasks' own pipelines.
A step draws one architecture and runs the supernet once; every head's loss then moves its task's distribution, by
REINFORCE with an importance weight. So the passes through the supernet do not grow with the number of tasks.

Differs from the paper:
- Samples come from the mixture of all tasks' distributions with a tenth of the uniform one, and weights are clipped at
  10. Each weight is below T / 0.9 for T tasks anyway, so that the clip acts from ten tasks on.
- The distributions move by a sample and a batch of their own, not by those of the weights.
- The paper's hyper-parameters are not known to us: learning rates are DARTS's and 0.01 for the logits, the baselines
  move by a tenth at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Cost, Descent, Loss, Recipe, logits_of
from sartor.differentiable.fbnetv5_mixture import importance, mixture_sample, surrogate
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import derived, sample_and_select
from sartor.differentiable.relaxations import draws
from sartor.space import SearchSpace

__all__ = ["FBNetV5", "Head"]

RECIPE = Recipe(alpha_lr=0.01, alpha_betas=(0.9, 0.999), alpha_weight_decay=0.0)

Labels = Mapping[str, Tensor] | Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """What a task is to the search: predictions of the supernet's features, and their loss.

    module: features -> predictions. loss: (predictions, labels) -> scalar mean. penalty: how the cost joins this
    task's loss, the search's own if None; losses of other scales need other strengths.
    """

    module: nn.Module
    loss: Loss = F.cross_entropy
    penalty: Penalty | None = None


class FBNetV5:
    """The learner of FBNetV5: its batches are pairs, of the weights' data and of the distributions'.

    A batch is (images, labels) with labels by the name of the task, or one tensor that all tasks share.

    Args:
        net: a network with choices, images -> features.
        space: the options allowed, `search_space(net)` or a restriction of it.
        tasks: a head for each task by name; or a loss, for one task whose predictions are the network's output.
        steps: length of the search.
        seed: of the initial logits and of the draws of each step.
        cost: of a sampled network. penalty: how it joins the loss of a task.
        recipe: see `Recipe`.
        uniform: part of the uniform distribution in the proposal.
        clip: largest importance weight.
        decay: of the running baselines.

    Raises ValueError for no task, and for a part that is no probability.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        tasks: Mapping[str, Head] | Loss = F.cross_entropy,
        *,
        steps: int,
        seed: int = 0,
        cost: Cost | None = None,
        penalty: Penalty = add(1.0),  # noqa: B008 - frozen
        recipe: Recipe = RECIPE,
        uniform: float = 0.1,
        clip: float = 10.0,
        decay: float = 0.9,
    ) -> None:
        self.tasks = dict(tasks) if isinstance(tasks, Mapping) else {"task": Head(nn.Identity(), tasks)}
        if not self.tasks or not 0.0 <= uniform <= 1.0:
            raise ValueError(f"{len(self.tasks)} tasks, {uniform} uniform: give at least one, and a part from 0 to 1")
        self.net, self.seed = net, seed
        self.cost, self.penalty = cost, penalty
        self.uniform, self.clip, self.decay = uniform, clip, decay
        self.heads = nn.ModuleDict({name: task.module for name, task in self.tasks.items()})
        names = enumerate(self.tasks)
        self.alphas = nn.ModuleDict({name: Alphas(net, space, seed=seed + 7919 * i) for i, name in names})
        self.descent = Descent(
            nn.ModuleDict({"net": net, "heads": self.heads}), self.alphas, steps=steps, recipe=recipe
        )
        self.baselines: dict[str, float] = {}
        self.moments = {"first": 0.0, "second": 0.0}  # of the importance weights, for their effective part

    def step(self, batch: tuple[tuple[Tensor, Labels], tuple[Tensor, Labels]]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch, then one of all distributions on the second.

        Returns the sum of the tasks' losses, each of them, learning rate, mean entropy, the effective part of the
        samples that the importance weights leave and, with a cost, that of the second sample.
        """
        train, validation = batch
        descent, rate = self.descent, self.descent.learning_rate
        losses = self.losses(self.proposed("weights"), *train)
        total = descent.weights(torch.stack(list(losses.values())).sum())  # w follows the sum of all tasks' losses
        cost = self.move(validation)
        descent.done += 1
        told = {"loss": total, "learning_rate": rate, "effective": self.effective}
        told["entropy"] = sum(float(self.of(name).entropy().detach()) for name in self.tasks) / len(self.tasks)
        told |= {f"loss_{name}": float(loss.detach()) for name, loss in losses.items()}
        return told | ({"cost": cost} if self.cost else {})

    def of(self, task: str) -> Alphas:
        """Return the distribution of a task."""
        found = self.alphas[task]
        assert isinstance(found, Alphas)
        return found

    def logits(self) -> Tensor:
        """Return the (T, C, K) logits of all tasks."""
        return torch.stack([self.of(name).logits for name in self.tasks])

    def proposed(self, purpose: str) -> Tensor:
        """Return the (C,) positions of this step's sample."""
        generator = draws(self.seed, self.descent.done, f"fbnetv5 {purpose}")
        return mixture_sample(self.logits().detach(), self.uniform, generator)

    def losses(self, positions: Tensor, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Return each task's loss of one architecture: one pass through the supernet, one through each head.

        Raises ValueError for labels that lack a task.
        """
        if isinstance(labels, Mapping) and (missing := [name for name in self.tasks if name not in labels]):
            raise ValueError(f"the batch has no labels for {missing[0]!r}, but for {', '.join(labels)}: add them")
        self.heads.train()
        features = logits_of(self.net, self.hard(positions), images)
        return {
            name: task.loss(task.module(features), labels[name] if isinstance(labels, Mapping) else labels)
            for name, task in self.tasks.items()
        }

    def move(self, batch: tuple[Tensor, Labels]) -> float:
        """Move each task's distribution by r_t * (L_t + cost - b_t) * grad log pi_t(a); return the cost."""
        positions = self.proposed("distributions")
        with torch.no_grad():
            losses = self.losses(positions, *batch)
            cost = self.cost(self.hard(positions)) if self.cost else torch.zeros(())
            values = torch.stack([self.joined(name, loss, cost) for name, loss in losses.items()])
        before = [self.baselines.get(name, float(value)) for name, value in zip(self.tasks, values, strict=True)]
        logits = self.logits()
        r = importance(logits.detach(), positions, self.uniform).clamp_max(self.clip)
        self.descent.architecture(surrogate(logits, positions, r, values - values.new_tensor(before)))
        for name, old, value in zip(self.tasks, before, values.tolist(), strict=True):
            self.baselines[name] = self.decay * old + (1.0 - self.decay) * value
        for name, power in (("first", 1), ("second", 2)):
            self.moments[name] = 0.99 * self.moments[name] + 0.01 * float((r**power).mean())
        return float(cost)

    def joined(self, task: str, loss: Tensor, cost: Tensor) -> Tensor:
        """Return a task's loss with the cost."""
        return (self.tasks[task].penalty or self.penalty)(loss, cost.to(loss)) if self.cost else loss

    @property
    def effective(self) -> float:
        """Which part of the samples of the last hundred steps or so the importance weights leave effective, 0 to 1."""
        weight = 1.0 - 0.99**self.descent.done  # the moments start at 0
        return self.moments["first"] ** 2 / (self.moments["second"] * weight) if weight > 0.0 else 1.0

    def hard(self, positions: Tensor) -> dict[str, Any]:
        """Return the assignment of one architecture."""
        return dict(self.of(next(iter(self.tasks))).hard(positions))

    def architecture(self, task: str | None = None) -> Architecture:
        """Return the most probable architecture of a task, of the first if None."""
        return derived(self.of(task or next(iter(self.tasks))), self.net)

    def select(
        self,
        task: str,
        score: Callable[[Architecture], float],
        count: int = 100,
        at_most: float = math.inf,
        seed: int = 0,
    ) -> Architecture:
        """Return the best by `score` of networks sampled for a task whose cost is within `at_most`.

        Raises ValueError if none is.
        """

        def within(arch: Architecture) -> bool:
            return self.cost is None or float(self.cost(arch)) <= at_most

        best = sample_and_select(
            self.of(task), draws(seed, 0, "select"), count, lambda arch: score(arch) if within(arch) else -math.inf
        )
        if not within(best):
            raise ValueError(f"none of {count} samples for {task!r} costs at most {at_most}: search with more pressure")
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict() | {"baselines": dict(self.baselines), "moments": dict(self.moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
        self.baselines, self.moments = dict(state["baselines"]), dict(state["moments"])
