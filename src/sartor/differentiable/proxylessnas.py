# SPDX-License-Identifier: Apache-2.0
"""ProxylessNAS: binary gates, so that a search takes the memory of one network and needs no proxy task.

Cai, Zhu and Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019,
arXiv:1812.00332; code in mit-han-lab/proxylessnas.

The idea: one path of each choice is drawn and on, so that weights train on one network at a time. The logits learn from
the gradient with respect to the binary gates, or by REINFORCE, on held-out data. The latency is an expectation over a
table, and so differentiable.

Differs from the paper:
- The cost's gradient always counts: the authors' code drops the whole gradient of a choice when its zero operation is
  drawn.
- REINFORCE subtracts the baseline of the steps before, without the rewards of this one, which keeps it unbiased; its
  first step subtracts the mean. It runs as often as the gradient step.
- The learning rate falls to 0 over the warm-up and again over the search.
- The loss is given; the authors' code smooths labels by 0.1.
The two gradients differ: the gates' is that of L(E[y]), REINFORCE's that of E[L(y)].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, logits_of, total_loss
from sartor.differentiable.mixers import among, gated, mixed
from sartor.differentiable.penalties import Penalty, add, add_linear, add_log, hinge, mul_log, mul_log_ratio
from sartor.differentiable.readout import derived
from sartor.differentiable.relaxations import draws, log_probability, one_hot, sample, sample_pairs
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["ProxylessNAS", "accuracy"]

RECIPE = Recipe(
    lr=0.025,
    lr_min=0.0,
    nesterov=True,
    weight_decay=4e-5,
    clip=math.inf,
    alpha_lr=1e-3,
    alpha_betas=(0.0, 0.999),  # with a first moment the logits of paths that were not drawn would drift
    alpha_weight_decay=0.0,
)
Mode = Literal["full", "two", "reinforce"]
OF_LOSSES = (add, add_linear, add_log, hinge, mul_log, mul_log_ratio)


def accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the share of predictions (N, K) whose largest is the label (N,): a scalar."""
    return (predictions.argmax(1) == labels).float().mean()


