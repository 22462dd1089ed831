# SPDX-License-Identifier: Apache-2.0
"""ShiftNAS: train sub-networks of those costs most that have the most left to learn, drawn by a learned generator.

Zhang, Yu, Zhao and Ou: "ShiftNAS: Improving One-shot NAS via Probability Shift", ICCV 2023, arXiv:2307.08300. The
official repository holds no code.

The idea: under uniform sampling the cost of a sub-network is a sum of many independent choices, so that nearly all
sub-networks trained are of middling cost. Costs are divided into bins, and a bin is drawn the more often, the greater
the validation gradient of its networks still is. An LSTM, trained along with the shared weights, gives an architecture
of the wanted cost at once; after training it is the whole search: `generate(cost)`.

Differs from the paper:
- The probabilities of bins follow the gradients directly: softmax of their running means, mixed with uniform ones, in
  place of learned logits with a second-order gradient.
- L_RC has the true cost, and straight through the gradient of a network that learned it; errors are of logarithms, so
  that no strength has a unit. The paper's sum over choices is exact only for costs that add up.
- The generator also reads what is left of the wanted cost, emits choices that cost much first, and learns from the cost
  alone before the training starts; these passes are of the generator, not of the shared weights, and are not counted.
- It is asked for a batch of costs at each of its steps, of which the first architecture meets the validation images.
- The paper's 50 epochs of uniform bins are a share of the steps, since it is not said of how many.
- A searched input resolution is drawn, but has no gradient of the task. An operation's is that of the drawn one alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture, Option
from sartor.data.pairs import Pairs
from sartor.data.split import Split
from sartor.oneshot._binned import Bins, Cost
from sartor.oneshot._macs import Macs
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Batch, Effort, Means, Training, draws, refuse_divided
from sartor.oneshot.shiftnas_generator import CostNetwork, Generator, cost_loss, learn_from_cost, seeded
from sartor.optimizers import restore
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["RECIPE", "ShiftNAS", "bin_chances"]

RECIPE = Recipe()
"""That of BigNAS, as for the paper's convolutional networks."""

GENERATOR_LR = 1e-3  # of Adam
ASKED = 64  # costs that the generator is asked for in one of its steps


