# SPDX-License-Identifier: Apache-2.0
"""sharpDARTS: Max-W weights, cosine power annealing, and the best path through a grid.

Hundt, Jain, Hager: "sharpDARTS: Faster and More Accurate Differentiable Architecture Search", 2019,
arXiv:1903.09900; code: ahundt/sharpDARTS.

In DARTS a weight that grows feeds itself, so that operations which are good at once, skips above all, run away before
the others have learned. Max-W scales operation i by 1 - w_max + w_i: the largest has the factor 1 and growing shrinks
all others instead. The learning rate falls faster than a cosine (cosine power annealing), and blocks are uniform
(`sartor.spaces.sharp_operations`).

Differs from the paper:
- `longest_path` reads the best path out of any layered grid of scores; the space with channels on a grid (HyperCuboid)
  is not here.
- Warm-up raises the learning rate linearly to its maximum; its 5 of 120 epochs and the schedule's epochs are shares of
  the steps.
- The published code does not detach w_max, though a comment in it says so. Nor is it here; `detach` is the other form.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.space import SearchSpace

__all__ = ["CosinePower", "SharpDARTS", "longest_path"]

RECIPE = Recipe(lr_min=1e-4)  # the published search: as DARTS but for the last learning rate
POWER = 2.0  # the published code's; the paper shows 10 for ImageNet
WARM_UP = 5 / 120  # epochs of epochs


@dataclass(frozen=True)
class CosinePower:
    """Cosine power annealing: callable (done, steps) -> learning rate.

    With steps e = 1..T after the warm-up, c = (1 + cos(pi e / T)) / 2 and q = power^(c + 1), or q = c for power 1, it
    is low + (high - low) * (q - min q) / (max q - min q): `high` at the first, `low` at the last.

    power: 1 is the cosine; a larger one falls faster. warm_up: share of the steps in which the rate rises linearly
    to `high`. Raises ValueError for a power below 1 or a warm-up that is no share.
    """

    high: float
    low: float = 0.0
    power: float = POWER
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        """Check power and warm-up."""
        if self.power < 1.0 or not 0.0 <= self.warm_up < 1.0:
            raise ValueError(f"power {self.power}, warm-up {self.warm_up}: give at least 1, and a share below 1")

    def __call__(self, done: int, steps: int) -> float:
        """Return the learning rate of the step after `done` of `steps`."""
        warm = round(self.warm_up * steps)
        if done < warm:
            return self.high * (done + 1) / (warm + 1)
        last = max(steps - warm, 1)
        now, largest, least = (self._power(e / last) for e in (min(done - warm + 1, last), 1, last))
        part = (now - least) / (largest - least) if largest > least else 1.0
        return self.low + (self.high - self.low) * part

    def _power(self, part: float) -> float:
        c = (1.0 + math.cos(math.pi * part)) / 2.0
        return c if self.power == 1.0 else self.power ** (c + 1.0)


class SharpDARTS:
    """The learner of sharpDARTS: first-order DARTS whose operations have Max-W weights.

    Args:
        net: the network with choices.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which the learning rate follows.
        seed: of the initial alphas.
        cost: expected cost of an assignment, under the softmax weights, which sum to 1 where Max-W's do not.
        penalty: how the cost joins the loss of the alphas.
        recipe: of weights and alphas; its `lr` and `lr_min` are the ends of the schedule.
        power, warm_up: of `CosinePower`.
        detach: let no gradient through w_max.
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
        power: float = POWER,
        warm_up: float = WARM_UP,
        detach: bool = False,
    ) -> None:
        self.net, self.loss, self.cost, self.penalty, self.detach = net, loss, cost, penalty, detach
        self.alphas = Alphas(net, space, seed=seed)
        schedule = CosinePower(recipe.lr, recipe.lr_min, power, warm_up)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe, learning_rate=schedule)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Step on the alphas with the second batch, then on the weights with the first."""
        rate, cost = self.descent.learning_rate, 0.0
        loss = total_loss(self.net, self.mixture(), batch[1], self.loss)[0]
        if self.cost is not None:
            expected = self.cost(self.alphas.assignment(relaxations.softmax(self.alphas.logits)))
            loss, cost = self.penalty(loss, expected), float(expected.detach())
        validation = self.descent.architecture(loss)
        training = self.descent.weights(total_loss(self.net, self.mixture(fixed=True), batch[0], self.loss)[0])
        self.descent.done += 1
        found = {"loss": training, "validation_loss": validation, "learning_rate": rate}
        found |= {"entropy": float(self.alphas.entropy().detach())}
        return found | ({"cost": cost} if self.cost is not None else {})

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return the Max-W weights of all operations, as `activated` takes them; `fixed`, without a gradient."""
        with torch.set_grad_enabled(not fixed):
            return self.alphas.assignment(relaxations.max_w(relaxations.softmax(self.alphas.logits), self.detach))

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now, read out as in DARTS; Max-W leaves the order of weights as it is."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, alphas, optimisers and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)


Edge = tuple[Hashable, Hashable, Hashable, float]
"""From a node to a node, by an operation, with a score."""


def longest_path(edges: Sequence[Edge], source: Hashable, sink: Hashable) -> tuple[float, list[Edge]]:
    """Return the path of the largest sum of scores from `source` to `sink`, and that sum.

    The read-out of a grid of layers and widths, in which an edge is an operation between two widths of two layers. Of
    equal paths one is taken, always the same. Linear in the edges. Raises ValueError for a graph with a cycle
    that the source leads into, and where no path leads to the sink.
    """
    leaving: dict[Hashable, list[Edge]] = {}
    for edge in edges:
        leaving.setdefault(edge[0], []).append(edge)
    best: dict[Hashable, float] = {source: 0.0}
    into: dict[Hashable, Edge] = {}  # the last edge of the best path to a node
    for node in _in_order(leaving, source):
        for edge in leaving.get(node, ()):
            if edge[1] not in best or best[node] + edge[3] > best[edge[1]]:
                best[edge[1]], into[edge[1]] = best[node] + edge[3], edge
    if sink not in best:
        raise ValueError(f"no path leads from {source!r} to {sink!r}: give edges that join them")
    path: list[Edge] = []
    while sink != source:
        path.insert(0, into[sink])
        sink = into[sink][0]
    return sum(edge[3] for edge in path), path


def _in_order(leaving: Mapping[Hashable, Sequence[Edge]], source: Hashable) -> list[Hashable]:
    """Return the nodes that can be reached, each before those that its edges lead to."""
    arriving: dict[Hashable, int] = {source: 0}
    waiting = [source]
    while waiting:
        for edge in leaving.get(waiting.pop(), ()):
            if edge[1] not in arriving:
                waiting.append(edge[1])
            arriving[edge[1]] = arriving.get(edge[1], 0) + 1
    ready, ordered = ([source] if not arriving[source] else []), list[Hashable]()
    while ready:
        ordered.append(node := ready.pop())
        for edge in leaving.get(node, ()):
            arriving[edge[1]] -= 1
            if not arriving[edge[1]]:
                ready.append(edge[1])
    if len(ordered) < len(arriving):
        raise ValueError("the edges make a cycle: a path through a grid of layers only goes on")
    return ordered
