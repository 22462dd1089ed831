# SPDX-License-Identifier: Apache-2.0
"""PA&DA: draw the paths and the samples with large gradients more often, so that gradients vary less.

Lu, Hu, Yang, Sun, Mei, Tan, Song: "PA&DA: Jointly Sampling PAth and DAta for Consistent NAS", CVPR 2023,
arXiv:2302.14772. Official code: ShunLu91/PA-DA.

The idea: in a supernet the gradients of successive paths disagree, and the more they vary the worse it ranks. Drawing
a path, or a sample, in proportion to the norm of its gradient makes the variance least. Both norms are at hand after an
ordinary pass: those of the options in force, and those of the loss at each sample's logits.

Differs from the paper:
- Any choice, not operations alone: the norm of an option is that of the slice of weights it puts in force.
- An option without weights has a norm of 0 and, as the equal part fades, would be given up: the authors' code ends by
  drawing convolutions only. Here it has the least norm of the options that have weights.
- A sample that an epoch did not draw keeps its norm; in the authors' code it is set to 0.
- A running mean begins with its first value; in the authors' code with 0.
- An epoch's list of samples is cut to whole batches.
The loss is not weighed with 1/p, as in the paper: its gradient is biased on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture, Option
from sartor.data.drawn import Drawn, steps_of_epoch
from sartor.data.split import Split
from sartor.gates import key
from sartor.oneshot._gradients import option_norms, owned_weights, sample_norms
from sartor.oneshot._importance import Importance
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws, refuse_divided
from sartor.oneshot.sampling import weighted
from sartor.space import SearchSpace

__all__ = ["PADA", "RECIPE"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.05, lr_batch=256, momentum=0.9, weight_decay=2.5e-4,
    schedule="cosine", clip_norm=5.0, label_smoothing=0.0, dropout=None,
)  # fmt: skip
"""That of the official code on NAS-Bench-201."""

EPOCHS = 250  # of the paper's training


class PADA:
    """The learner of PA&DA.

    Train it on `learner.data(split)`, whose batches are drawn and carry sample numbers; on ordinary batches it draws
    paths only.

    Args:
        net, space, loss, steps, batch_size, recipe, means, seed: as of `SPOS`.
        paths, samples: whether paths and samples are drawn by importance; with neither, it is uniform sampling.
        shared: whether choices of one role (the end of their names) and of equal options share their chances, as all
            edges of a cell do in the paper; else each has its own.
        epoch_steps: steps between two refreshes of the chances. By default a pass over the samples, or without `data`
            a 250th of the training, of which the paper's has 250 epochs.

    Raises ValueError for an epoch without steps, and for weights that are divided among workers.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        paths: bool = True,
        samples: bool = True,
        shared: bool = True,
        epoch_steps: int | None = None,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if epoch_steps is not None and epoch_steps < 1:
            raise ValueError(f"epoch_steps is {epoch_steps}: an epoch has at least one step")
        refuse_divided(net, "PA&DA reads whole gradients")
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.by_paths, self.by_samples, self.passes_per_step = paths, samples, 1.0
        self.epoch_steps, self._fixed = epoch_steps or max(1, steps // EPOCHS), epoch_steps is not None
        self._owned = owned_weights(net)
        self.group = {name: _group(name, options) if shared else name for name, options in space.choices.items()}
        self.paths = {self.group[name]: Importance(len(options)) for name, options in space.choices.items()}
        self.samples: Importance | None = None

    def data(self, split: Split) -> Drawn:
        """Return the split with its samples drawn by importance; see `Drawn` for what it must be able to."""
        if self.samples is None:
            self.samples = Importance(len(split))
            if not self._fixed:
                self.epoch_steps = steps_of_epoch(len(split), self.training.batch_size)
        return Drawn(split, self._chances, self.seed)

    def step(self, batch: Sequence[Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W), labels (N,) and, if samples are drawn, their numbers (N,).

        Returns the path's loss, tau and the learning rate.
        """
        arch, tau = self.draw(), self.tau
        total, norms = 0.0, []
        for images, labels in self.training.parts((batch[0], batch[1])):
            logits = self.training.logits(arch, images)
            logits.retain_grad()
            loss = self.training.recipe.smoothed(self.loss, logits, labels)
            self.training.backward(loss)
            total += loss.item()
            norms.append(sample_norms(logits))
        self.training.collect()
        self._note_path(arch)
        if self.samples is not None and len(batch) > 2:
            self._note_samples(batch[2], torch.cat(norms))
        rate = self.training.update()
        if self.training.done % self.epoch_steps == 0:
            self._refresh()
        return {"loss": total / self.training.means.accumulate, "tau": tau, "learning_rate": rate}

    def draw(self) -> Architecture:
        """Return the path of the step under way: each option with its chance, choices independent."""
        chances = {name: self.paths[group].chances.tolist() for name, group in self.group.items()}
        return weighted(self.space, draws(self.seed, self.training.done), chances)

    @property
    def tau(self) -> float:
        """The part of the chances that follows the norms: the share of the training done as this epoch began."""
        return self.training.done // self.epoch_steps * self.epoch_steps / max(self.training.steps, 1)

    def _note_path(self, arch: Architecture) -> None:
        """g_o <- (g_o + sum of the norms where o was drawn / number of such choices) / 2."""
        found: dict[tuple[str, int], list[float]] = {}
        for name, norm in option_norms(self._owned, arch).items():
            if name in self.group and self.space.is_active(name, arch):
                place = [*map(key, self.space.choices[name])].index(key(arch[name]))
                found.setdefault((self.group[name], place), []).append(norm)
        for (group, place), norms in found.items():
            mean = torch.tensor([sum(norms) / len(norms)], dtype=torch.float64)
            self.paths[group].note(torch.tensor([place]), mean)

    def _note_samples(self, numbers: Tensor, norms: Tensor) -> None:
        """g_i = ||softmax(z_i) - onehot(y_i)||, of all workers' samples."""
        assert self.samples is not None
        scale = self.training.means.accumulate / self.training.scaler.get_scale()
        self.samples.note(distributed.joined(numbers), distributed.joined(norms * scale))

    def _refresh(self) -> None:
        """Begin an epoch with new chances."""
        for importance in self.paths.values() if self.by_paths else ():
            importance.refresh(self.tau)
        if self.samples is not None and self.by_samples:
            self.samples.refresh(self.tau)

    def _chances(self) -> Tensor:
        assert self.samples is not None
        return self.samples.chances

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the steps done, their effort, norms and chances."""
        paths = {group: importance.state_dict() for group, importance in self.paths.items()}
        samples = None if self.samples is None else self.samples.state_dict()
        return {**self.training.state_dict(), "paths": paths, "samples": samples, "epoch_steps": self.epoch_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
        self.epoch_steps = state["epoch_steps"]
        for group, importance in self.paths.items():
            importance.load_state_dict(state["paths"][group])
        if state["samples"] is not None:
            self.samples = self.samples or Importance(len(state["samples"]["means"]))
            self.samples.load_state_dict(state["samples"])


def _group(name: str, options: Sequence[Option]) -> str:
    return f"{name.rpartition('.')[2]}: {', '.join(map(repr, options))}"
