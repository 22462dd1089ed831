# SPDX-License-Identifier: Apache-2.0
"""Splitting a supernet: a space divided by the options of a choice, and weights of its own for each part.

Every architecture belongs to exactly one part, found by its options alone. A choice that an architecture leaves
inactive holds its first option, so that such an architecture belongs to the part of that option.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.distributed import average_gradients, is_sharded
from sartor.gates import key
from sartor.oneshot._gradients import Owned, flat_gradient, outside, owned_weights
from sartor.oneshot._recipe import Loss
from sartor.oneshot._training import Batch, Effort, Training, frozen_statistics
from sartor.space import NothingFound, SearchSpace

__all__ = ["Branch", "Branches", "Groups", "gradient_distances", "minimum_cut", "part", "splittable"]

Groups = Sequence[Sequence[Option]]
"""The options of a choice, each in one group."""

Weights = Mapping[str, Tensor]
"""A network's state dict."""

ATTEMPTS = 1000


@dataclass(frozen=True)
class Active:
    """A constraint: the choice `name` of `space` is active, and what the space asked for before holds."""

    space: SearchSpace
    name: str

    def __call__(self, arch: Architecture) -> bool:
        """Tell whether the constraint holds."""
        before = self.space.constraint
        return self.space.is_active(self.name, arch) and (before is None or before(arch))


def part(space: SearchSpace, name: str, options: Sequence[Option]) -> SearchSpace:
    """Return the architectures of a space whose choice `name` holds one of `options`, in the form they have there.

    Raises ValueError for an unknown choice or option.
    """
    kept = space.restrict({name: list(options)})
    with_inactive = key(space.choices[name][0]) in map(key, options)
    if with_inactive or name not in space.gates:
        return kept
    return SearchSpace(kept.choices, kept.gates, Active(space, name))


def splittable(space: SearchSpace, owned: Owned, net: nn.Module) -> list[str]:
    """Return the choices that are always active, have several options, and do not decide on all weights."""
    several = (name for name, options in space.choices.items() if len(options) > 1 and name not in space.gates)
    return [name for name in several if outside(net, owned, name)]


class Branch:
    """A part of a space, and the training of the weights that it shares.

    path: what is left of each choice that was split, in the order of the splits.
    """

    def __init__(
        self, space: SearchSpace, training: Training, path: Sequence[tuple[str, tuple[Option, ...]]] = ()
    ) -> None:
        self.space, self.training, self.path = space, training, tuple(path)

    def __contains__(self, arch: Mapping[str, Option]) -> bool:
        """Tell whether an architecture of the whole space belongs here."""
        return all(key(arch[name]) in map(key, options) for name, options in self.path)

    def child(self, name: str, options: Sequence[Option], training: Training) -> Branch:
        """Return the part of these options, with weights of its own."""
        path = (*self.path, (name, tuple(options)))
        return Branch(part(self.space, name, options), training, path)


