# SPDX-License-Identifier: Apache-2.0
"""DASS: search for networks that are to be sparse, under their sparsity.

Mousavi, Loni, Alibeigi, Daneshtalab: "DASS: Differentiable Architecture Search for Sparse Neural Networks", ACM TECS
22(5s), 2023, arXiv:2207.06968. Pruning by scores is HYDRA's (`sartor.nn.sparsify`).

Networks that were found for dense use lose much accuracy when 95 to 99 % of their weights are pruned. Here convolutions
and linear layers learn which few of their weights are kept, and the alphas are judged by the validation loss of the
sparse network:

    min over alpha of L_val(w * m, alpha), m = argmin of L_train(w * m, alpha), w = argmin of L_train(w * m, alpha)

Three stages repeat: pre-train the dense network, prune it by learning scores alone, fine-tune what is left. The network
found goes through them once more, by itself (`HYDRA`).

Differs from the paper:
- How long stages are and how often they repeat could not be checked: half of a round is pre-training, a quarter each
  pruning and fine-tuning, and there are two rounds.
- Depthwise convolutions, whose kernels have few weights, stay dense, as do those outside the searched operations.
- Scores start anew from the weights in each round; they have no weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable._pruning import HYDRA, KEPT, Scores, Stages, sparse
from sartor.differentiable._unrolled import unrolled
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, total_loss
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.space import SearchSpace

__all__ = ["DASS", "HYDRA", "KEPT", "Stages", "sparse"]

RECIPE = Recipe()
STAGES = Stages(rounds=2)


class DASS:
    """The learner of DASS.

    Args:
        net: the network with choices; `sparse` is applied to it here unless it was before.
        space: the architectures to search, without the choice of the share kept.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, over which the stages are laid.
        seed: of the initial alphas.
        cost: expected cost of an assignment; penalty: how it joins the loss of the alphas.
        recipe: of weights and alphas; its learning rate is that of pre-training.
        keep: share of the weights kept in each layer (0.01: 99 % sparse).
        stages: how long each stage is.
        order: 2, the gradient of the alphas through one step of the weights, as published; or 1.
        prune_lr, finetune_lr: learning rates of the scores and of the weights that are left, each to 0 along a cosine.
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
        keep: float = 0.01,
        stages: Stages = STAGES,
        order: Literal[1, 2] = 2,
        prune_lr: float = 0.1,
        finetune_lr: float = 0.01,
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"order is {order}: it is 2 as published, or 1 for half of the time")
        if KEPT in space.choices:
            raise ValueError(f"{KEPT!r} is a choice of the space: take search_space(net) before the network is sparse")
        self.net, self.loss, self.cost, self.penalty = sparse(net, keep), loss, cost, penalty
        self.steps, self.stages, self.order, self.keep = steps, stages, order, keep
        self.rates = recipe, prune_lr, finetune_lr
        self.scores = Scores(net, recipe.momentum)
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe, learning_rate=self.learning_rate)
        self.scores.thaw()

    def learning_rate(self, done: int, steps: int) -> float:
        """Return the rate of what is trained in the stage of this step."""
        return self.stages.learning_rate(done, steps, *self.rates)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Take the step of the stage: scores with the first batch; or alphas with the second, weights with the first.

        Returns the training loss, the stage, the share of the weights that are kept in it, and more.
        """
        _, stage, _ = self.stages.at(self.descent.done, self.steps)
        kept = 1.0 if stage == 0 else self.keep
        rate, cost = self.descent.learning_rate, 0.0

        def train(fixed: bool = False) -> Tensor:
            return total_loss(self.net, self.mixture(kept, fixed), batch[0], self.loss)[0]

        def validation() -> Tensor:
            nonlocal cost
            value, cost = total_loss(self.net, self.mixture(kept), batch[1], self.loss, self.cost, self.penalty)
            return value

        if stage == 1:
            if self.stages.begins(self.descent.done, self.steps):
                self.scores.restart()
            loss = self.scores.step(train(fixed=True), self.descent)  # b. the scores alone
        else:  # a. dense, c. with the mask
            if self.order == 1:
                self.descent.architecture(validation())
            else:
                self.descent.step_architecture(unrolled(self.descent, train, validation)[1])
            loss = self.descent.weights(train(fixed=True))
        self.descent.done += 1
        found = {"loss": loss, "learning_rate": rate, "stage": float(stage), "kept": kept}
        found |= {"entropy": float(self.alphas.entropy().detach())}
        return found | ({"cost": cost} if self.cost is not None else {})

    def mixture(self, kept: float | None = None, fixed: bool = False) -> Assignment:
        """Return the mixture of all operations, sparse unless `kept` is 1; `fixed`, without a gradient."""
        with torch.set_grad_enabled(not fixed):
            found = self.alphas.assignment(relaxations.softmax(self.alphas.logits))
        return found | {KEPT: self.keep if kept is None else kept}

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now, read out as in DARTS."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, scores, alphas, optimisers and the number of steps done."""
        return {"descent": self.descent.state_dict(), "scores": self.scores.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state["descent"])
        self.scores.optimizer.load_state_dict(state["scores"])