class ProxylessNAS:
    """The learner of ProxylessNAS: its batches are pairs, of the weights' data and of held-out data.

    Args:
        net: a network with choices.
        space: the options allowed, `search_space(net)` or a restriction of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of warm-up and search together.
        seed: of the initial logits and of the draws of each step.
        cost: expected latency of the weights of all choices, such as `sartor.costs.CostTable`.
        penalty: how it joins the loss, `mul_log_ratio(target)` or `add_linear(0.1, target)` in the authors' code; with
            REINFORCE how a network's latency joins its reward, `reward_exponent(target)`.
        recipe: see `Recipe`.
        mode: "full" (gates of all paths, recomputed one by one), "two" (of two that are drawn) or "reinforce".
        epochs, warm_up: epochs of the search, and those before it that train the weights alone; the first epoch of the
            search does, too.
        warm_up_lr: the first learning rate of the warm-up.
        every: weight steps for each architecture step.
        samples: networks of a REINFORCE step.
        baseline_rate: how far the baseline moves to the mean reward of a step.
        reward: of predictions and labels, for REINFORCE.

    Raises ValueError for a mode that is none of these, for counts below 1, and where REINFORCE would maximise a penalty
    of losses.
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
        mode: Mode = "full",
        epochs: int = 120,
        warm_up: int = 40,
        warm_up_lr: float = 0.05,
        every: int = 5,
        samples: int = 10,
        baseline_rate: float = 0.99,
        reward: Callable[[Tensor, Tensor], Tensor] = accuracy,
    ) -> None:
        modes: dict[str, Callable[[Batch], None]] = {
            "full": self.full_step,
            "two": self.two_step,
            "reinforce": self.reinforce_step,
        }
        if mode not in modes:
            raise ValueError(f"mode is {mode!r}: it is one of {', '.join(modes)}")
        if min(epochs, every, samples) < 1 or warm_up < 0:
            counts = f"epochs is {epochs}, warm_up {warm_up}, every {every}, samples {samples}"
            raise ValueError(f"{counts}: warm_up can be 0, and each other is at least 1")
        if mode == "reinforce" and cost is not None and isinstance(penalty, OF_LOSSES):
            raise ValueError(f"{penalty} would be maximised with the reward: give penalties.reward_exponent(target)")
        self.net, self.loss, self.seed = net, loss, seed
        self.cost, self.penalty, self.reward = cost, penalty, reward
        self.epochs, self.warm_up, self.warm_up_lr, self.every = epochs, warm_up, warm_up_lr, every
        self.samples, self.baseline_rate = samples, baseline_rate
        self.architecture_step = modes[mode]
        self.baseline: float | None = None
        self.alphas = Alphas(net, space, seed=seed)
        allowed = zip(self.alphas.options, self.alphas.allowed, strict=True)
        self.all_paths = {name: among(row.nonzero()[:, 0].tolist(), gated) for name, row in allowed}
        self.recipe = recipe
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe, learning_rate=self.learning_rate)

    def learning_rate(self, done: int, steps: int) -> float:
        """Return the weights' learning rate: half a cosine over the warm-up, another over the search."""
        warm = steps * self.warm_up / (self.warm_up + self.epochs)
        if done < warm:
            return self.warm_up_lr * (1.0 + math.cos(math.pi * done / warm)) / 2.0
        return self.recipe.learning_rate(done - math.ceil(warm), steps - math.ceil(warm))

    @property
    def searches(self) -> bool:
        """Whether the next step is one of the architecture, too."""
        frozen = (self.warm_up + 1) / (self.warm_up + self.epochs)
        return self.descent.part >= frozen and self.descent.done % self.every == 0

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take a step of the weights on the first batch; now and then one of the architecture on the second.

        Returns the loss of the weights, learning rate, entropy and, with a cost, the expected cost.
        """
        train, validation = batch
        descent, rate = self.descent, self.descent.learning_rate
        path = self.alphas.hard(sample(self.alphas.logits, self.draws("weights")))
        loss = descent.weights(total_loss(self.net, path, train, self.loss)[0])  # the other paths have no gradient
        if self.searches:
            self.architecture_step(validation)
        descent.done += 1
        told = {"loss": loss, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        if self.cost:
            told["cost"] = float(self.cost(self.alphas.assignment(self.alphas.probabilities())))
        return told

    def full_step(self, batch: Batch) -> None:
        """dL/dalpha_i = sum over j of dL/dg_j * p_j * (delta_ij - p_i), equation 4, over all paths."""
        logits = self.alphas.logits
        p = logits.softmax(1)
        gates = one_hot(sample(logits, self.draws("gates")), p) + (p - p.detach())
        self.descend(batch, gates, p, self.all_paths)

    def two_step(self, batch: Batch) -> None:
        """The same over two paths that are drawn without replacement; all others keep their probability."""
        generator = self.draws("gates")
        logits = self.alphas.logits
        pairs = sample_pairs(logits, generator)
        old = logits.gather(1, pairs)
        p = old.softmax(1)
        gates = one_hot(sample(old, generator), p) + (p - p.detach())
        nowhere = torch.zeros_like(logits)
        there = old.isfinite()  # a choice with one option has no second path
        rows = zip(self.alphas.options, pairs, there, strict=True)
        paths = {name: among(pair[real].tolist(), gated) for name, pair, real in rows}
        self.descend(batch, nowhere.scatter(1, pairs, gates), nowhere.scatter(1, pairs, p), paths)
        with torch.no_grad():
            new = self.alphas.logits.gather(1, pairs)
            shift = new.logsumexp(1, keepdim=True) - old.logsumexp(1, keepdim=True)
            self.alphas.table.scatter_add_(1, pairs, -shift.expand_as(new))

    def descend(self, batch: Batch, gates: Tensor, p: Tensor, paths: Mapping[str, Any]) -> None:
        """Take an architecture step through the gates, and through the probabilities in the expected cost."""
        assignment = mixed(self.alphas.assignment(gates), paths)
        with activated(self.net, assignment):  # paths that are off run in the backward pass
            value = self.loss(logits_of(self.net, assignment, batch[0]), batch[1])
            if self.cost:
                value = self.penalty(value, self.cost(self.alphas.assignment(p)))
            self.descent.architecture(value)

    def reinforce_step(self, batch: Batch) -> None:
        """Up the mean over samples of (R - baseline) * d log p / dalpha."""
        generator, logits = self.draws("reinforce"), self.alphas.logits
        several = [sample(logits, generator) for _ in range(self.samples)]
        rewards = [self.reward_of(positions, batch) for positions in several]
        mean = sum(rewards) / len(rewards)
        before = mean if self.baseline is None else self.baseline
        terms = [(r - before) * log_probability(logits, one) for r, one in zip(rewards, several, strict=True)]
        self.descent.architecture(-torch.stack(terms).mean())
        self.baseline = before + self.baseline_rate * (mean - before)

    def reward_of(self, positions: Tensor, batch: Batch) -> float:
        """Return the reward of one network, its cost included."""
        path = self.alphas.hard(positions)
        with torch.no_grad():
            found = self.reward(logits_of(self.net, path, batch[0]), batch[1])
            return float(self.penalty(found, self.cost(path)) if self.cost else found)

    def draws(self, purpose: str) -> Generator:
        """Return the generator of this step for one purpose."""
        return draws(self.seed, self.descent.done, f"proxylessnas {purpose}")

    def architecture(self) -> Architecture:
        """Return the most probable option of each choice."""
        return derived(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return self.descent.state_dict() | {"baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
        self.baseline = state["baseline"]
