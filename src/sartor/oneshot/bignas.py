# SPDX-License-Identifier: Apache-2.0
"""BigNAS: train all sub-networks of a supernet jointly, once, so that each is deployable as it is.

Yu, Jin, Liu, Bender, Kindermans, Tan, Huang, Song, Pang, Le: "BigNAS: Scaling Up Neural Architecture Search
with Big Single-Stage Models", ECCV 2020, arXiv:2003.11142. No official code.

The idea: each step trains the largest sub-network on the labels, and the smallest and a few random ones on
what the largest predicts (the sandwich rule with in-place distillation); only the largest is regularised.

Differs from the paper:
- Decay and constant ending follow the length of the training, not a number of epochs; see `Recipe`.
- The learning rate scales with the root of the batch size; see `Recipe`.
- The loss of the others may have a part of the labels (`label_share`, 0 by default).
- Coarse-to-fine selection belongs to the search, not to this file.
The rest of the paper's recipe is the network's: residual blocks start as the identity (the scale of their
last norm is 0) and every block has a skip. Batch-norm statistics kept in the supernet are a mixture over
sub-networks and serve none: extract, then `recalibrate_batchnorm`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import channels_last, resized
from sartor.oneshot._recipe import Loss, Recipe
from sartor.space import SearchSpace
from sartor.supernet import activated

__all__ = ["BigNAS"]


class BigNAS:
    """The learner of BigNAS.

    Args:
        net: a network with choices; its dropout layers get the recipe's probability.
        space: the sub-networks to train, `search_space(net)` or a part of it.
        loss: mean loss of predictions (N, K) and labels (N,), label smoothing not included.
        steps: length of the training, which the learning rate follows.
        batch_size: samples per step, which the learning rate is scaled with.
        n_random: random sub-networks per step beside the largest and the smallest.
        label_share: part of the loss of the others that is of the labels; the paper's 0 is distillation alone. In a
            training too short for the largest to become a good teacher, 0.5 serves the others much better.
        recipe: optimiser, learning rate and regularisation.
        seed: decides the random sub-networks; each step draws from its own seed, so that the workers of a
            distributed training and a resumed run draw the same.
    """

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        n_random: int = 2,
        label_share: float = 0.0,
        recipe: Recipe = Recipe(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.loss = channels_last(net), space, loss
        self.steps, self.batch_size, self.n_random = steps, batch_size, n_random
        self.recipe, self.seed, self.label_share = recipe, seed, label_share
        self.done = 0
        self.largest, self.smallest = space.largest(), space.smallest()
        self.parameters = list(net.parameters())
        self.optimizer = recipe.optimizer(net)
        self.dropouts = recipe.dropouts(net)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W) and labels (N,): the paper's training algorithm.

        Returns the largest sub-network's loss, the others' mean divergence from it, and the learning rate.
        """
        images, labels = channels_last(batch[0]), batch[1]
        rate = self.recipe.learning_rate(self.done, self.steps, self.batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        loss, distillation = self.backward(images, labels, self.others())
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.done += 1
        return {"loss": loss, "distillation": distillation, "learning_rate": rate}

    def others(self) -> list[Architecture]:
        """Return this step's sub-networks beside the largest: the smallest and `n_random` random ones."""
        rng = random.Random(f"{self.seed}/{self.done}")
        return [self.smallest, *(self.space.sample(rng) for _ in range(self.n_random))]

    def backward(self, images: Tensor, labels: Tensor, others: list[Architecture]) -> tuple[float, float]:
        """Add up the gradients of the sandwich; return the largest's loss and the others' mean divergence."""
        self.net.train()
        with activated(self.net, self.largest):
            logits = self.net(resized(images, self.net))
            loss = self.recipe.smoothed(self.loss, logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        self.recipe.decay_weights(self.parameters)  # now, when only what the largest uses has a gradient
        teacher = logits.detach().log_softmax(1)
        for layer in self.dropouts:
            layer.training = False
        total = teacher.new_zeros(())
        for arch in others:
            with activated(self.net, arch):
                logits = self.net(resized(images, self.net))
                divergence = F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean", log_target=True)
                self._mixed(divergence, logits, labels).backward()  # type: ignore[no-untyped-call]
            total += divergence.detach()
        return float(loss.detach()), float(total) / max(len(others), 1)

    def _mixed(self, divergence: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.label_share:
            return divergence
        return (1.0 - self.label_share) * divergence + self.label_share * self.loss(logits, labels)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state and the number of steps done."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
