# SPDX-License-Identifier: Apache-2.0
"""Learners of shared weights as runs use them: how they are made, and which network serves which architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from sartor import names
from sartor.architecture import Architecture
from sartor.fit import Indexed
from sartor.oneshot import Effort, Means, Recipe
from sartor.recipes.methods import BIGNAS
from sartor.run import Run
from sartor.space import SearchSpace
from sartor.supernet import search_space

__all__ = ["RECIPE", "Remade", "Serving", "Supernet", "data_of", "made", "made_again", "serving", "trained_in"]

# Of the shared weights, of what is fine-tuned and of the baselines. In minutes nothing is learnt by heart: no dropout.
RECIPE = Recipe(schedule="cosine", dropout=0.0)
LABEL_SHARE = 0.5  # trainings of minutes are short: the largest network is no good teacher for much of them

Loss = Callable[[Tensor, Tensor], Tensor]
Serving = Callable[[Architecture], nn.Module]
"""The network with choices whose weights an architecture shares."""


class Supernet(Protocol):
    """A learner of weights that sub-networks share; it may also have `network_for`, `data` and a narrower `space`."""

    net: nn.Module
    passes_per_step: float

    def step(self, batch: Any) -> Mapping[str, float]:
        """Train on one batch."""
        ...

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def made(
    method: str,
    net: nn.Module,
    space: SearchSpace,
    loss: Loss,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    recipe: Recipe | None = RECIPE,
    means: Means = Means(),  # noqa: B008 - frozen
) -> Supernet:
    """Return the learner of a method on a network; `recipe` None is the paper's own.

    Raises ValueError where the method does not fit the network.
    """
    kind: Any = names.load("methods", method)
    given: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed, "means": means}
    if recipe is not None:
        given["recipe"] = recipe
        if method == BIGNAS:
            given["label_share"] = LABEL_SHARE
    accepted = inspect.signature(kind).parameters
    given = {name: value for name, value in given.items() if name in accepted}
    try:
        inspect.signature(kind).bind(net, space, loss, **given)
    except TypeError as error:
        raise ValueError(
            f"the method {method!r} cannot be made with (net, space, loss, steps=, ...): {error}"
        ) from None
    learner: Supernet = kind(net, space, loss, **given)
    return learner


def serving(learner: Supernet) -> Serving:
    """Return which network an architecture takes its weights from: the only one, or where several are, as it says."""
    routed: Serving | None = getattr(learner, "network_for", None)
    return routed or (lambda arch: learner.net)


def data_of(learner: Supernet, split: Any) -> Indexed:
    """Return what a learner trains on: the split, or what it makes of it, as pairs of batches or chosen samples."""
    own: Callable[[Any], Indexed] | None = getattr(learner, "data", None)
    return own(split) if own else split


def trained_in(folder: Path) -> tuple[dict[str, Any], int]:
    """Return the state of the trained learner of a run, and the step of it; ValueError without one."""
    found = Run.open(folder, lock=False).load_checkpoint("train")
    if found is None:
        raise ValueError(f"{folder} has no checkpoint of its training: name another run for the weights")
    return found[1]["learner"], found[0]


@dataclass(frozen=True)
class Remade:
    """Trained shared weights that can be sent to another process: how to make the network, not the network.

    network: makes the network, and can be pickled. state: of the network, or of its learner where there is one.
    learner: makes the learner of a network, and can be pickled; None where sub-networks share the
        network's own weights.
    """

    network: Callable[[], nn.Module]
    state: dict[str, Any]
    learner: Callable[[nn.Module], Supernet] | None = None

    def serving(self) -> Serving:
        """Return which network an architecture takes its weights from, made anew."""
        net = self.network()
        if self.learner is None:
            net.load_state_dict(self.state)
            return lambda arch: net
        learner = self.learner(net)
        learner.load_state_dict(self.state)
        return serving(learner)


def made_again(net: nn.Module, *, method: str, **given: Any) -> Supernet:
    """Return the learner of a method on the whole space of a network, to give it a state: it is not trained further."""
    return made(method, net, search_space(net), F.cross_entropy, **given)
