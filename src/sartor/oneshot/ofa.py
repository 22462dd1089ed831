# SPDX-License-Identifier: Apache-2.0
"""Once-for-All: train the largest network first, then admit smaller ones in stages (progressive shrinking).

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
arXiv:1908.09791; https://github.com/mit-han-lab/once-for-all.

The idea: sub-networks of all sizes disturb each other if they are trained together from scratch. So the largest network
is trained alone; then kernels, depths and widths are admitted one after the other, the larger options first, and every
sub-network also learns what the largest, frozen after its stage, predicts. Before narrower sub-networks are admitted,
channels are sorted by importance, so that a width keeps those that matter.

Differs from the paper:
- Stages share the steps of one training in the proportions of the paper's epochs. A stage that admits nothing new in a
  space is left out.
- The learning rate scales with the batch; in the paper's code with the number of GPUs, of 64 images each.
- The optimiser goes on through all stages. Its moments are permuted with the channels that they belong to, so that
  sorting changes neither the function of the network nor the next step of the optimiser.
- All widths are sorted and elastic in the expand stages, those of residual streams too, whose channels' importance is
  the sum over all that read them.
- Choices of no known role, such as operations, are admitted with the kernels.
Gradients of several sub-networks are summed, as in the authors' code, so that four weigh four times as much as one.
Batch-norm statistics in the supernet serve no sub-network: extract, then `recalibrate_batchnorm`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import channels_last
from sartor.nn.resolution import resize
from sartor.oneshot._memory import Copies
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws, frozen_statistics, refuse_divided
from sartor.oneshot.divergences import soft_cross_entropy
from sartor.oneshot.ofa_stages import STAGES, Phase, Stage, phases, role
from sartor.oneshot.sampling import largest, uniform
from sartor.permutation import sort_channels
from sartor.space import SearchSpace
from sartor.supernet import extract

__all__ = ["OFA", "RECIPE"]

RECIPE = Recipe(
    optimizer="sgd",
    nesterov=True,
    lr=2.6,
    lr_batch=2048,
    schedule="cosine",
    weight_decay=3e-5,
    label_smoothing=0.1,
    dropout=0.1,
)
"""The paper's, with the cosine of each stage; warm-ups are those of the stages."""


