# SPDX-License-Identifier: Apache-2.0
"""AutoDistil: sub-spaces by size, a supernet for each, distilled from a pretrained network without labels.

Xu, Mukherjee, Liu, Dey, Wang, Zhang, Awadallah, Gao: "Few-shot Task-agnostic Neural Architecture Search for Distilling
Large Language Models", NeurIPS 2022, arXiv:2201.12507. Official code: microsoft/autodistil.

The idea: one supernet cannot serve language models of 4M and of 80M parameters, so the space is cut by size into K
sub-spaces, each with a supernet of its own. These learn no task: sub-networks imitate how the queries, keys and values
of a frozen teacher relate the tokens of any text. A sub-network is then chosen by that loss, and fine-tuned.

Differs from the paper:
- The supernets are trained in turn, one at each step, in one process; the paper trains them apart.
- Entries that do not divide into the relation heads are spread over them; the code drops the last ones.
- Pads are no tokens of the divergence, nor keys of it.
- A head keeps its size, and an MLP counts neurons; in the paper both follow the hidden size, see
  `SUB_SPACES` beside this file.
- The learning rate falls linearly; it scales with the root of the batch, see `Recipe`.
- The chosen sub-network is not trained on with this loss; a learner whose only part is its architecture does that.
What comes behind the last queries, keys and values has no gradient, heads of a task among it: fine-tuning trains them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.adapt.rules import Rule
from sartor.architecture import Architecture, Option
from sartor.oneshot._memory import Copies
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Batch, Effort, Means, Training, draws
from sartor.oneshot.autodistil_relations import Form, Projections, relation_loss
from sartor.oneshot.autodistil_spaces import apart, by_size, every, union
from sartor.oneshot.sampling import ATTEMPTS, ends
from sartor.oneshot.splitting import Branch, Branches
from sartor.space import SearchSpace
from sartor.supernet import activated, search_space

__all__ = ["RECIPE", "AutoDistil"]

RECIPE = Recipe(
    optimizer="adamw", lr=4e-5, lr_batch=2048, schedule="linear", weight_decay=0.01, eps=1e-8, clip_norm=1.0,
    label_smoothing=0.0, dropout=None,
)  # fmt: skip
"""The paper's: 128 samples on each of 16 workers, gradients clipped at norm 1."""

MOST = 100_000
"""Sub-networks that `ranked` goes through at most."""


