# SPDX-License-Identifier: Apache-2.0
"""BossNAS: rate architectures block by block, by how well their features predict those of all others.

Li, Tang, Wang, Peng, Wang, Liang and Chang, "BossNAS: Exploring Hybrid CNN-transformers with Block-wisely
Self-supervised Neural Architecture Search", ICCV 2021, arXiv:2103.12424.

The idea: the network is cut into blocks, which are trained one after another behind the best paths of those before, so
that few paths share weights. No labels and no teacher, which would favour its own kind: paths of an online supernet
predict, from one view of an image, the mean of the projections that paths of a moving average of it (the target) make
of another view. A path is then rated by its loss against the mean of all paths, and a network by the sum of its blocks.

The weights are for rating. They are not for deployment: the network found is trained from scratch.

Differs from the paper:
- What lies in front of the block in training is frozen, in both supernets; the authors' code keeps gradients there.
- Gradients of the paths are averaged; batch norm is not shuffled among workers.
- Views are shifts, contrast, brightness and noise, which suit small images; give others as `views`.
- Maps are pooled before they are projected to one width; the authors project with strided convolutions.
- Without `validation`, paths are rated on the images of a block's last step.
- Paths of a block are rated behind the best of those before, so that whole networks are combined from paths that can
  follow upon these.
Online and target run the same paths, as the authors' code does. The average is of weights alone: the target normalises
by its own batches, and no rating reads what its norms have tracked.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor import distributed
from sartor.architecture import Architecture, Option
from sartor.nn import channels_last
from sartor.oneshot._block_ratings import Ratings, rate, regression
from sartor.oneshot._memory import Copies
from sartor.oneshot._recipe import Loss, Recipe
from sartor.oneshot._training import Effort, Means, Training, draws
from sartor.oneshot.bossnas_part import Blocks, Neck, Side, Views, perceptron
from sartor.oneshot.sampling import fair
from sartor.space import NothingFound, SearchSpace
from sartor.supernet import activated

__all__ = ["RECIPE", "BossNAS"]

RECIPE = Recipe(
    optimizer="lars",
    lr=4.8,
    lr_batch=4096,
    momentum=0.9,
    weight_decay=1e-6,
    schedule="cosine",
    warmup=1 / 24,
    label_smoothing=0.0,
    dropout=None,
)
"""The paper's, for 24 epochs of ImageNet, of which one is the warm-up. Trainings of minutes need larger steps."""

MOST_COMBINATIONS = 100_000


