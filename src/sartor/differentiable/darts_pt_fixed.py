# SPDX-License-Identifier: Apache-2.0
"""The supernet of DARTS-PT's variant without a search: alphas that stay uniform.

Wang et al., ICLR 2021, arXiv:2108.04392, the fixed-alpha variant. Reading it out by `darts_pt.DARTSPT` shows how
little the alphas are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Batch, Descent, Loss, Recipe, total_loss
from sartor.differentiable.readout import strongest_edges
from sartor.space import SearchSpace

__all__ = ["FixedAlphas"]

RECIPE = Recipe()  # DARTS's


class FixedAlphas:
    """A supernet whose alphas stay uniform: what the paper's variant without a search reads out by `DARTSPT`.

    Args:
        net: the network with choices.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which the learning rate follows.
        recipe: of the weights.
    """

    needs = "single"

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        recipe: Recipe = RECIPE,
    ) -> None:
        self.net, self.loss = net, loss
        self.alphas = Alphas(net, space, scale=0.0)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step on the weights, all options mixed equally; images (N, C, H, W) and labels (N,)."""
        rate = self.descent.learning_rate
        with torch.no_grad():
            uniform = self.alphas.assignment(relaxations.softmax(self.alphas.logits))
        loss = self.descent.weights(total_loss(self.net, uniform, batch, self.loss)[0])
        self.descent.done += 1
        return {"loss": loss, "learning_rate": rate, "entropy": float(self.alphas.entropy().detach())}

    def architecture(self) -> Architecture:
        """Return the first of all that are equal."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser and the number of steps done."""
        return self.descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state)
