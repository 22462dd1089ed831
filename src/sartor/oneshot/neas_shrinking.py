# SPDX-License-Identifier: Apache-2.0
"""Which options are worth keeping: how good and how diverse the ensembles are that contain them.

The score of an option is minus the mean loss of the members that contain it, plus a weight times the mean diversity of
the ensembles that contain it behind the split, where members can differ. The cross-entropy of averaged logits is the
mean of the members' minus how far they are from their average (Heskes, "Selecting Weighting Factors in Logarithmic
Opinion Pools", NeurIPS 1997); of k members that are close to each other, that is (k - 1) / 2k of the divergence between
two. With this weight, 0.25 for two, the score is minus the loss of the ensemble.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sartor.architecture import Architecture, Option
from sartor.oneshot._ensemble_encoding import Encoding
from sartor.oneshot.divergences import kl
from sartor.sizes import position

__all__ = ["Statistics", "diversity", "without_lowest"]

Scores = Mapping[str, Sequence[float]]
"""Choice -> score of each option, higher is better, relative to the choice's mean."""


def diversity(logits: Tensor) -> Tensor:
    """Return the mean KL divergence between two members, a scalar in nats, of logits (N, k, K); 0 of one member.

    1/k(k-1) sum over i != j of D(f_i, f_j).
    """
    pairs = list(itertools.permutations(logits.unbind(1), 2))
    return torch.stack([kl(a, b) for a, b in pairs]).mean() if pairs else logits.new_zeros(())


class Statistics:
    """Sums over ensembles: for each option of a block's choice, members and their loss, ensembles and diversity."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        choices = encoding.space.choices
        self.sums = {name: torch.zeros(len(choices[name]), 4, dtype=torch.float64) for name in encoding.own}

    def add(self, networks: Iterable[Architecture], apart: int, losses: Sequence[float], divergence: float) -> None:
        """Count an ensemble: its members, their mean losses on a batch, and how diverse they are."""
        for network, loss in zip(networks, losses, strict=False):  # one loss where all is shared
            for name in self.encoding.own:
                if not self.encoding.space.is_active(name, network):
                    continue
                behind = float(self.encoding.is_apart(name, apart))
                place = position(self.encoding.space.choices[name], network[name])
                self.sums[name][place] += torch.tensor([1.0, loss, behind, behind * divergence], dtype=torch.float64)

    def scores(self, weight: float) -> dict[str, list[float]]:
        """Return each option's score, relative to the choice's mean; 0 for options that were not seen."""
        found = {}
        for name, sums in self.sums.items():
            members, loss, behind, divergence = sums.unbind(1)
            good = -_relative(loss, members) + weight * _relative(divergence, behind)
            found[name] = good.tolist()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {name: sums.clone() for name, sums in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.sums = {name: state[name].clone() for name in self.sums}


def without_lowest(choices: Mapping[str, Sequence[Option]], scores: Scores, count: int) -> dict[str, list[Option]]:
    """Return the options that are left when `count` of the lowest score are dropped; each choice keeps its best.

    Scores are relative, so that choices are compared with each other. Fewer go where there are not so many.
    """
    left = {name: list(range(len(choices[name]))) for name in scores}
    for _, name, place in sorted((s, name, i) for name, row in scores.items() for i, s in enumerate(row)):
        if count and len(left[name]) > 1:
            left[name].remove(place)
            count -= 1
    return {name: [choices[name][i] for i in places] for name, places in left.items()}


def _relative(sums: Tensor, counts: Tensor) -> Tensor:
    """Means minus their mean over the options that were seen; 0 for the others."""
    seen = counts > 0
    means = sums / counts.clamp_min(1.0)
    return torch.where(seen, means - means[seen].mean(), 0.0) if bool(seen.any()) else torch.zeros_like(means)