class BossNAS:
    """The learner of BossNAS. After its last step `score`, `ranking` and `architecture` say what it found.

    Args:
        net: a network with choices, divided into blocks.
        space: the sub-networks to rate, `search_space(net)` or a part of it.
        loss: not used, nor are labels.
        steps: of all blocks together, divided evenly.
        batch_size: samples per step, which the learning rate is scaled with.
        blocks: paths of the blocks' modules; None for the children of `net.blocks` or `net.stages`, see `Blocks`.
        paths: drawn in each step, without replacement; fewer where a block has fewer.
        sampling: "random" of the block's legal paths, or "fair": as many paths as the widest choice has options, each
            option of a choice in one of them.
        momentum: of the moving average in the first and the last step, a cosine between them.
        hidden, features: width inside and behind projections and predictor.
        views: (images, seed) -> a random view of each image.
        validation: batches of images (N, C, H, W) that paths are rated on; those of a block's last step if empty.
        ensemble: whether paths learn from the mean of all drawn, or each from itself.
        predictor: whether the online side has one. Without it and with momentum 0 the projections collapse.
        recipe: optimiser, learning rate and regularisation. means: precision, and parts of a batch.
        seed: decides paths, views and the initial projections.

    Raises ValueError where the network cannot be divided, or there are fewer steps than blocks.
    """

    shares_weights: bool = False
    """Its networks are retrained from scratch."""

    def __init__(
        self,
        net: nn.Module,
        space: SearchSpace,
        loss: Loss = F.cross_entropy,
        *,
        steps: int,
        batch_size: int,
        blocks: Sequence[str] | None = None,
        paths: int = 4,
        sampling: Literal["random", "fair"] = "random",
        momentum: tuple[float, float] = (0.99, 1.0),
        hidden: int = 4096,
        features: int = 256,
        views: Callable[[Tensor, int], Tensor] = Views(),  # noqa: B008 - frozen
        validation: Sequence[Tensor] = (),
        ensemble: bool = True,
        predictor: bool = True,
        recipe: Recipe = RECIPE,
        means: Means = Means(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        self.net, self.space, self.seed = net, space, seed
        self.blocks = Blocks(net, space, blocks)
        if steps < len(self.blocks):
            raise ValueError(f"steps is {steps}, for {len(self.blocks)} blocks: give one for each or more")
        self.paths, self.sampling, self.momentum = paths, sampling, momentum
        self.hidden, self.features, self.views, self.validation = hidden, features, views, validation
        self.ensemble, self.predictor = ensemble, predictor
        self.training = Training(net, steps=steps, batch_size=batch_size, recipe=recipe, means=means)
        self.target = copy.deepcopy(net).requires_grad_(False)
        self.copies = Copies(still=1)
        self.passes_per_step = 2.0 * paths
        self.ratings = Ratings(self.blocks)
        self.block = 0
        self.widths: list[int] = []  # of the features of the block in training; none before its first step

    # ---- training -------------------------------------------------------------------------------------------------

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Take one step on images (N, C, H, W), and rate the block's paths after its last one.

        Returns the mean loss of the paths drawn, from 0 to 8; the spread of the projections, 1 where they fill all
        directions and 0 where they collapsed; the average's momentum; the block in training; and the learning rate.
        Raises ValueError when all blocks are done.
        """
        if self.block == len(self.blocks):
            raise ValueError(f"all {len(self.blocks)} blocks are done: read ranking() or architecture()")
        rng, block = draws(self.seed, self.training.done), self.block
        if not self.widths:
            self._open(self._widths(batch[0]))
        drawn, sums = self._draw(rng), torch.zeros(2)
        for images, _ in self.training.parts(batch):
            self.target.train()
            sums += self._bootstrap(images, drawn, rng)
        self._count(2 * len(drawn))
        momentum = self._momentum()
        rate = self.training.update()
        self._target.follow(self._online, momentum)
        if self.training.done == self.training.steps * (block + 1) // len(self.blocks):
            self._close(batch[0], rng)
        loss, spread = (sums / self.training.means.accumulate).tolist()
        scalars = {"loss": loss, "spread": spread, "momentum": momentum, "block": float(block)}
        return {**scalars, "learning_rate": rate}

    def _draw(self, rng: random.Random) -> list[Architecture]:
        """The paths of a step: without replacement, or each option once."""
        if self.sampling == "random":
            return rng.sample(self.legal, min(self.paths, len(self.legal)))
        names = self.blocks.names[self.block]
        return fair(self.space.restrict({n: [o] for n, o in self.legal[0].items() if n not in names}), rng)

    def _bootstrap(self, images: Tensor, drawn: Sequence[Architecture], rng: random.Random) -> Tensor:
        """Draw a pair of views a path, make the targets, and add up each path's gradient.

        Returns (2,) mean loss of both views together, and spread.
        """
        # All workers draw the same seeds, as `rng` must stay alike; each views images of its own with them.
        pairs = [[self.views(images, rng.getrandbits(48)) for _ in range(2)] for _ in drawn]
        with torch.no_grad(), self.training.autocast():
            goals = [
                [F.normalize(self._target(arch, view), dim=1) for view in pair]
                for arch, pair in zip(drawn, pairs, strict=True)
            ]
        spread = torch.stack([_spread(goal) for pair in goals for goal in pair]).mean()
        if self.ensemble:
            goals = [[torch.stack(each).mean(0) for each in zip(*goals, strict=True)]] * len(drawn)
        total = torch.zeros_like(spread)
        for arch, (one, two), (first, second) in zip(drawn, pairs, goals, strict=True):
            for view, goal in ((one, second), (two, first)):
                with self.training.autocast():
                    predictions = self._online(arch, view)
                loss = regression(predictions, goal) / len(drawn)
                self.training.backward(loss)
                total += loss.detach()
        return torch.stack([total, spread]).cpu()

    def _momentum(self) -> float:
        first, last = self.momentum
        return last - (last - first) * (1 + math.cos(math.pi * self.training.done / self.training.steps)) / 2

    def _count(self, looks: int) -> None:
        effort = self.training.effort
        self.training.effort = effort._replace(looks=effort.looks + looks)

    # ---- blocks ---------------------------------------------------------------------------------------------------

    def _widths(self, images: Tensor) -> list[int]:
        """Return the widths that the block's features may have, of all its legal paths."""
        self.net.eval()
        found = set()
        for arch in self.blocks.legal(self.block, self.ratings.best):
            with torch.no_grad(), activated(self.net, arch):
                found.add(self.blocks.features(self.net, self.block, images[:1]).shape[1])
        return sorted(found)

    def _open(self, widths: list[int]) -> None:
        """Make projections and an optimiser for the block, whose features have these widths."""
        self.widths, index, device = widths, self.block, next(self.net.parameters()).device
        self.legal = self.blocks.legal(index, self.ratings.best[:index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(f"{self.seed}/projections/{index}").getrandbits(48))
            neck = Neck(widths, self.hidden, self.features).to(device)
            predictor = perceptron(self.features, self.hidden, self.features).to(device) if self.predictor else None
        followed = copy.deepcopy(neck).requires_grad_(False)
        self._online = Side(self.net, self.blocks, index, neck, predictor)
        self._target = Side(self.target, self.blocks, index, followed)
        self.training.parameters = self._online.trained
        self.training.optimizer = self.training.recipe.optimizer_of(self.training.parameters)

    def _close(self, images: Tensor, rng: random.Random) -> None:
        """After the last step of a block, and never before: rate its paths, append the best, open the next block."""
        self.ratings.append(self.rate(images, rng))
        self.block += 1
        if self.block < len(self.blocks):
            self._open(self._widths(images))

    def rate(self, images: Tensor, rng: random.Random) -> dict[Architecture, float]:
        """Return the loss of each legal path of the block in training; lower is better. Training goes on as it was.

        images: (N, C, H, W), which batch norms are re-estimated with. rng: of the views.
        Raises ValueError before the first step.
        """
        if not self.widths:
            raise ValueError("no block is in training yet: take a step first")
        batches = [channels_last(one.to(images.device)) for one in (images, *(self.validation or [images]))]
        views = [self.views(one, rng.getrandbits(48)) for one in batches for _ in range(2)]
        losses = rate(self._online, self._target, self.legal, views)
        self._count(2 * len(views) * (len(self.legal) + 1))
        shared = distributed.average({str(place): loss for place, loss in enumerate(losses)})
        return {self.blocks.path(self.block, arch): shared[str(place)] for place, arch in enumerate(self.legal)}

    # ---- what was found -------------------------------------------------------------------------------------------

    def score(self, arch: Mapping[str, Option]) -> float:
        """Return the sum of an architecture's block losses; lower is better.

        Raises ValueError before the last step, and for a path that cannot follow upon the best ones.
        """
        return self._found().score(arch)

    def ranking(self) -> Iterator[tuple[float, Architecture]]:
        """Yield scores and architectures, the best first: all combinations of rated paths that fit.

        Raises ValueError before the last step.
        """
        return self._found().ranking()

    def architecture(self, within: Callable[[Architecture], bool] | None = None) -> Architecture:
        """Return the best architecture of those that are `within` a limit, such as one of their FLOPs.

        Raises ValueError before the last step, NothingFound if none of the best 100,000 is within.
        """
        for _, arch in itertools.islice(self.ranking(), MOST_COMBINATIONS):
            if within is None or within(arch):
                return arch
        raise NothingFound(f"none of the best {MOST_COMBINATIONS:,} architectures is within the limit: widen it")

    def _found(self) -> Ratings:
        if self.block < len(self.blocks):
            raise ValueError(f"block {self.block + 1} of {len(self.blocks)} is in training: take all steps first")
        return self.ratings

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def effort(self) -> Effort:
        """What the training has cost so far; looks are the target's passes and those that rate."""
        return self.training.effort

    def state_dict(self) -> dict[str, Any]:
        """Return both supernets, the block in training with its projections and optimiser, best paths and ratings."""
        sides = {"online": self._online.state_dict(), "target": self._target.state_dict()} if self.widths else {}
        where = {"block": self.block, "widths": self.widths, "sides": sides, "ratings": self.ratings.state_dict()}
        return {**self.training.state_dict(), "target": self.target.state_dict(), **where}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.ratings.load_state_dict(state["ratings"])
        if state["widths"]:
            self.block = min(state["block"], len(self.blocks) - 1)  # the last one stays open when all are done
            self._open(list(state["widths"]))
            self._online.load_state_dict(state["sides"]["online"])
            self._target.load_state_dict(state["sides"]["target"])
        self.block = state["block"]
        self.target.load_state_dict(state["target"])
        self.training.load_state_dict(state)


def _spread(projections: Tensor) -> Tensor:
    """Mean deviation of (N, features) projections of length 1, in units of that of random directions."""
    spread: Tensor = projections.std(0).mean() * projections.shape[1] ** 0.5
    return spread
