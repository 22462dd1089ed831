# SPDX-License-Identifier: Apache-2.0
"""SD-DARTS: distil the supernet from its own past, so that reading out loses less.

Zhu, Li, Liu, Wang: "Improving Differentiable Architecture Search via Self-Distillation", Neural Networks 2023,
arXiv:2302.05629. No official code.

DARTS's supernets settle in sharp minima, and to leave one operation of each mixture is a long step there: accuracy
drops. Here the weights also learn what the supernet predicted a while ago, which smooths the way. The K last
snapshots of weights and alphas vote, so that the teacher is less noisy.

Differs from the paper:
- The loss is a reconstruction from the abstract and the description of the voting teacher; K, the temperature, the
  ramp and how often a snapshot is taken are ours.
- Teachers use the statistics of the batch in batch norm, as the student does: the divergence measures what was learned,
  not how running statistics drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sartor.architecture import Architecture
from sartor.differentiable import relaxations
from sartor.differentiable.alphas import Alphas, Assignment
from sartor.differentiable.descent import Batch, Cost, Descent, Loss, Recipe, logits_of, total_loss
from sartor.differentiable.diagnostics import undisturbed
from sartor.differentiable.penalties import Penalty, add
from sartor.differentiable.readout import strongest_edges
from sartor.nn import channels_last, resized
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["SDDARTS", "divergence", "vote"]

RECIPE = Recipe()
EPOCHS = 50  # of the search in DARTS: a snapshot is taken after each of as many parts of the training


class SDDARTS:
    """The learner of SD-DARTS.

    Args:
        net: the network with choices; it takes images to (N, K) logits.
        space: the architectures to search, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the search, which learning rate, ramp and snapshots follow.
        seed: of the initial alphas.
        cost: expected cost of an assignment; penalty: how it joins the loss of the alphas.
        recipe: of weights and alphas, DARTS's.
        strength: lambda, the weight of the divergence once the ramp is over; 0 is DARTS, bit for bit.
        temperature: T, of teacher and student.
        snapshots: K, the past supernets kept; they take K times the memory of the parameters.
        every: steps between snapshots; a fiftieth of `steps` if None.
        ramp: share of the steps in which lambda rises linearly from 0.
        voting: "soft", the mean of the snapshots' predictions; or "hard", the class that most of them predict.
        smoothing: of the hard vote: the share of the probability that is spread over all classes.

    Raises ValueError for a number, a share or a vote that is none of these.
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
        strength: float = 1.0,
        temperature: float = 2.0,
        snapshots: int = 3,
        every: int | None = None,
        ramp: float = 5 / EPOCHS,
        voting: Literal["soft", "hard"] = "soft",
        smoothing: float = 0.1,
    ) -> None:
        if snapshots < 1 or temperature <= 0.0 or voting not in ("soft", "hard"):
            raise ValueError(
                f"{snapshots} snapshots, temperature {temperature}, voting {voting!r}: give at least 1, above 0, and "
                '"soft" or "hard"'
            )
        if not 0.0 <= ramp <= 1.0 or (every is not None and every < 1):
            raise ValueError(f"ramp {ramp}, a snapshot every {every} steps: give a share of the steps, and at least 1")
        self.net, self.loss, self.cost, self.penalty = net, loss, cost, penalty
        self.alphas = Alphas(net, space, seed=seed)
        self.descent = Descent(net, self.alphas, steps=steps, recipe=recipe)
        self.strength, self.temperature, self.ramp = strength, temperature, ramp
        self.snapshots, self.every = snapshots, max(1, steps // EPOCHS) if every is None else every
        self.voting, self.smoothing = voting, smoothing
        self.past: list[dict[str, Any]] = []

    @property
    def weight(self) -> float:
        """lambda now: 0 until there is a snapshot, and rising over the ramp."""
        if not self.past:
            return 0.0
        return self.strength * (min(self.descent.part / self.ramp, 1.0) if self.ramp > 0.0 else 1.0)

    def step(self, batch: tuple[Batch, Batch]) -> Mapping[str, float]:
        """Step on the alphas with the second batch, as DARTS does, then on the weights with loss and divergence."""
        rate, weight, distance = self.descent.learning_rate, self.weight, 0.0
        loss, cost = total_loss(self.net, self.mixture(), batch[1], self.loss, self.cost, self.penalty)
        validation = self.descent.architecture(loss)
        images, labels = batch[0]
        teacher = self.teacher(images) if weight else None
        logits = logits_of(self.net, self.mixture(fixed=True), images)
        loss = self.loss(logits, labels)
        if teacher is not None:
            distilled = divergence(teacher, logits, self.temperature)
            loss, distance = loss + weight * distilled, float(distilled.detach())
        training = self.descent.weights(loss)
        self.descent.done += 1
        if self.descent.done % self.every == 0:
            self.snapshot()
        found = {"loss": training, "validation_loss": validation, "distillation": distance, "learning_rate": rate}
        found |= {"entropy": float(self.alphas.entropy().detach())}
        return found | ({"cost": cost} if self.cost is not None else {})

    def snapshot(self) -> None:
        """Keep the weights and alphas of now, and let go of the oldest beyond `snapshots`."""
        weights = {name: one.detach().clone() for name, one in self.net.named_parameters()}
        mixture = relaxations.softmax(self.alphas.logits).detach()
        self.past = [*self.past, {"weights": weights, "mixture": mixture}][-self.snapshots :]

    @torch.no_grad()
    def teacher(self, images: Tensor) -> Tensor:
        """Return what the snapshots vote for on images (N, C, H, W): (N, K) probabilities."""
        with undisturbed(self.net):
            logits = torch.stack([self._predictions(one, images) for one in self.past])
        return vote(logits, self.temperature, self.smoothing if self.voting == "hard" else None)

    def _predictions(self, past: Mapping[str, Any], images: Tensor) -> Tensor:
        self.net.train()
        with activated(self.net, self.alphas.assignment(past["mixture"])):
            logits: Tensor = functional_call(self.net, past["weights"], (resized(channels_last(images), self.net),))
        return logits

    def mixture(self, fixed: bool = False) -> Assignment:
        """Return the mixture of all operations, as `activated` takes it; `fixed`, without a gradient for the alphas."""
        return self.alphas.mixture(fixed)

    def architecture(self) -> Architecture:
        """Return what the alphas prefer now, read out as in DARTS."""
        return strongest_edges(self.alphas, self.net)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, alphas, optimisers, the number of steps done and the snapshots, oldest first."""
        return {"descent": self.descent.state_dict(), "past": self.past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.descent.load_state_dict(state["descent"])
        mixture, self.past = self.alphas.probabilities(), []
        for past in state["past"]:  # in the memory format of the parameters, on which the last bit depends
            own = {name: one.detach().clone().copy_(past["weights"][name]) for name, one in self.net.named_parameters()}
            self.past.append({"weights": own, "mixture": mixture.clone().copy_(past["mixture"])})


def vote(logits: Tensor, temperature: float, smoothing: float | None = None) -> Tensor:
    """Return the (N, C) probabilities of the teacher from the (K, N, C) logits of K snapshots.

    p_T = mean over k of softmax(logits_k / T), the soft vote. With `smoothing` the hard one: 1 - smoothing for the
    class that most snapshots predict, the likelier of equals, and smoothing / C for every class.
    """
    soft = (logits / temperature).softmax(2).mean(0)
    if smoothing is None:
        return soft
    classes = logits.shape[2]
    votes = F.one_hot(logits.argmax(2), classes).sum(0)
    winner = (votes + 0.5 * soft).argmax(1)  # whole votes first
    return (1.0 - smoothing) * F.one_hot(winner, classes).to(soft) + smoothing / classes


def divergence(teacher: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || softmax(logits / T)), the mean over the (N, C) samples.

    T^2 keeps the size of the gradients, which fall with it (Hinton et al., 2015).
    """
    student = (logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean")
