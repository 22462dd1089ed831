# SPDX-License-Identifier: Apache-2.0
"""GM-NAS: split a supernet in two where its options disagree most on the weights they share.

Hu, Wang, Hong, Li, Hsieh, Feng: "Generalizing Few-Shot NAS with Gradient Matching", ICLR 2022, arXiv:2203.15207.
Official code: skhu101/GM-NAS.

The idea: weights can be shared where the options of a choice ask for the same changes of them. So the gradients of all
other weights are compared between the options of each choice, and the choice whose options fall into the two most
distant groups is split into these two. Two parts instead of one for each option leave the budget for more splits.

Differs from the paper:
- Any choice is considered, with the weights that it does not decide on; by default those that are always active.
- The score of a split is the mean distance between the two groups, so that choices of different numbers of options
  compare; the groups are balanced, as in the authors' code, and all of them are tried.
- Parts are trained in turn, one of them at each step, so that a training step is one pass. A matching step compares
  one batch in each part, and its passes are counted.
- With `restart` the last parts begin again from the weights that the supernet began with.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.oneshot._gradients import owned_weights
from sartor.oneshot._memory import Copies
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.splitting import Branch, Branches, gradient_distances, minimum_cut, splittable
from sartor.space import SearchSpace

__all__ = ["GMNAS", "RECIPE"]

RECIPE = Recipe(
    optimizer="sgd", lr=0.025, lr_batch=48, momentum=0.9, nesterov=True, weight_decay=1e-4,
    schedule="cosine", label_smoothing=0.0, dropout=None,
)  # fmt: skip
"""That of Few-Shot NAS on NAS-Bench-201."""

Distances = dict[str, NDArray[np.float64]]

BATCHES = 100  # of a matching, in the paper
LEAST = 4
STAGES = (20.0, 20.0, 50.0)  # epochs before the first split, before the second, and after it: RSPS on NAS-Bench-201


class GMNAS:
    """The learner of GM-NAS over single paths.

    `network_for(arch)` is the network to judge by; `net` stays the supernet of all as it was at the first split.

    Args:
        net, space, loss, batch_size, recipe, means, seed: as of `SPOS`.
        steps: of training, of all parts together, and of matching.
        stages: lengths of the training of one part between splits, in any unit; T splits, 2**T parts, from T + 1.
        matching: batches of a matching. None: 100, the paper's, but in a short training a 350th of what a path from
            the supernet to a last part is trained for, and at least 4.
        choices: what may be split; by default all choices that are always active.
        restart: train the last parts from scratch.

    Raises ValueError where there are fewer choices than splits, or fewer steps than stages and matchings need.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        stages: Sequence[float] = STAGES,
        matching: int | None = None,
        choices: Sequence[str] | None = None,
        restart: bool = False,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.loss, self.seed = net, space, loss, seed
        self.choices = splittable(space, owned_weights(net), net) if choices is None else [*choices]
        splits, shares = len(stages) - 1, [2**level * length for level, length in enumerate(stages)]
        of_path = sum(stages) / sum(shares)  # the share of all training that leads to one last part
        matched = min(BATCHES, max(LEAST, int(of_path * steps / 350))) if matching is None else matching
        trained = max(steps - splits * matched, 0)
        self._check(splits, matched, trained if steps else None)
        ends = [round(trained * part / sum(shares)) for part in itertools.accumulate(shares)]
        begins = [0, *(end + (level + 1) * matched for level, end in enumerate(ends[:-1]))]
        self.phases = [
            (begin, end + level * matched) for level, (begin, end) in enumerate(zip(begins, ends, strict=True))
        ]
        """The steps in which each level of parts trains; between two of them are matchings."""
        self.last_steps = math.ceil(trained * stages[-1] / sum(shares))
        length = math.ceil(of_path * trained) + len(stages)  # a part may have a step more than its share
        training = Training(net, steps=length, batch_size=batch_size, recipe=recipe, means=means)
        self.initial = copy.deepcopy(net.state_dict()) if restart else None
        self.branches = Branches(space, training)
        self.copies = Copies(trained=2**splits, still=int(restart))
        self.sums: list[Distances] = [{}]  # by part and choice, of the batches matched so far
        self.done = 0
        self.passes_per_step = self._passes(trained, matched) / max(steps, 1)

    def _check(self, splits: int, matched: int, trained: int | None) -> None:
        wrong = [name for name in self.choices if len(self.space.choices.get(name, ())) < 2]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no choice of several options: name others to split")
        if len(self.choices) < splits:
            raise ValueError(
                f"{splits} splits need as many choices, and there are {len(self.choices)}: give fewer stages"
            )
        if matched < 1 or (trained is not None and trained < 2**splits):
            raise ValueError(
                f"{splits} matchings of {matched} batches leave {trained} steps of training: give more steps"
            )

    def _passes(self, trained: int, matched: int) -> float:
        """Return the passes of all steps: one of training, one for each option that is matched.

        After a split a choice less is matched, counted here with the mean number of options.
        """
        options = sum(len(self.space.choices[name]) for name in self.choices)
        left = [1 - level / max(len(self.choices), 1) for level in range(len(self.phases) - 1)]
        return float(trained + matched * sum(2.0**level * options * part for level, part in enumerate(left)))

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,): of training, or of matching.

        Returns the loss, of a path or the mean over those compared; the learning rate; and the number of parts.
        """
        level = sum(self.done >= begin for begin, _ in self.phases) - 1
        begin, end = self.phases[level]
        if level and self.done == begin:
            self._split(last=level == len(self.phases) - 1)
        rng = draws(self.seed, self.done)
        if self.done < end or level == len(self.phases) - 1:
            found = self.branches.train(self.done - begin, batch, self.loss, rng)
        else:
            found = self._match(batch, rng)
        self.done += 1
        return {**found, "parts": float(len(self.branches))}

    def _match(self, batch: tuple[Tensor, Tensor], rng: random.Random) -> dict[str, float]:
        """Add up the distances of the options of each choice that is not split yet, in each part."""
        losses = []
        for branch, sums in zip(self.branches.leaves, self.sums, strict=True):
            owned = owned_weights(branch.training.net)
            for name in self._unsplit(branch):
                distances, loss = gradient_distances(branch, name, batch, self.loss, rng, owned)
                sums[name] = sums[name] + distances if name in sums else distances
                losses.append(loss)
        return {"loss": float(np.mean(losses)), "learning_rate": 0.0}

    def _unsplit(self, branch: Branch) -> list[str]:
        split = {name for name, _ in branch.path}
        return [name for name in self.choices if name not in split]

    def _split(self, *, last: bool) -> None:
        """Split each part where the distance between two groups of options is largest."""
        again = {"steps": self.last_steps, "restart": self.initial} if last and self.initial is not None else {}
        for branch, sums in zip([*self.branches.leaves], self.sums, strict=True):
            cuts = {name: minimum_cut(sums[name]) for name in self._unsplit(branch)}
            name = max(cuts, key=lambda one: cuts[one][2])
            options = branch.space.choices[name]
            groups: list[list[Option]] = [[options[i] for i in group] for group in cuts[name][:2]]
            self.branches.split(branch, name, groups, **again)
        self.sums = [{} for _ in self.branches.leaves]

    def network_for(self, arch: Mapping[str, Option]) -> nn.Module:
        """Return the network whose weights this architecture of `space` uses."""
        return self.branches.of(arch).training.net

    @property
    def effort(self) -> Effort:
        """What the supernet, its parts and the matchings have cost so far."""
        return self.branches.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and optimisers of all parts, what was split, the distances and the steps done."""
        sums = [{name: torch.from_numpy(matrix) for name, matrix in one.items()} for one in self.sums]
        return {**self.branches.state_dict(), "steps_done": self.done, "sums": sums, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.branches.load_state_dict(state)
        self.done, self.initial = state["steps_done"], state["initial"]
        self.sums = [{name: matrix.numpy().copy() for name, matrix in one.items()} for one in state["sums"]]