class ShiftNAS:
    """The learner of ShiftNAS. A batch is a pair: one of training images and one of validation images, with labels.

    Args:
        net: a network with choices.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step of either kind, which the learning rate is scaled with.
        cost: of an architecture, above 0; without one, multiply-accumulates for images as in the first batch.
        bins: number of bins of costs (the paper's are 0.1 GFLOPs wide).
        uniform_part: share of the steps in which all bins have one probability.
        interval: steps between two looks at all bins (100).
        floor: the part of the probability that is always uniform. At 1, bins stay uniform and are not looked at.
        temperature: of the softmax over bins, whose scores are divided by their mean.
        memory: of the running mean of a bin's gradient.
        strength: of L_RC beside the loss of the task, lambda.
        generator_every: steps between two of the generator, each a pass through the whole network.
        warm_steps: steps of generator and cost network on costs alone, before the first step.
        portion: of the training samples, which train the weights; the others are the validation images.
        samples: architectures of which the bins and the cost network are estimated.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks, each step's for itself.

    Raises ValueError for shares that are none, for less than one step between two of anything, for a space with a
    constraint, of which the generator knows nothing, and for weights that are divided among workers.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        cost: Cost | None = None,
        bins: int = 10,
        uniform_part: float = 0.1,
        interval: int = 100,
        floor: float = 0.2,
        temperature: float = 1.0,
        memory: float = 0.5,
        strength: float = 10.0,
        generator_every: int = 4,
        warm_steps: int = 1000,
        portion: float = 0.8,
        samples: int = 8000,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if min(interval, generator_every, bins) < 1:
            raise ValueError(f"interval is {interval}, generator_every {generator_every}, bins {bins}: give 1 or more")
        if not (0 <= uniform_part <= 1 and 0 <= floor <= 1 and 0 <= memory < 1 and 0 < portion < 1 and temperature > 0):
            raise ValueError(
                "uniform_part, floor, memory and portion are shares from 0 to 1, and temperature is above 0"
            )
        if space.constraint is not None:
            raise ValueError("the generator knows no constraint of the space: give a space without one")
        refuse_divided(net, "ShiftNAS reads whole gradients")
        self.net, self.space, self.loss, self.seed, self.cost = net, space, loss, seed, cost
        self.count, self.samples, self.warm_steps, self.portion = bins, samples, warm_steps, portion
        self.uniform_steps, self.interval, self.generator_every = uniform_part * steps, interval, generator_every
        self.floor, self.temperature, self.memory, self.strength = floor, temperature, memory, strength
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.generator, self.costs = Generator(space, seed=seed), CostNetwork(space, seed=seed)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=GENERATOR_LR, foreach=True)
        self.scores: dict[str, float] = {}
        """By bin, as text: the running mean of the size of its networks' validation gradient."""
        self.passes_per_step = 1 + 1 / generator_every + (bins / interval) * (1 - uniform_part) * (floor < 1)
        self._bins: Bins | None = None
        self._warm = False
        resolution = getattr(net, "resolution", None)
        self._hard = {name for name, choice in named_choices(net).items() if choice is resolution}

    def data(self, split: Split) -> Pairs:
        """Return what it trains on: pairs of batches of two shares of the split."""
        classes = [str(label) for label in range(int(split.labels.max()) + 1)]
        return Pairs(split, self.portion, classes=classes, seed=self.seed)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one step on a pair of (images (N, C, H, W), labels (N,)).

        Returns the sub-network's loss, the largest probability of a bin, and the learning rate.
        """
        (images, labels), validation = batch
        bins, done = self.bins(images.shape[1:]), self.training.done
        rng = draws(self.seed, done)
        chances = self.chances()
        if done >= self.uniform_steps and done % self.interval == 0 and self.floor < 1:
            self._look(validation, rng)  # for the steps to come
        loss = self._train(self.drawn(rng.choices(bins.met, chances)[0], rng), (images, labels))
        if done % self.generator_every == 0:
            self._teach(validation, rng)
        return {"loss": loss, "most_likely": max(chances), "learning_rate": self.training.update()}

    def chances(self) -> list[float]:
        """Return the probability of each bin of `bins.met`."""
        assert self._bins is not None
        met = self._bins.met
        if len(self.scores) < len(met):
            return [1 / len(met)] * len(met)
        return bin_chances([self.scores[str(place)] for place in met], self.temperature, self.floor)

    def drawn(self, place: int, rng: random.Random) -> Architecture:
        """Return an architecture that the generator draws for a cost in the bin."""
        return self.generate(self._wanted(place, rng), rng)

    def generate(self, cost: float, rng: random.Random | None = None) -> Architecture:
        """Return an architecture of about this cost: the likeliest, or with randomness a drawn one.

        Its weights are those of the supernet. Raises ValueError for a cost that is not above 0.
        """
        if not cost > 0:
            raise ValueError(f"the cost is {cost}: give one above 0, in the unit of the learner's cost")
        with torch.no_grad():
            chosen = self.generator(torch.tensor([cost], dtype=torch.float64), None if rng is None else seeded(rng))
        return self.generator.architectures(chosen)[0]

    def _wanted(self, place: int, rng: random.Random) -> float:
        assert self._bins is not None
        middle, half = self._bins.centre(place), self._bins.width / 2
        return min(max(rng.uniform(middle - half, middle + half), self._bins.low), self._bins.high)

    def _several(self, rng: random.Random) -> Tensor:
        """Return (ASKED,) wanted costs, uniform over the bins."""
        assert self._bins is not None
        return torch.tensor([self._wanted(rng.choice(self._bins.met), rng) for _ in range(ASKED)], dtype=torch.float64)

    def _train(self, arch: Architecture, batch: Batch) -> float:
        """Add the gradients of a sub-network, which is sliced; return its loss."""
        total = 0.0
        for images, labels in self.training.parts(batch):
            loss = self.training.recipe.smoothed(self.loss, self.training.logits(arch, images), labels)
            self.training.backward(loss)
            total += loss.item()
        return total / self.training.means.accumulate

    def _teach(self, validation: Batch, rng: random.Random) -> None:
        """Take a step of the generator: L_task + lambda L_RC, of a network that is masked, not sliced."""
        assert self._bins is not None
        wanted = self._several(rng)
        chosen = self.generator(wanted, seeded(rng))
        archs = self.generator.architectures(chosen)
        true = torch.tensor([self._bins.cost(arch) for arch in archs]).double()
        loss = self.strength * cost_loss(self.costs(chosen), wanted.log(), true.log()).float()
        loss = loss + self._task(self._soft(chosen, archs[0]), validation)
        parameters = list(self.generator.parameters())
        for parameter, gradient in zip(parameters, self._gradients(loss, parameters), strict=True):
            parameter.grad = gradient
        distributed.average_gradients(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.training.effort = self.training.effort._replace(updates=self.training.effort.updates + 1)

    def _soft(self, chosen: Mapping[str, Tensor], arch: Architecture) -> dict[str, Option | Tensor]:
        device = next(self.net.parameters()).device
        return {name: arch[name] if name in self._hard else rows[0].to(device) for name, rows in chosen.items()}

    def _look(self, validation: Batch, rng: random.Random) -> None:
        """Visit one network of each bin: how large is the gradient that the validation images still have?"""
        assert self._bins is not None
        found = {}
        for place in self._bins.met:
            loss = self._task(self.drawn(place, rng), validation)
            gradients = [g for g in self._gradients(loss, self.training.parameters) if g is not None]
            found[str(place)] = float(torch.stack(torch._foreach_norm(gradients)).norm())
        for place, size in distributed.average(found).items():
            self.scores[place] = self.memory * self.scores.get(place, size) + (1 - self.memory) * size

    def _task(self, assignment: Mapping[str, Any], batch: Batch) -> Tensor:
        """Return the loss on a batch, as a scalar with gradients."""
        parts = self.training.parts(batch)
        losses = [self.loss(self.training.logits(assignment, images, regularise=False), y) for images, y in parts]
        return torch.stack(losses).mean()

    def _gradients(self, loss: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
        """Differentiate without touching the gradients that weights hold; one pass."""
        self.training.effort = self.training.effort._replace(passes=self.training.effort.passes + 1)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def bins(self, shape: Any) -> Bins:
        """Return the bins of costs for images of (channels, height, width); at first, generator and cost are learnt."""
        if self._bins is None:
            cost = self.cost or Macs(self.net, tuple(shape))
            self._bins = Bins(self.space, cost, count=self.count, samples=self.samples, seed=self.seed)
        if not self._warm:
            self._warm = True
            known = self.costs.fit(self._bins.cost, samples=self.samples, steps=self.warm_steps, seed=self.seed)
            self.generator.know(*known)
            rng = random.Random(f"warm/{self.seed}")
            learn_from_cost(self.generator, self.costs, self._bins.cost, self._several, steps=self.warm_steps, rng=rng)
        return self._bins

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; the generator's training on costs alone is not in it."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimisers of supernet and generator, the bins' scores, steps done and their effort."""
        return {
            **self.training.state_dict(),
            "generator": self.generator.state_dict(),
            "generator_optimizer": self.optimizer.state_dict(),
            "costs": self.costs.state_dict(),
            "scores": dict(self.scores),
            "warm": self._warm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        restore(self.optimizer, state["generator_optimizer"])
        self.costs.load_state_dict(state["costs"])
        self.scores, self._warm = dict(state["scores"]), state["warm"]


def bin_chances(scores: list[float], temperature: float, floor: float) -> list[float]:
    """Return the probability of each bin: a softmax of the scores in units of their mean, mixed with uniform ones."""
    sizes = torch.tensor(scores, dtype=torch.float64)
    shifted = (sizes / sizes.mean().clamp_min(1e-12) / temperature).softmax(0)
    chances: list[float] = ((1 - floor) * shifted + floor / len(scores)).tolist()
    return chances
