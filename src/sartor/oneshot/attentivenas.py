# SPDX-License-Identifier: Apache-2.0
"""AttentiveNAS: train, of several sub-networks of equal cost, the one that is best at present, or the worst.

Wang, Li, Gong and Chandra: "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", CVPR 2021,
arXiv:2011.09011. Official code: facebookresearch/AttentiveNAS.

The idea: what counts in the end is the front of cost and accuracy, and uniform sampling spends most steps on
sub-networks that will never be on it. A cost is drawn, then a few sub-networks of about that cost, and of these the
one with the least loss on the current batch is trained (BestUp, to lift the front), or that with the greatest (WorstUp,
to lift what is behind). All else is BigNAS's sandwich with in-place distillation.

Differs from the paper:
- The cost is any function of an architecture. Bins are equal parts of its range; give `width` for the paper's steps of
  25 MFLOPs.
- Drop-connect is the network's, if it has any.
- With several workers, the losses that decide are means over all of them, so that all train the same sub-networks.
- The learning rate's warm-up (5 of 360 epochs) and cosine follow the length of the training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from sartor import distributed
from sartor.architecture import Architecture
from sartor.oneshot._binned import Bins, Cost
from sartor.oneshot._macs import Macs
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._sandwich import sandwich_gradients
from sartor.oneshot._training import Batch, Effort, Means, Training, draws
from sartor.oneshot.divergences import kl
from sartor.oneshot.sampling import ends
from sartor.space import SearchSpace

__all__ = ["RECIPE", "AttentiveNAS"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.1, lr_batch=256, momentum=0.9, nesterov=True, weight_decay=1e-5,
    schedule="cosine", warmup=5 / 360, clip_value=1.0, label_smoothing=0.1, dropout=0.2,
)  # fmt: skip
"""That of the paper, which AlphaNet shares."""


class AttentiveNAS:
    """The learner of AttentiveNAS.

    Args:
        net: a network with choices; its dropout layers get the recipe's probability.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        pick: "best", the candidate with the least loss (what was released), or "worst".
        candidates: sub-networks of each cost, of which one is trained; one is taken without a look.
        sampled: trained sub-networks of a step beside the largest and the smallest.
        cost: of an architecture; without one, multiply-accumulates for images as in the first batch.
        width: of a bin of costs, in their unit; without one, `bins` equal parts of the range.
        samples: architectures of which the bins are estimated.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the sub-networks, each step's for itself.

    Raises ValueError for no candidate, and for another pick.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        pick: Literal["best", "worst"] = "best",
        candidates: int = 3,
        sampled: int = 2,
        cost: Cost | None = None,
        width: float | None = None,
        bins: int = 40,
        samples: int = 10_000,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if candidates < 1 or pick not in ("best", "worst"):
            raise ValueError(f"candidates is {candidates} and pick {pick!r}: at least 1, and 'best' or 'worst'")
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.pick, self.candidates, self.sampled, self.cost = pick, candidates, sampled, cost
        self._binning = {"width": width, "count": None if width else bins, "samples": samples}
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.largest, self.smallest = ends(space)
        self.passes_per_step = 2.0 + sampled

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,).

        Returns the largest sub-network's loss, the others' mean divergence from it, and the learning rate.
        """
        others = [*self.attended(batch), self.smallest]
        loss, distillation = sandwich_gradients(self.training, self.loss, self.largest, others, batch, kl)
        return {"loss": loss, "distillation": distillation, "learning_rate": self.training.update()}

    def attended(self, batch: Batch) -> list[Architecture]:
        """Return this step's sampled sub-networks: of each cost f ~ p(FLOPs), the best or worst of the candidates."""
        self._shape = tuple(batch[0].shape[1:])
        rng = draws(self.seed, self.training.done)
        return [self._picked(batch, rng) for _ in range(self.sampled)]

    def _picked(self, batch: Batch, rng: random.Random) -> Architecture:
        place = self.bins.draw(rng)
        drawn = [self.bins.sample(place, rng) for _ in range(self.candidates)]
        if self.candidates == 1:
            return drawn[0]
        losses = distributed.average({str(i): self._look(arch, batch) for i, arch in enumerate(drawn)})
        least, *_, greatest = sorted(losses, key=losses.__getitem__)
        return drawn[int(least if self.pick == "best" else greatest)]

    def _look(self, arch: Architecture, batch: Batch) -> float:
        """Return the loss on the batch, without gradients or traces in the norms."""
        parts = self.training.parts(batch)
        losses = [self.loss(self.training.look(arch, images), labels) for images, labels in parts]
        return float(torch.stack(losses).mean())

    @cached_property
    def bins(self) -> Bins:
        """The costs that architectures are drawn by; estimated at the first step, and again after a resume."""
        cost = self.cost or Macs(self.net, self._shape)  # type: ignore[arg-type]
        return Bins(self.space, cost, seed=self.seed, **self._binning)  # type: ignore[arg-type]

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
