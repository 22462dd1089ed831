# SPDX-License-Identifier: Apache-2.0
"""Plain supervised training of one network with the recipe of the supernets: the fair baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.nn import channels_last, resized
from sartor.oneshot._recipe import Loss, Recipe

__all__ = ["Supervised"]


class Supervised:
    """The learner of one network without choices, such as an extracted one.

    Args:
        net: the network; its dropout layers get the recipe's probability, and images its resolution if it
            has one.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        recipe: optimiser, learning rate and regularisation.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    ) -> None:
        self.net, self.loss, self.recipe = channels_last(net), loss, recipe
        self.steps, self.batch_size = steps, batch_size
        self.done = 0
        self.parameters = list(net.parameters())
        self.optimizer = recipe.optimizer(net)
        recipe.dropouts(net)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,); return the loss and the learning rate."""
        images, labels = channels_last(batch[0]), batch[1]
        rate = self.recipe.learning_rate(self.done, self.steps, self.batch_size)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.recipe.smoothed(self.loss, self.net(resized(images, self.net)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.recipe.decay_weights(self.parameters)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.done += 1
        return {"loss": float(loss.detach()), "learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state and the number of steps done."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
