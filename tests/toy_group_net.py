# SPDX-License-Identifier: Apache-2.0
"""A small elastic network without batch statistics: what it computes for an image depends on that image alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.choice import Choice, Size
from sartor.oneshot import Means, Recipe
from sartor.oneshot._training import Effort, Training, draws
from sartor.oneshot.sampling import uniform
from sartor.space import SearchSpace
from toy_supernet import CLASSES


class Block(nn.Module):
    """x + conv(silu(norm(conv(x))))."""

    def __init__(self, width: int | Size) -> None:
        super().__init__()
        self.hidden = Choice([4, 8, 12])
        self.kernel = Choice([1, 3])
        self.conv1 = elastic.Conv2d(width, self.hidden, self.kernel, padding="same", bias=False)
        self.norm = elastic.GroupNorm(2, self.hidden)
        self.conv2 = elastic.Conv2d(self.hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.norm(self.conv1(x)))
        result: Tensor = x + self.conv2(hidden)
        return result


class GroupNet(nn.Module):
    """(N, 1, r, r) -> (N, CLASSES) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.width = Choice([4, 6, 8])
        self.stem = elastic.Conv2d(1, self.width, 3, padding=1)
        self.norm = elastic.GroupNorm(1, self.width)
        self.blocks = elastic.Repeat(*[Block(self.width) for _ in range(2)], depth=Choice([1, 2]))
        self.mix = elastic.OneOf({"conv": elastic.Conv2d(self.width, self.width, 1), "none": nn.Identity()})
        self.last = elastic.LayerNorm(self.width)
        self.head = elastic.Linear(self.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.silu(self.norm(self.stem(images))))
        logits: Tensor = self.head(self.last(self.mix(features).mean((2, 3))))
        return logits


class OnePath:
    """A learner that trains one uniform sub-network a step."""

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        *,
        steps: int,
        batch_size: int,
        recipe: Recipe,
        means: Means = Means(),  # noqa: B008 - frozen
    ) -> None:
        self.net, self.space = net, space
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.passes_per_step = 1.0

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        (arch,) = uniform(self.space, draws(0, self.training.done))
        total = 0.0
        for images, labels in self.training.parts(batch):
            loss = F.cross_entropy(self.training.logits(arch, images), labels)
            self.training.backward(loss)
            total += float(loss.detach())
        return {"loss": total / self.training.means.accumulate, "learning_rate": self.training.update()}

    @property
    def effort(self) -> Effort:
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state)
