# SPDX-License-Identifier: Apache-2.0
"""LA-DARTS: DARTS with the latency that a network has learnt to predict.

Xu, Xie, Zhang, Chen, Shi, Tian & Xiong, "Latency-Aware Differentiable Neural Architecture Search", 2020,
arXiv:2001.06392. No official code.

Branches of a cell run in parallel and operators are fused, so that a table of operators adds up badly. A regressor
learns the latency of whole networks from their code, once for a device, and is frozen. Its output on the code of the
relaxed architecture joins the validation loss, and alpha goes down L_val(w, alpha) + lambda * LPM(enc(alpha)).

    archs, ms = measured(space, latency_ms, 2000)  # of any profile, table or other cost of architectures
    predictor = sartor.predictors.LADARTS(space).fit(archs, ms)
    search = LADARTSSearch(net, space, steps=2500, cost=predictor, unit=ms.mean(), penalty=add(0.5))

A regressor that has seen whole networks alone takes what lies between them for faster than all of them. So the code is
brought near to them: a node keeps its two strongest edges, and an edge its strongest operation, in value; the gradient
is that of the softmax (straight-through). Then the regressor is asked about the network that would be read out now.

Differs from the paper:
- Any number of networks and any space; the regressor is `sartor.predictors.LADARTS`, or anything else that gives the
  cost of an assignment with a gradient.
- lambda is not published for this scale: 1 times the latency over its mean, by default.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import edges_of, strongest_edges
from sartor.gates import key
from sartor.relaxation import strongest
from sartor.space import SearchSpace

__all__ = ["LADARTSSearch", "measured", "near_networks"]

RECIPE = Recipe()  # DARTS's


class LADARTSSearch:
    """The learner of LA-DARTS; a batch is one of training images and one of validation images.

    Args:
        net: the network with choices.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which the learning rate follows.
        cost: the frozen regressor. Its attribute `space`, if it has one, may have fewer options than the search's, as
            the paper's encoding leaves "none" out.
        penalty: how the cost joins the validation loss; `add(strength)` is the paper's, 0 is DARTS.
        unit: what the cost is divided by: the mean over networks, as otherwise the strength depends on the device.
        near: bring the code near to that of networks; without, the regressor sees the softmax and all edges.
        seed: of the initial logits.
        recipe: of weights and alphas.
    """

    needs = "pairs"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        cost: Cost,
        penalty: Penalty = add(1.0),  # noqa: B008 - frozen
        unit: float = 1.0,
        near: bool = True,
        seed: int = 0,
        recipe: Recipe = RECIPE,
    ) -> None:
        if not unit > 0.0:
            raise ValueError(f"unit is {unit}: give the mean cost of networks, which is above 0")
        self.net, self.loss, self.cost, self.penalty, self.unit, self.near = net, loss, cost, penalty, unit, near
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one step on alpha, then one on w; images (N, C, H, W) and labels (N,) of each half.

        Returns the training loss, the learning rate, alpha's entropy and the predicted cost.
        """
        train, validation = batch
        rate = self.descent.learning_rate
        # alpha: L(alpha) = L_val(w, alpha) + lambda * LPM(enc(alpha))
        value, _ = total_loss(self.net, self.mixture(), validation, self.loss)
        cost = self.predicted()
        self.descent.architecture(self.penalty(value, cost / self.unit))
        # w: as in DARTS
        fixed = self.mixture(fixed=True)
        loss = self.descent.weights(total_loss(self.net, fixed, train, self.loss)[0])
        self.descent.done += 1
        found = {"loss": loss, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        return found | {"cost": float(cost.detach())}

    def predicted(self) -> Tensor:
        """Return the cost that the regressor predicts now: a scalar with gradients for the alphas."""
        weights = relaxations.softmax(self.alphas.logits)
        known: SearchSpace = getattr(self.cost, "space", self.alphas.space)
        return self.cost(near_networks(self.alphas, self.net, weights, known, hard=self.near))

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return the softmax over operations, all edges of a node kept; `fixed`, without a gradient for the alphas."""
        return self.alphas.mixture(fixed)

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now, read out as in DARTS."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the alphas, the optimisers and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)


def near_networks(
    alphas: Alphas, net: nn.Module, weights: Tensor, known: SearchSpace, *, hard: bool = True
) -> Assignment:
    """Return the assignment that a regressor of whole networks is asked about, from (C, K) weights.

    Each choice has weights over its options in `known` that sum to 1; a node's are over its lists of edges, in
    proportion to the product of the edges' strengths, and an edge is as strong as its strongest option in `known`.
    With `hard` the values are one-hot, and the gradients still those of the soft weights. Raises ValueError for a
    choice or an option of `known` that the search does not have, and for a node that `known` does not have.
    """
    rows, found = alphas.named(weights), {}
    strength: dict[str, Tensor] = {}
    for name, options in known.choices.items():
        if name in alphas.inputs:
            continue
        if name not in rows:
            raise ValueError(f"the cost asks for {name!r}, which is not searched: make it for the space of the search")
        places = {key(option): place for place, option in enumerate(alphas.options[name])}
        if absent := [option for option in options if key(option) not in places]:
            raise ValueError(
                f"the cost asks for {absent[0]!r} of {name!r}, which is not searched: make it for the search"
            )
        columns = [places[key(option)] for option in options]
        row = rows[name][columns]
        strength[name] = row.max()
        found[name] = row / row.sum()
    for node, edges in edges_of(net).items():
        if node not in known.choices:
            raise ValueError(f"the cost knows no choice {node!r}: make it for the space of the search")
        own = alphas.edge_weights()[node]
        strengths = torch.stack([strength.get(edge, own.new_ones(())) * own[i] for i, edge in enumerate(edges)])
        products = torch.stack([strengths[list(option)].prod() for option in known.choices[node]])  # type: ignore[arg-type]
        found[node] = products / products.sum()
    return {name: strongest(row, 1) if hard else row for name, row in found.items()}


def measured(
    space: SearchSpace, cost: Callable[[Architecture], float], count: int, *, seed: int = 0
) -> tuple[list[Architecture], NDArray[np.float64]]:
    """Return up to `count` distinct architectures, drawn as the read-out draws (two edges a node), and their costs.

    What a regressor learns from: the cost of an architecture may be measured, or come from a profile, a table or a
    model of a device. Fewer come back where the space has fewer. Raises ValueError for a count below 2.
    """
    if count < 2:
        raise ValueError(f"count is {count}: a regressor needs at least 2 networks")
    rng, found = random.Random(seed), dict[Architecture, float]()
    for _ in range(20 * count):
        if len(found) == count:
            break
        if (arch := space.sample(rng)) not in found:
            found[arch] = float(cost(arch))
    return list(found), np.array(list(found.values()))
