# SPDX-License-Identifier: Apache-2.0
"""Few-Shot NAS: split a trained supernet by all options of a choice, and train each part on.

Zhao, Wang, Tian, Fonseca, Guo: "Few-Shot Neural Architecture Search", ICML 2021, arXiv:2006.06863.
Official code: aoiang/few-shot-NAS.

The idea: one supernet for all sub-networks judges them badly, one network each is exact but too dear. Between the two,
a supernet is split: for each option of one choice, or each combination of options of several, a sub-supernet of its
own goes on from the weights that were trained for all. A sub-network is judged by that which contains it.

Differs from the paper:
- Any choice can be split. Unless they are named, those to split are drawn among the choices that are always active.
- The parts are trained in turn, one of them at each step, so that a step is one pass and a batch serves one part.
- Optimiser states are copied with the weights; each part's learning rate follows its own length from the start.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.oneshot._gradients import owned_weights
from sartor.oneshot._memory import Copies
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.splitting import Branches, splittable
from sartor.space import SearchSpace

__all__ = ["RECIPE", "FewShot"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.025, lr_batch=48, momentum=0.9, nesterov=True, weight_decay=1e-4,
    schedule="cosine", label_smoothing=0.0, dropout=None,
)  # fmt: skip
"""That of the official code on NAS-Bench-201; its learning rate ends at 0.001 instead of 0."""


class FewShot:
    """The learner of Few-Shot NAS.

    After the split `network_for(arch)` is the network to judge by; `net` stays the supernet of all, as it was then.

    Args:
        net, space, loss, batch_size, recipe, means, seed: as of `SPOS`.
        steps: of the supernet and all of its parts together; each is a pass.
        choices: names of the choices to split, or how many are drawn (the paper's experiments split one or more).
        part: length of each part's training as a share of the supernet's (300 of 600 epochs on NAS-Bench-201).

    Raises ValueError for a choice that cannot be split, and where the parts leave the supernet no step.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        choices: Sequence[str] | int = 1,
        part: float = 0.5,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if part <= 0:
            raise ValueError(f"part is {part}: a part is trained for more than 0 of the supernet's length")
        self.net, self.space, self.loss, self.seed, self.passes_per_step = net, space, loss, seed, 1.0
        self.choices = _drawn(net, space, choices, seed) if isinstance(choices, int) else [*choices]
        for name in self.choices:
            if len(space.choices.get(name, ())) < 2:
                raise ValueError(f"{name!r} is no choice of several options: name others to split")
        self.parts = math.prod(len(space.choices[name]) for name in self.choices)
        self.first = round(steps / (1 + self.parts * part))  # steps of the supernet
        if steps and not self.first:
            raise ValueError(f"{steps} steps are too few for {self.parts} parts: give more, or split fewer choices")
        self.each = math.ceil((steps - self.first) / self.parts)  # steps of each part
        training = Training(net, steps=self.first, batch_size=batch_size, recipe=recipe, means=means)
        self.branches = Branches(space, training)
        self.copies = Copies(trained=self.parts)
        self.done = 0

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step of the supernet, or after the split of the part whose turn it is.

        Takes images (N, C, H, W) and labels (N,); returns the path's loss, the learning rate and the number of parts.
        """
        if self.done == self.first:
            self._split()
        found = self.branches.train(self.done - self.first, batch, self.loss, draws(self.seed, self.done))
        self.done += 1
        return {**found, "parts": float(len(self.branches))}

    def _split(self) -> None:
        """Make a part of each combination of the options of `choices`, from the weights of the supernet."""
        for name in self.choices:
            for leaf in [*self.branches.leaves]:
                groups: list[list[Option]] = [[option] for option in self.space.choices[name]]
                self.branches.split(leaf, name, groups, steps=self.each)

    def network_for(self, arch: Mapping[str, Option]) -> nn.Module:
        """Return the network whose weights this architecture of `space` uses."""
        return self.branches.of(arch).training.net

    @property
    def effort(self) -> Effort:
        """What the supernet and its parts have cost so far."""
        return self.branches.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and optimisers of all parts, what was split, the steps done and their effort."""
        return {**self.branches.state_dict(), "steps_done": self.done, "choices": self.choices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.branches.load_state_dict(state)
        self.done, self.choices = state["steps_done"], [*state["choices"]]


def _drawn(net: nn.Module, space: SearchSpace, count: int, seed: int) -> list[str]:
    able = splittable(space, owned_weights(net), net)
    if not 1 <= count <= len(able):
        raise ValueError(f"choices is {count}: {len(able)} choices are always active and can be split, name others")
    return random.Random(f"split/{seed}").sample(able, count)
