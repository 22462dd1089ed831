# SPDX-License-Identifier: Apache-2.0
"""LLaMA-NAS: fine-tune a pretrained causal language model once, so that shallower and thinner ones are in it.

Sarah, Sridhar, Szankin and Sundaresan: "LLaMA-NAS: Efficient Neural Architecture Search for Large Language Models",
ECCV 2024 Workshops, arXiv:2405.18377. No official code.

The idea: a language model is made elastic in its number of layers, of which the first are kept, and in the width of
each MLP. A step of fine-tuning trains one network, since two do not fit into memory: the full one at even steps, a
random sub-network at odd ones. A genetic search or LINAS then finds networks for a task without further training, and
their weights are rounded to 8 bits (`deploy.quantize.weights_int8`).

Differs from the paper:
- Distillation, which is optional, is a share of the loss of sub-networks (`distillation`, 0 by default). Its teacher is
  the full network as it is at that step, which is looked at once more, or one that stays as it is (`teacher`), from
  which the full network learns as well.
- Any choices of a network may be searched, heads as well; the paper's attention stays whole.
- The recipe is Adam with a cosine, a warm-up and clipped gradients; the paper's rates belong to networks of 7B weights.
- Which neurons come first is the caller's: sort by importance before, as a width keeps the first of them.
A sub-network keeps the first layers, so that the norm and head behind them read what the middle of the full network
makes: without fine-tuning that is nothing they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.divergences import kl
from sartor.oneshot.sampling import largest
from sartor.space import SearchSpace

__all__ = ["RECIPE", "LLaMANAS"]

RECIPE = Recipe(
    optimizer="adam", lr=1e-3, lr_batch=16, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup=0.05,
    clip_norm=1.0, label_smoothing=0.0, dropout=None, weight_decay=0.0,
)  # fmt: skip
"""A common one for fine-tuning small language models; not the paper's."""

_NOT_COUNTED = -100
"""Labels of tokens that no loss counts, as in torch."""


class LLaMANAS:
    """The learner of LLaMA-NAS.

    Args:
        net: a network with choices, such as `adapt.elastic(LanguageModel(model), depth=[...], mlp=[...])`.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,); of sequences N counts every token.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        distillation: share, 0 to 1, of the loss of a sub-network that is its divergence from the full network; the
            rest is that of the labels. Any costs a pass without gradients at every odd step.
        teacher: a network of the same inputs and outputs to diverge from instead, such as the one before fine-tuning;
            it is put in eval mode, and not saved with the learner. Then the full network has that loss, too, and every
            step that pass.
        temperature: of the predictions in that divergence.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks; each step draws from its own seed.

    Raises ValueError for a share beyond 0 to 1, for a teacher without a share, for a temperature that is not positive,
    and for a space whose constraint excludes the full network.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        distillation: float = 0.0,
        teacher: nn.Module | None = None,
        temperature: float = 1.0,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if not 0.0 <= distillation <= 1.0:
            raise ValueError(f"distillation is {distillation}: it is a share of the loss, from 0 to 1")
        if teacher is not None and not distillation:
            raise ValueError("distillation is 0, so that the teacher has no part in the loss: give a share above 0")
        if temperature <= 0.0:
            raise ValueError(f"temperature is {temperature}: it divides logits, so it must be positive")
        self.net, self.space, self.loss, self.teacher = net, space, loss, teacher
        self.distillation, self.temperature, self.seed = distillation, temperature, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.largest = largest(space)
        self.passes_per_step = 1.0

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on inputs (N, ...) and labels, (N,) or of sequences (N, T).

        Returns the loss on the labels and the divergence from the teacher, 0 where it is not asked for, of the
        network that was trained, and the learning rate.
        """
        arch = self.sampled()
        loss, divergence = 0.0, 0.0
        for inputs, labels in self.training.parts(batch):
            logits = self.training.logits(arch, inputs)
            own = self.training.recipe.smoothed(self.loss, logits, labels)
            distance = self._distance(arch, logits, inputs, labels)
            share = self.distillation
            self.training.backward(own if distance is None else (1.0 - share) * own + share * distance)
            loss += float(own.detach())
            divergence += 0.0 if distance is None else float(distance.detach())
        parts = self.training.means.accumulate
        return {"loss": loss / parts, "divergence": divergence / parts, "learning_rate": self.training.update()}

    def sampled(self) -> Architecture:
        """The network of the step under way: the full one at even steps, counted from 0, a random one at odd ones."""
        done = self.training.done
        return self.space.sample(draws(self.seed, done)) if done % 2 else self.largest

    def _distance(self, arch: Architecture, logits: Tensor, inputs: Tensor, labels: Tensor) -> Tensor | None:
        """The mean divergence of a network from its teacher over what the loss counts; None where it has no teacher."""
        if self.distillation == 0.0 or (self.teacher is None and arch == self.largest):
            return None
        given, training = self.teacher, self.training
        teacher = training.look(self.largest, inputs) if given is None else training.taught(given, inputs)
        counted = labels != _NOT_COUNTED
        return kl(logits[counted], teacher[counted], self.temperature)

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done and their effort."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
