# SPDX-License-Identifier: Apache-2.0
"""NEAS: search an ensemble of small networks that share their first layers.

Chen, Fu and Ling, "One-Shot Neural Ensemble Architecture Search by Diversity-Guided Search Space Shrinking", CVPR 2021,
arXiv:2104.00597. The authors published the retraining and the test, not the search: this search is a reconstruction.

The idea: several small networks together are better than one as costly as all of them, if they differ. Members share
the layers up to a split point, which is searched as well. While the shared weights train, options that are neither good
nor make members diverse leave the space, so that what is left trains better.

    for each step:                                             # the supernet of k paths
        draw k paths from the space in force, and a split point; behind it the paths differ
        loss = sum of the members' cross-entropies; the gradient that enters the shared trunk is divided by k
        note, for each option of a path: the member's loss, and the ensemble's diversity
    at intervals: drop the options of the lowest score, never the last one of a choice

The output of an ensemble is the mean of its members' logits, here and in the network that is extracted. Any strategy
searches the space in force (`learner.space`); `evaluation.SharedWeightError(learner.net, ...)` estimates batch norm for
the ensemble, and the cost is that of the extracted network, which has shared layers once. `neas_retraining.Retraining`
trains what was found.

Differs from the paper, as far as it is known:
- Losses and diversity are collected in training steps, at no cost, instead of in evaluations between them.
- The score is minus the loss plus a weight times the diversity (see `neas_shrinking`); how the paper weighs the two,
  how often it shrinks and by how much could not be checked: twice, evenly spread, a third of the options in all.
- The recipe is that of the published retraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture, Option
from sartor.oneshot._ensemble import Ensemble, JoinedNetwork, ensemble
from sartor.oneshot._ensemble_encoding import APART, Encoding
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws, refuse_divided
from sartor.oneshot.neas_shrinking import Statistics, diversity, without_lowest
from sartor.oneshot.sampling import uniform
from sartor.space import SearchSpace

__all__ = ["NEAS", "RECIPE", "Ensemble", "JoinedNetwork", "ensemble"]

RECIPE = Recipe(lr=0.064, lr_batch=2048, schedule="cosine", warmup=3 / 350, dropout=0.2, weight_decay=1e-5)


class NEAS:
    """The learner of NEAS. `net` is the module of all ensembles, `space` what is left of them.

    A single sub-network has the weights that it was trained with as a member, see `network_for`.

    Args:
        net: a sequential supernet (see `_ensemble`), or an `Ensemble` of one.
        space: the sub-networks that may be members, `search_space` of the supernet or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training. batch_size: samples per step.
        seed: decides the ensembles that are trained.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        members: k, where `net` is a supernet; the paper's results have 2.
        shrinks: how often options are dropped, after equal parts of the training; 0 for never.
        dropped: share of all options of blocks that is gone in the end, at least one of each choice staying.
        diversity_weight: of the diversity in an option's score; 0 judges by the loss alone, 0.25 by both, see
            `neas_shrinking`.

    Raises ValueError for a supernet that is not sequential, for a negative number of shrinks, for a share outside of
    0 to 1, and for weights divided among workers.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        seed: int = 0,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        members: int = 2,
        shrinks: int = 2,
        dropped: float = 1 / 3,
        diversity_weight: float = 0.25,
    ) -> None:
        if shrinks < 0 or not 0 <= dropped <= 1:
            raise ValueError(f"shrinks={shrinks}, dropped={dropped}: give 0 or more, and a share from 0 to 1")
        refuse_divided(net, "NEAS runs whole weights in several heads")
        self.net = net if isinstance(net, Ensemble) else ensemble(net, members)
        self.whole = replace(self.net.encoding, space=space)
        self.loss, self.seed = loss, seed
        self.shrinks, self.dropped, self.diversity_weight = shrinks, dropped, diversity_weight
        self.training = Training(self.net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.members = self.whole.members  # each counts as a pass
        self.passes_per_step = float(self.members)
        self._narrow_to(self.whole)

    def _narrow_to(self, encoding: Encoding) -> None:
        """Put an encoding in force, with nothing known of its options yet."""
        self.encoding, self.space, self.statistics = encoding, encoding.ensembles, Statistics(encoding)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Train one ensemble on images (N, C, H, W) and labels (N,); drop options when it is time.

        Returns the members' mean loss, their diversity, the number of options left and the learning rate.
        """
        arch = uniform(self.space, draws(self.seed, self.training.done))[0]
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in self.training.parts(batch):
            sums += torch.tensor(self.backward(arch, images, labels), dtype=torch.float64)
        loss, divergence = (sums / self.training.means.accumulate).tolist()
        rate = self.training.update()
        if self.training.done in self.shrink_steps():
            self.shrink()
        return {"loss": loss, "diversity": divergence, "options": float(self._count()), "learning_rate": rate}

    def backward(self, arch: Architecture, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Add the gradients of one ensemble and note what it did; return the members' mean loss, and their diversity.

        The loss is the sum over the members. Where all is shared there is one network, and one loss.
        """
        with self.net.separated():
            logits = self.training.logits(arch, images)
        smoothed = self.training.recipe.smoothed
        losses = torch.stack([smoothed(self.loss, member, labels) for member in logits.unbind(1)])
        self.training.backward(losses.sum())
        # Over the workers, who must drop the same options.
        measured = {str(member): value for member, value in enumerate(losses.detach().tolist())}
        measured = distributed.average({"diversity": float(diversity(logits.detach())), **measured})
        divergence, *values = measured.values()
        apart = arch[APART]
        assert isinstance(apart, int)
        self.statistics.add(self.encoding.networks(arch), apart, values, divergence)
        return sum(values) / len(values), divergence

    def shrink_steps(self) -> list[int]:
        """Return the numbers of steps after which options are dropped."""
        return [round(self.training.steps * i / (self.shrinks + 1)) for i in range(1, self.shrinks + 1)]

    def shrink(self) -> None:
        """Drop the options of the lowest score: after shrink i of m, i/m of all that are to go are gone."""
        turn = self.shrink_steps().index(self.training.done) + 1 if self.training.done in self.shrink_steps() else 1
        total = self._count(self.whole)
        gone = total - self._count()
        count = max(round(self.dropped * total * turn / max(self.shrinks, 1)) - gone, 0)
        self._narrow_to(self.encoding.restricted(without_lowest(self.encoding.space.choices, self.scores(), count)))

    def scores(self) -> Mapping[str, list[float]]:
        """Return the score of each option in force by choice, from the ensembles since the last shrink."""
        return self.statistics.scores(self.diversity_weight)

    def _count(self, encoding: Encoding | None = None) -> int:
        """How many options the choices of blocks have."""
        encoding = encoding or self.encoding
        return sum(len(encoding.space.choices[name]) for name in encoding.own)

    def network_for(self, arch: Mapping[str, Option]) -> nn.Module:
        """Return what an architecture shares its weights with: the supernet for one network, else the ensembles."""
        return self.net if APART in arch else self.net.net

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; each member counts as a pass, though the trunk runs once for all."""
        effort = self.training.effort
        return effort._replace(passes=effort.passes * self.members)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state, the number of steps done, the options left and what is known."""
        kept = {name: list(self.encoding.space.choices[name]) for name in self.encoding.own}
        return {**self.training.state_dict(), "kept": kept, "statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)
        self._narrow_to(self.whole.restricted(state["kept"]))
        self.statistics.load_state_dict(state["statistics"])
