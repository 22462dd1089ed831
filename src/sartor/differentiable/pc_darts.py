# SPDX-License-Identifier: Apache-2.0
"""PC-DARTS: DARTS on a part of the channels, with weights for the edges.

Xu, Xie, Zhang, Chen, Qi, Tian & Xiong, "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture
Search", ICLR 2020, arXiv:1907.05737. Official code: yuhuixu1993/PC-DARTS.

Only the first 1/K of the channels of an edge go through its operations; the others pass by, and a shuffle lets other
channels lead at the next edge. Memory falls by about K, which pays for larger batches. As a part of the channels makes
a noisy vote between edges, each node has a second softmax, beta, over its incoming edges, and both are frozen while the
weights are still raw.

    net = DartsNetwork(mixed=PartialChannels(4))
    search = PCDARTS(net, search_space(net), steps=2500)

The architecture has the names of the plain network, `DartsNetwork(form="evaluation")`, and is extracted from that.

Differs from the paper:
- The freeze is a share of the steps, 15 of 50 epochs in CIFAR's recipe (35 of 50 in ImageNet's: `frozen=0.7`).
- Where a side is odd, the pool of the channels that pass by rounds it up, as the operations do.
- On a network without nodes that choose inputs there is no beta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.nn import OneOf
from sartor.space import SearchSpace

__all__ = ["PCDARTS", "PartialChannels", "PartialEdge", "shuffled"]

RECIPE = Recipe(lr=0.1, lr_min=0.0, alpha_lr=6e-4)  # the paper's, for CIFAR-10: batches of 256, 50 epochs
FROZEN = 15 / 50


class PCDARTS:
    """The learner of PC-DARTS; a batch is one of training images and one of validation images.

    Args:
        net: the network with choices, its edges made by `PartialChannels`.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which the learning rate and the freeze follow.
        seed: of the initial logits.
        cost: expected cost of an assignment; penalty: how it joins the loss of the alphas.
        recipe: of weights and alphas.
        frozen: share of the steps before which alpha and beta stay as they are.
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
        frozen: float = FROZEN,
    ) -> None:
        if not 0.0 <= frozen <= 1.0:
            raise ValueError(f"frozen is {frozen}: it is a share of the steps, from 0 to 1")
        self.net, self.loss, self.cost, self.penalty, self.frozen = net, loss, cost, penalty, frozen
        self.alphas = Alphas(net, space, seed=seed, edges=True)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take one step on alpha and beta, once they are free, then one on w; images (N, C, H, W) and labels (N,).

        Returns the training loss, the learning rate and alpha's entropy.
        """
        train, validation = batch
        rate = self.descent.learning_rate
        if self.descent.part >= self.frozen:
            value, _ = total_loss(self.net, self.mixture(), validation, self.loss, self.cost, self.penalty)
            self.descent.architecture(value)
        fixed = self.mixture(fixed=True)
        loss = self.descent.weights(total_loss(self.net, fixed, train, self.loss)[0])
        self.descent.done += 1
        found = {"loss": loss, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}
        if self.cost is not None:
            found["cost"] = float(self.cost(self.mixture(fixed=True)))
        return found

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return softmax(alpha) for the operations and softmax(beta) for the edges into each node (equation 2).

        fixed: without a gradient for them.
        """
        return self.alphas.mixture(fixed)

    def architecture(self) -> Architecture:
        """Return what alpha times beta prefers now (section 3.3)."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, alpha and beta, the optimisers and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)


@dataclass(frozen=True)
class PartialChannels:
    """Makes the edges of a network: what `DartsNetwork(mixed=...)` takes.

    parts: K, of which one goes through the operations (4 for CIFAR-10, 2 for ImageNet; 1 is DARTS). K must divide
    the width of every edge. Raises ValueError where it does not.
    """

    parts: int = 4

    def __call__(self, make: Callable[[int], dict[str, nn.Module]], width: int, stride: int) -> PartialEdge:
        """Return an edge of `width` channels around the operations that `make(width / K)` gives."""
        if self.parts < 1 or width % self.parts:
            raise ValueError(f"an edge of {width} channels has no {self.parts} equal parts: give another K or width")
        return PartialEdge(OneOf(make(width // self.parts)), self.parts, stride)


class PartialEdge(nn.Module):
    """An edge: (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    The first C / parts channels go through the mixed operation (equation 1). The others pass by, through a 2x2 max pool
    where the stride is 2. Then channels are shuffled in `parts` groups.
    """

    def __init__(self, mixed: OneOf, parts: int, stride: int) -> None:
        super().__init__()
        self.mixed, self.parts, self.stride = mixed, parts, stride

    @property
    def choice(self) -> Choice:
        """The choice of the operation, which may be shared between edges."""
        return self.mixed.choice

    @choice.setter
    def choice(self, choice: Choice) -> None:
        self.mixed.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        """The operation's channels and those that passed by, shuffled."""
        width = x.shape[1] // self.parts
        out: Tensor = self.mixed(x[:, :width])
        if self.parts == 1:
            return out
        others = x[:, width:]
        if self.stride == 2:
            others = F.max_pool2d(others, 2, 2, ceil_mode=True)
        return shuffled(torch.cat((out, others), 1), self.parts)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Return (N, C, H, W) with its channels dealt out: the first of each of the groups, then the second, and so on.

    C / groups groups bring them back. Channels-last tensors stay so.
    """
    last = x.permute(0, 2, 3, 1)
    dealt = last.view(*last.shape[:3], groups, -1).transpose(3, 4).flatten(3)
    return dealt.permute(0, 3, 1, 2)