class Branches:
    """The parts into which a space is split: one at first, with the network that was given.

    The children of a split are copies of their parent, which is then given up; the network that was given is kept as it
    was at the first split. Raises ValueError for weights that are divided among workers, which cannot be copied.
    """

    def __init__(self, space: SearchSpace, training: Training) -> None:
        if any(map(is_sharded, training.parameters)):
            raise ValueError("weights that are divided among workers cannot be split: do not shard the network")
        self.root = Branch(space, training)
        self.leaves = [self.root]
        self.spent = Effort()  # by those that were given up

    def __len__(self) -> int:
        return len(self.leaves)

    def of(self, arch: Mapping[str, Option]) -> Branch:
        """Return the one part that an architecture belongs to."""
        return next(leaf for leaf in self.leaves if arch in leaf)

    def split(
        self, leaf: Branch, name: str, groups: Groups, *, steps: int | None = None, restart: Weights | None = None
    ) -> None:
        """Replace a part by one for each group of the options of a choice.

        steps: of the training of each child, whose learning rate begins anew; None goes on with the parent's.
        restart: weights that the children begin from, without any state of the optimiser, instead of the parent's.
        Raises ValueError unless each option of the choice is in one group.
        """
        _check(leaf.space.choices[name], name, groups)
        children = [leaf.child(name, group, _copied(leaf.training, steps, restart)) for group in groups]
        place = self.leaves.index(leaf)
        self.leaves[place : place + 1] = children
        self.spent = _sum([self.spent, leaf.training.effort])

    def divide(self, parts: Sequence[Mapping[str, Sequence[Option]]]) -> None:
        """Replace the whole space by sub-spaces, each with weights and a training of its own, which begins anew.

        parts: options of some choices that are left, such that no architecture is in two; it may be in none.
        """
        leaves = []
        for options in parts:
            branch, training = self.root, _copied(self.root.training, self.root.training.steps)
            for name, kept in options.items():
                branch = branch.child(name, kept, training)
            leaves.append(branch if options else Branch(self.root.space, training))
        self.leaves = leaves

    def train(self, turn: int, batch: Batch, loss: Loss, rng: random.Random) -> dict[str, float]:
        """Train a uniform sub-network of the part whose turn it is; return its loss and the learning rate. One pass."""
        branch = self.leaves[turn % len(self.leaves)]
        arch, training, total = branch.space.sample(rng), branch.training, 0.0
        for images, labels in training.parts(batch):
            value = training.recipe.smoothed(loss, training.logits(arch, images), labels)
            training.backward(value)
            total += value.item() / training.means.accumulate
        return {"loss": total, "learning_rate": training.update()}

    @property
    def effort(self) -> Effort:
        """What all parts have cost, those that were split included."""
        return _sum([self.spent, *(leaf.training.effort for leaf in self.leaves)])

    def state_dict(self) -> dict[str, Any]:
        """Return the weights that were given at "net", and each part's path and training."""
        if self.leaves == [self.root]:
            return {**self.root.training.state_dict(), "leaves": [], "spent": list(self.spent)}
        leaves = [
            {"path": leaf.path, "steps": leaf.training.steps, "training": leaf.training.state_dict()}
            for leaf in self.leaves
        ]
        return {"net": self.root.training.net.state_dict(), "leaves": leaves, "spent": list(self.spent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned: parts, weights and optimisers."""
        self.spent = Effort(*state["spent"])
        self.leaves = [self.root]
        if not state["leaves"]:
            self.root.training.load_state_dict(state)
            return
        self.root.training.net.load_state_dict(state["net"])
        self.leaves = [self._restored(leaf) for leaf in state["leaves"]]

    def _restored(self, state: Mapping[str, Any]) -> Branch:
        branch = self.root
        training = _copied(self.root.training, state["steps"])
        training.load_state_dict(state["training"])
        for name, options in state["path"]:
            branch = branch.child(name, options, training)
        return branch


def _check(options: Sequence[Option], name: str, groups: Groups) -> None:
    given = [key(option) for group in groups for option in group]
    if len(given) != len(set(given)) or set(given) != set(map(key, options)) or not all(groups):
        raise ValueError(f"the groups {groups!r} do not divide the options {options!r} of {name!r}: name each once")


def _copied(parent: Training, steps: int | None, restart: Weights | None = None) -> Training:
    """Return a training of a copy of the weights, and unless it restarts of the optimiser's state, at no effort."""
    net = copy.deepcopy(parent.net)
    length = parent.steps if steps is None else steps
    training = Training(net, steps=length, batch_size=parent.batch_size, recipe=parent.recipe, means=parent.means)
    if restart is not None:
        net.load_state_dict(restart)
        return training
    state = parent.state_dict()
    training.load_state_dict({**state, "optimizer": copy.deepcopy(state["optimizer"])})  # counters are tensors, too
    training.effort = Effort()
    training.done = parent.done if steps is None else 0
    return training


def _sum(efforts: Sequence[Effort]) -> Effort:
    return Effort(*map(sum, zip(*efforts, strict=True)))


def gradient_distances(
    branch: Branch, name: str, batch: Batch, loss: Loss, rng: random.Random, owned: Owned | None = None
) -> tuple[NDArray[np.float64], float]:
    """Return how little the options of a choice agree on the weights that all of them share, on one batch.

    A random architecture of the part is taken with each option in turn; d(o, o') = 1 - cos of the gradients of all
    weights that the choice does not decide on. A pass for each option; weights, moments and statistics are left alone.
    owned: `owned_weights` of the part's network, where they are at hand.

    Returns the distances (K, K), symmetric with zeros on the diagonal, and the mean loss.
    Raises NothingFound (a ValueError) where no architecture has the choice active.
    """
    training = branch.training
    shared = outside(training.net, owned or owned_weights(training.net), name)
    arch = _with_active(branch.space, name, rng)
    gradients, total = [], 0.0
    options = branch.space.choices[name]
    for option in options:
        with frozen_statistics(training.net):
            for images, labels in training.parts(batch):
                logits = training.logits(branch.space.canonical({**arch, name: option}), images, regularise=False)
                value = loss(logits, labels)
                training.backward(value)
                total += value.item() / training.means.accumulate
        average_gradients(training.parameters)  # so that all workers split alike
        gradients.append(flat_gradient(shared))
        training.optimizer.zero_grad(set_to_none=True)
    return _distances(torch.stack(gradients)), total / len(options)


def _distances(gradients: Tensor) -> NDArray[np.float64]:
    """Return 1 - cos of all pairs of rows; 0 where one is not finite, which says nothing (float16 overflows)."""
    unit = F.normalize(gradients, dim=1)
    distances: NDArray[np.float64] = (1.0 - unit @ unit.T).double().cpu().numpy()
    np.nan_to_num(distances, copy=False, nan=0.0)
    np.fill_diagonal(distances, 0.0)
    return (distances + distances.T) / 2


def _with_active(space: SearchSpace, name: str, rng: random.Random) -> Architecture:
    for _ in range(ATTEMPTS):
        arch = space.sample(rng)
        if space.is_active(name, arch):
            return arch
    raise NothingFound(f"none of {ATTEMPTS} draws has {name!r} active: leave the choice out of the split")


def minimum_cut(distances: ArrayLike) -> tuple[list[int], list[int], float]:
    """Return the two balanced groups of least distance within, and the mean distance between them.

    All halves are tried, the larger by one for an odd number. As all distances together are the same for each, the
    least within is the most between: the minimum cut of similarities.
    Raises ValueError for fewer than two options.
    """
    matrix = np.asarray(distances, dtype=np.float64)
    everything = range(len(matrix))
    if len(matrix) < 2:
        raise ValueError(f"{len(matrix)} options make no two groups: split a choice of two or more")
    cuts = []
    for first in itertools.combinations(everything, len(matrix) // 2):
        second = [i for i in everything if i not in first]
        cuts.append((float(matrix[np.ix_(first, second)].mean()), [*first], second))
    score, one, other = max(cuts, key=lambda cut: cut[0])
    return one, other, score
