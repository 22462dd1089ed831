# SPDX-License-Identifier: Apache-2.0
"""Slimmable networks: one set of weights that runs at a few widths, each with batch norms of its own.

Yu, Yang, Xu, Yang and Huang, "Slimmable Neural Networks", ICLR 2019, arXiv:1812.08928;
https://github.com/JiahuiYu/slimmable_networks.

The idea: a network of width r is the first r of the channels of every layer. Each step trains all widths on the labels,
from the widest to the narrowest, and takes one optimiser step from the sum of their gradients. Widths share all weights
but the batch norms, whose statistics fit one width only.

Differs from the paper:
- Any space is slimmed: a width stands for the sub-network whose every choice is at the option nearest to that multiple
  of its largest, so that kernels, depths and resolutions shrink along. In a space of widths alone it is the paper's.
- The recipe is that of universally slimmable networks, by the same authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import Choice
from sartor.nn.switchable import with_private_norms
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, refuse_divided
from sartor.oneshot._twin import twin
from sartor.oneshot.sampling import at_width
from sartor.space import SearchSpace
from sartor.supernet import named_choices

__all__ = ["NORMS", "RECIPE", "Slimmable"]

NORMS = "norms"
"""The name of the choice of batch norms that the network gets."""

RECIPE = Recipe(
    optimizer="sgd",
    nesterov=True,
    lr=0.5,
    lr_batch=1024,
    schedule="linear",
    weight_decay=1e-4,
    label_smoothing=0.0,
    dropout=None,
)


class Slimmable:
    """The learner of slimmable networks.

    Args:
        net: a network with choices. Its batch norms are replaced by banks, a norm for each width, and it gets a choice
            of them, "norms".
        space: the sub-networks that widths are taken from, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,).
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        widths: multipliers above 0 and at most 1.
        recipe: optimiser, learning rate and regularisation. means: how to compute.
        seed: not used, as nothing is drawn.

    Raises ValueError for widths out of range, for two that are one sub-network, and for weights that are divided among
    workers, whose norms cannot be copied.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        widths: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        if not widths or not all(0 < width <= 1 for width in widths):
            raise ValueError(f"widths are {tuple(widths)}: give at least one, each above 0 and at most 1")
        refuse_divided(net, "slimmable networks copy whole norms")
        self.widths = sorted(widths, reverse=True)
        self.space, self.loss = space, loss
        self.networks = {_name(width): at_width(space, width) for width in self.widths}
        if len(set(self.networks.values())) < len(widths):
            raise ValueError(f"two of the widths {tuple(widths)} are one sub-network of the space: leave one out")
        self.net = with_private_norms(net, Choice(tuple(self.networks)[::-1], name=NORMS))
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = float(len(self.widths))

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the widths' mean loss and the learning rate."""
        total = 0.0
        for images, labels in self.training.parts(batch):
            for name in self.networks:  # in descending order
                total += self.backward(images, labels, name)
        mean = total / (len(self.networks) * self.training.means.accumulate)
        return {"loss": mean, "learning_rate": self.training.update()}

    def backward(self, images: Tensor, labels: Tensor, name: str) -> float:
        """Add the gradient of one width, with its own norms; return its loss."""
        logits = self.training.logits({**self.networks[name], NORMS: name}, images)
        loss = self.training.recipe.smoothed(self.loss, logits, labels)
        self.training.backward(loss)
        return loss.item()

    def at(self, width: float) -> dict[str, Option]:
        """Return the options of a width, its norms included, for `activated` and `extract`.

        Raises ValueError for a width that is not trained.
        """
        if width not in self.widths:
            raise ValueError(f"width {width} is not among {self.widths}, and only these have norms: train with it")
        return {**self.networks[_name(width)], NORMS: _name(width)}

    def network_for(self, arch: Architecture) -> nn.Module:
        """Return the network, its weights shared, with the norms in force that are trained closest to `arch`.

        These are the norms of the width that has the most options of `arch`.
        """
        near = min(self.networks, key=lambda name: sum(arch[key] != own for key, own in self.networks[name].items()))
        net = twin(self.net)
        named_choices(net)[NORMS].set(near)
        return net

    @property
    def effort(self) -> Effort:
        """What the training has cost so far."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, norms of all widths included, the optimiser's state, and what was done."""
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.training.load_state_dict(state)


def _name(width: float) -> str:
    return f"{width:g}".replace(".", "_")