class OFA:
    """The learner of Once-for-All.

    Args:
        net: a network with choices; its dropout layers get the recipe's probability.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the stages share.
        batch_size: samples per step, which the learning rate is scaled with.
        kd_ratio: weight of the distillation from the largest network, beside 1 of the labels.
        sort: whether channels are sorted when widths are admitted.
        stages: what is admitted when; the paper's.
        recipe: optimiser, learning rate of the first stage, and regularisation. means: how to compute.
        seed: decides the sub-networks; each step draws from its own seed.

    Raises ValueError for stages that leave options out, for weights that are divided among workers, and in the step
    before which sorting changed the function of the network, as a module mixes channels in a way that their sizes do
    not tell.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        kd_ratio: float = 1.0,
        sort: bool = True,
        stages: Sequence[Stage] = STAGES,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        refuse_divided(net, "Once-for-All copies and sorts whole weights")
        self.net, self.space, self.loss = net, space, loss
        self.kd_ratio, self.sort, self.seed = kd_ratio, sort, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.phases = phases(space, stages, steps)
        self.largest = largest(space)
        self.teacher: nn.Module | None = None
        """The largest network as it was after its stage; None until then."""
        self.copies = Copies(still=1)
        passes = sum(phase.steps * phase.stage.networks for phase in self.phases)
        self.passes_per_step = passes / steps if steps else float(self.phases[0].stage.networks)

    @property
    def phase(self) -> Phase:
        """The stage of the step under way, and the sub-networks that it admits."""
        return self.phases[self._index(self.training.done)]

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,).

        Returns the mean loss of the sub-networks, the mean distillation, the number of the stage and the learning rate.
        """
        self._enter(batch[0])
        archs, sums = self.drawn(), torch.zeros(2)
        for images, labels in self.training.parts(batch):
            sums += self.backward(images, labels, archs)
        loss, distillation = (sums / self.training.means.accumulate).tolist()
        stage = float(self._index(self.training.done))
        rate = self.training.update(self.learning_rate)
        return {"loss": loss, "distillation": distillation, "stage": stage, "learning_rate": rate}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the step under way: each stage has its own schedule."""
        stage, _, first, steps = self.phase
        recipe = replace(self.training.recipe, warmup=stage.warmup)
        done = min(self.training.done - first, steps)
        return stage.lr * recipe.learning_rate(done, steps, self.training.batch_size)

    def drawn(self) -> list[Architecture]:
        """Return this step's sub-networks, uniform over what the stage admits, of one resolution."""
        stage, space, _, _ = self.phase
        rng = draws(self.seed, self.training.done)
        resolution = {
            name: rng.choice(options) for name, options in space.choices.items() if role(name) == "resolution"
        }
        return [space.canonical(arch.replace(resolution)) for arch in uniform(space, rng, stage.networks)]

    def backward(self, images: Tensor, labels: Tensor, archs: list[Architecture]) -> Tensor:
        """Add up the gradients of sub-networks; return (2,) their mean loss and mean distillation."""
        teacher = self._taught(archs[0], images)
        sums = torch.zeros(2)
        for arch in archs:
            logits = self.training.logits(arch, images)
            loss = self.training.recipe.smoothed(self.loss, logits, labels)
            distillation = torch.zeros_like(loss) if teacher is None else soft_cross_entropy(logits, teacher)
            self.training.backward(loss + self.kd_ratio * distillation)
            sums += torch.stack([loss, distillation]).detach().cpu()
        return sums / len(archs)

    def _taught(self, arch: Architecture, images: Tensor) -> Tensor | None:
        """Return what the teacher predicts (N, K) at the resolution of the step, in train mode, keeping nothing."""
        if self.teacher is None or not self.kd_ratio:
            return None
        side = next((option for name, option in arch.items() if role(name) == "resolution"), None)
        images = resize(images, side) if isinstance(side, int) else images
        with torch.no_grad(), frozen_statistics(self.teacher), self.training.autocast():
            outputs: Tensor = self.teacher.train()(images)
        self.training.count("looks")
        return outputs.float()

    def _index(self, step: int) -> int:
        """Return the stage of a step: the last that has begun."""
        return max(i for i, phase in enumerate(self.phases) if phase.first <= step or i == 0)

    def _enter(self, images: Tensor) -> None:
        """Do what the stage under way begins with: freeze the teacher, sort channels."""
        done, now = self.training.done, self._index(self.training.done)
        if now and self.teacher is None:
            self.teacher = self._largest()
        before = self._index(done - 1) if done else now
        if self.sort and any(phase.stage.admits == "expand" for phase in self.phases[before + 1 : now + 1]):
            self._sort(self.phases[before].space, channels_last(images))

    def _largest(self) -> nn.Module:
        """Return the largest network as it is now, frozen."""
        return channels_last(extract(self.net, self.largest)).requires_grad_(False)

    def _sort(self, trained: SearchSpace, images: Tensor) -> None:
        """Sort channels within the bands between the widths that were trained; check that the function stays."""
        self.net.train()
        parts = images.chunk(self.training.means.accumulate)
        before = torch.cat([self.training.look(self.largest, part) for part in parts])
        sort_channels(self.net, trained, self.training.optimizer)
        after = torch.cat([self.training.look(self.largest, part) for part in parts])
        tolerance = 1e-3 if self.training.means.precision == "float32" else 0.1
        if not torch.allclose(before, after, rtol=0.0, atol=tolerance * float(before.abs().max())):
            raise ValueError(
                "sorting channels changed what the network computes: one of its modules mixes channels by their place; "
                "give sort=False"
            )

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; the teacher's passes are looks."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done, their effort, and the teacher."""
        teacher = {} if self.teacher is None else {"teacher": self.teacher.state_dict()}
        return {**self.training.state_dict(), **teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
        self.teacher = None
        if "teacher" in state:
            self.teacher = self._largest()
            self.teacher.load_state_dict(state["teacher"])
