# SPDX-License-Identifier: Apache-2.0
"""InstaTune: make a supernet of a pretrained network while it is fine-tuned.

Sridhar, Kundu, Sundaresan, Szankin, Sarah: "InstaTune: Instantaneous Neural Architecture Search During Fine-Tuning",
ICCV Workshops (RCV) 2023, arXiv:2308.15609. No official code.

The idea: do not train a supernet from scratch, but let the layers of a pretrained network be elastic while it learns a
task. Each step trains the full network on the labels, and random sub-networks on the labels and on a teacher: the full
network itself, or a strong one that was fine-tuned before. A search over the sub-networks then follows.

Differs from the paper:
- The teacher's side of every divergence has no gradient. The formula does not say so; otherwise the full network would
  be drawn towards its weak sub-networks.
- Each loss has a backward pass of its own, and the gradients add up to those of the paper's single pass of the sum.
- The divergence is multiplied by the square of the temperature, as in `divergences.kl`; at 1 nothing changes.
- Sub-networks may be drawn by another policy than uniformly.
What is elastic, and which layers a depth keeps, is the network's affair: see `sartor.adapt.elastic`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot._recipe import FINE_TUNING, Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.divergences import kl
from sartor.oneshot.sampling import largest, uniform
from sartor.space import SearchSpace

__all__ = ["Guidance", "InstaTune"]

Guidance = Literal["low", "high", "mixed"]
"""Who teaches: at low cost the full network, at high cost a strong teacher, mixed first the latter, then the former."""

Policy = Callable[[SearchSpace, random.Random, int], list[Architecture]]


class InstaTune:
    """The learner of InstaTune.

    Args:
        net: a pretrained network with choices, from inputs (N, ...) to logits (N, K).
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        teacher: T, a network of the same inputs and logits, fine-tuned on the task before; it is put in eval mode, and
            not saved with the learner. In the paper it is the same network.
        guidance: the paper's gamma: "low" is 0 throughout and takes no teacher, "high" is 1 throughout, "mixed" is 1
            in the first part. If nothing is said, high with a teacher and low without.
        mixed: the share of the steps that the first part of "mixed" has: ten epochs of twenty in the paper.
        label_share: alpha, the part of the loss that is of the labels.
        temperature: rho, which logits are divided by before they are compared.
        n_random: M, sub-networks per step beside the full network.
        policy: draws them from the space; uniformly, as in the paper, see `sampling` for others.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks; each step draws from its own seed.

    Raises ValueError for a guidance that lacks its teacher or does not use it, for numbers out of range, and for a
    space whose constraint excludes the full network.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        teacher: nn.Module | None = None,
        guidance: Guidance | None = None,
        mixed: float = 0.5,
        label_share: float = 0.3,
        temperature: float = 1.0,
        n_random: int = 1,
        policy: Policy = uniform,
        recipe: Recipe = FINE_TUNING,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.guidance: Guidance = guidance or ("low" if teacher is None else "high")
        _check(self.guidance, teacher, mixed, label_share, temperature, n_random)
        self.net, self.space, self.loss, self.teacher = net, space, loss, teacher
        self.mixed, self.label_share, self.temperature = mixed, label_share, temperature
        self.n_random, self.policy, self.seed = n_random, policy, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.largest = largest(space)
        self.passes_per_step = 1.0 + n_random

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on inputs (N, ...) and labels (N,).

        Returns the full network's cross-entropy, that of the sub-networks, the mean divergence of these from their
        teacher, and the learning rate.
        """
        archs = self.policy(self.space, draws(self.seed, self.training.done), self.n_random)
        sums = torch.zeros(3)
        for inputs, labels in self.training.parts(batch):
            sums += torch.stack(self._part(inputs, labels, archs))
        full, sub, divergence = (sums / self.training.means.accumulate).tolist()
        rate = self.training.update()
        return {"loss": full, "sub_loss": sub, "divergence": divergence, "learning_rate": rate}

    def _part(self, inputs: Tensor, labels: Tensor, archs: list[Architecture]) -> list[Tensor]:
        """Add up the gradients of a part of the batch: alpha CE + (1 - alpha) KL of S, then of each S_i."""
        logits = self.training.logits(self.largest, inputs)  # S: the student here, and the teacher of the S_i
        strong = self._taught(inputs)
        own, _ = self._learn(logits, labels, strong)
        teacher = logits.detach() if strong is None else strong  # (1 - gamma) KL(S_i, S) + gamma KL(S_i, T)
        sums = [torch.zeros(()), torch.zeros(())]
        for arch in archs:
            both = self._learn(self.training.logits(arch, inputs), labels, teacher)
            sums = [total + one for total, one in zip(sums, both, strict=True)]
        return [own, *(total / max(len(archs), 1) for total in sums)]

    def _learn(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add the gradient of one network's loss; return its cross-entropy and its divergence from the teacher."""
        hard = self.training.recipe.smoothed(self.loss, logits, labels)
        soft = torch.zeros_like(hard) if teacher is None else kl(logits, teacher, self.temperature)
        self.training.backward(self.label_share * hard + (1.0 - self.label_share) * soft)
        return hard.detach().cpu(), soft.detach().cpu()

    def _taught(self, inputs: Tensor) -> Tensor | None:
        """T's logits (N, K) where gamma is 1 in this step."""
        first = self.guidance == "mixed" and self.training.done < self.mixed * self.training.steps
        if self.teacher is None or not (first or self.guidance == "high"):
            return None
        return self.training.taught(self.teacher, inputs)

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; looks are the teacher's."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)


def _check(
    guidance: str, teacher: nn.Module | None, mixed: float, label_share: float, temperature: float, n_random: int
) -> None:
    if guidance not in get_args(Guidance):
        raise ValueError(f"guidance is {guidance!r}: give 'low', 'high' or 'mixed'")
    if guidance != "low" and teacher is None:
        raise ValueError(f"guidance={guidance!r} is by a strong teacher: give teacher=, or guidance='low'")
    if guidance == "low" and teacher is not None:
        raise ValueError("guidance='low' uses no strong teacher: leave it out, or give guidance='high' or 'mixed'")
    for name, share in (("mixed", mixed), ("label_share", label_share)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} is {share}: it is a share, from 0 to 1")
    if temperature <= 0.0 or n_random < 0:
        raise ValueError(f"temperature {temperature}, n_random {n_random}: give more than 0, and 0 or more")