class AutoDistil:
    """The learner of AutoDistil. Labels are ignored.

    `network_for(arch)` is the supernet that serves an architecture; `net` stays as it was, the teacher if no other is.
    With K sub-spaces it holds K copies of the network, and the state of an optimiser for each.

    Args:
        net: a pretrained network with choices, such as `adapt.elastic(model, hidden=[...], heads=[...], mlp=[...],
            depth=[...], shared=("heads", "mlp"))`; a hidden size is not sorted by nature, see
            `adapt.sort_by_importance`.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: not used.
        steps: of all supernets together; each has its share, and a learning rate that follows it.
        batch_size: samples per step, which the learning rate is scaled with.
        teacher: T, a network with attention that reads the same inputs; frozen, in eval mode, not saved. By default
            `net` in full, as it is given here.
        parts: the sub-spaces: options that each leaves to some choices, no architecture being in two. A number K cuts
            the options of the hidden size, or else of a depth, into K stretches (the paper has three).
        form: "kl" (the paper) or "mse" (its code) of the relations.
        relation_heads: A_r; those of the teacher by default.
        n_random: sub-networks per step beside the largest and the smallest (the paper's 2).
        pad: the id of tokens that are none; `net.pad` by default, if it has that.
        rules: that find queries, keys and values, of both networks; those of their families by default.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides the random sub-networks; each step draws from its own seed.

    Raises ValueError for sub-spaces that overlap or that the space does not have, for a network without attention that
    a rule finds, and for weights that are divided among workers.
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
        parts: int | Sequence[Mapping[str, Sequence[Option]]] = 3,
        form: Form = "kl",
        relation_heads: int | None = None,
        n_random: int = 2,
        pad: int | None = None,
        rules: Sequence[Rule] | None = None,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if form not in ("kl", "mse"):
            raise ValueError(f"form is {form!r}: relations are compared by 'kl' or 'mse'")
        self.net, self.form, self.n_random, self.seed = net, form, n_random, seed
        self.pad = getattr(net, "pad", None) if pad is None else pad
        self.parts = by_size(space, parts) if isinstance(parts, int) else apart(parts)
        self.space = space if isinstance(parts, int) else union(space, self.parts)
        self.each = math.ceil(steps / len(self.parts))  # steps of each supernet
        whole = Training(net, steps=self.each, batch_size=batch_size, recipe=recipe, means=means)
        self.branches = Branches(space, whole)
        self.branches.divide(self.parts)
        for leaf in self.branches.leaves:
            ends(leaf.space)  # which every step trains: a constraint that excludes one is refused now
        self.teacher = net if teacher is None else teacher
        self.full: Mapping[str, Option] = search_space(net).largest() if teacher is None else {}
        self.rules, self.asked = rules, Projections(self.teacher, rules)
        self.relation_heads = self.asked.heads if relation_heads is None else relation_heads
        self.copies = Copies(trained=len(self.parts))
        self.passes_per_step = 2.0 + n_random
        self.done = 0

    def step(self, batch: Batch) -> Mapping[str, float]:
        """Take one step of the supernet whose turn it is, on inputs; the labels beside them are not read.

        Returns the mean relation loss of the sandwich, those of its largest and smallest, and the learning rate.
        """
        leaf = self.branches.leaves[self.done % len(self.branches)]
        archs = self.sandwich(leaf.space, draws(self.seed, self.done))
        projections, sums = Projections(leaf.training.net, self.rules), torch.zeros(len(archs))
        for inputs, _ in leaf.training.parts(batch):
            target = self._taught(inputs, leaf.training)
            for place, arch in enumerate(archs):
                value = self._distance(leaf.training, projections, arch, inputs, target)
                leaf.training.backward(value)
                sums[place] += value.detach().cpu()
        self.done += 1
        found = (sums / leaf.training.means.accumulate).tolist()
        rate = leaf.training.update()  # clips the sum of all gradients at norm 1
        return {"loss": sum(found) / len(found), "largest": found[0], "smallest": found[1], "learning_rate": rate}

    def sandwich(self, space: SearchSpace, rng: random.Random) -> list[Architecture]:
        """The largest, the smallest, and random sub-networks that are neither, where there are others."""
        largest, smallest = ends(space)
        drawn: list[Architecture] = []
        for _ in range(ATTEMPTS if space.size > 2 else 0):
            if len(drawn) == self.n_random:
                break
            arch = space.sample(rng)
            drawn += [arch] if arch not in (largest, smallest) else []
        return [largest, smallest, *drawn]

    def _mask(self, inputs: Tensor) -> Tensor | None:
        """(N, T) what is no pad, of token ids."""
        return None if self.pad is None or inputs.is_floating_point() else inputs != self.pad

    def _taught(self, inputs: Tensor, training: Training) -> list[Tensor]:
        """Q, K and V of the teacher's last layer, without a gradient."""
        self.teacher.eval()
        with torch.no_grad(), training.autocast(), activated(self.teacher, self.full), self.asked.recorded() as made:
            self.teacher(inputs)
        training.count("looks")
        return made

    def _distance(
        self, training: Training, projections: Projections, arch: Architecture, inputs: Tensor, target: list[Tensor]
    ) -> Tensor:
        with projections.recorded() as made:
            training.logits(arch, inputs, regularise=training.net.training)
        return relation_loss(made, target, self.relation_heads, self._mask(inputs), self.form)

    # ---- which network serves, and which is best --------------------------------------------------

    def network_for(self, arch: Mapping[str, Option]) -> nn.Module:
        """Return the supernet whose weights this architecture uses; ValueError where it is in no sub-space."""
        return self._leaf(arch).training.net

    def _leaf(self, arch: Mapping[str, Option]) -> Branch:
        for leaf in self.branches.leaves:
            if arch in leaf:
                return leaf
        raise ValueError(f"{dict(arch)} is in none of the {len(self.parts)} sub-spaces: draw from the learner's space")

    def relation_loss(self, arch: Architecture, batches: Iterable[Batch]) -> float:
        """Return the mean relation loss of a sub-network over batches, in eval mode and without a gradient."""
        return self._rated([arch], list(batches))[0]

    def ranked(
        self, batches: Iterable[Batch], cost: Callable[[Architecture], float] | None = None, at_most: float = math.inf
    ) -> list[tuple[Architecture, float]]:
        """Return all sub-networks with their relation loss on held-out text, the best first.

        cost, at_most: those that cost more are left out, and not asked.
        Raises ValueError for a space too large to go through; then search it with `relation_loss` for an objective.
        """
        count = sum(leaf.space.size for leaf in self.branches.leaves)
        if count > MOST:
            raise ValueError(f"{count} sub-networks are too many to rank all (at most {MOST}): share or drop choices")
        archs = [arch for leaf in self.branches.leaves for arch in every(leaf.space)]
        within = [arch for arch in archs if cost is None or cost(arch) <= at_most]
        return sorted(zip(within, self._rated(within, list(batches)), strict=True), key=lambda pair: pair[1])

    def _rated(self, archs: Sequence[Architecture], batches: Sequence[Batch]) -> list[float]:
        """The teacher is asked once for each batch."""
        asked = {id(leaf): Projections(leaf.training.net, self.rules) for leaf in self.branches.leaves}
        totals, count = [0.0] * len(archs), sum(len(inputs) for inputs, _ in batches)
        for inputs, _ in batches:
            target = self._taught(inputs, self.branches.root.training)
            for place, arch in enumerate(archs):
                leaf = self._leaf(arch)
                leaf.training.net.eval()
                with torch.no_grad():
                    made = self._distance(leaf.training, asked[id(leaf)], arch, inputs, target)
                totals[place] += float(made) * len(inputs) / count
        return totals

    @property
    def effort(self) -> Effort:
        """What all supernets have cost; looks are the teacher's."""
        return self.branches.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and optimisers of all supernets, the steps done and their effort."""
        return {**self.branches.state_dict(), "steps_done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.branches.load_state_dict(state)
        self.done = state["steps_done"]
