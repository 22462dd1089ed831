# SPDX-License-Identifier: Apache-2.0
"""FBNetV5 with two tasks in one run, the digit and the image without noise, beside chance and each network alone.

Three slots, each nothing, a 3x3 convolution, or one at half the resolution behind a max pool: 27 networks of 8
channels. Both tasks see 8x8 digits with noise of deviation 1. One search of 1500 steps of 32 images moves both
distributions, weights at a learning rate of 0.1, logits at 0.02. Truth: the loss on the validation images of every
network trained for each task alone, 200 steps, the mean of three trainings.

js: mean over the slots of the Jensen-Shannon divergence of the two tasks' distributions, in nats, at most .69. own,
other: the true loss on the row's task of the network found for it, and of the one found for the other task. random: the
mean of all 27. rank: of the network found among the 27, 1 the best, 14 by chance. agreed: how many of the seeds found
networks of which each is better at its own task.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.data.pairs import Pairs
from sartor.differentiable.descent import Recipe
from sartor.differentiable.fbnetv5 import FBNetV5, Head
from sartor.nn import OneOf
from sartor.supernet import extract, search_space
from sartor.task import Task, load_task

Row = Mapping[str, str | float | int | None]
Labels = dict[str, Tensor]
WIDTH, BATCH, NOISE = 8, 32, 1.0
TASKS = ("digit", "image")
RECIPE = Recipe(lr=0.1, alpha_lr=0.02, alpha_betas=(0.9, 0.999), alpha_weight_decay=0.0)


class TwoResolutions(nn.Module):
    """(N, 1, 8, 8) -> (N, WIDTH, 8, 8) features of three searched slots."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.slots = nn.Sequential(*(OneOf(_operations(), name=f"slot_{i}") for i in range(3)))

    def forward(self, images: Tensor) -> Tensor:
        """Run the slots in turn."""
        found: Tensor = self.slots(self.stem(images)).relu()
        return found


def rows(quick: bool) -> Iterator[Row]:
    """A row for each task."""
    seeds, steps, training, runs = (1, 30, 5, 1) if quick else (5, 1500, 200, 3)
    task = load_task("digits")
    space = search_space(TwoResolutions())
    every = [
        Architecture(dict(zip(space.choices, one, strict=True))) for one in itertools.product(*space.choices.values())
    ]
    truth = {
        name: [np.mean([_alone(task, arch, name, run, training) for run in range(runs)]) for arch in every]
        for name in TASKS
    }
    found = [_search(task, seed, steps) for seed in range(seeds)]
    places = [{name: every.index(archs[name]) for name in TASKS} for archs, _ in found]
    both = [all(truth[a][at[a]] < truth[a][at[b]] for a, b in (TASKS, TASKS[::-1])) for at in places]
    for name, other in (TASKS, TASKS[::-1]):
        yield {
            "task": name,
            "seeds": seeds,
            "js": f"{np.mean([js for _, js in found]):.2f}",
            "own": _mean([truth[name][at[name]] for at in places]),
            "other": _mean([truth[name][at[other]] for at in places]),
            "random": f"{np.mean(truth[name]):.3f}",
            "best": f"{min(truth[name]):.3f}",
            "rank": _mean([1.0 + sum(np.array(truth[name]) < truth[name][at[name]]) for at in places], 1),
            "agreed": f"{sum(both)} of {seeds}",
        }


def _search(task: Task, seed: int, steps: int) -> tuple[dict[str, Architecture], float]:
    """The networks found for both tasks, and how far their distributions have parted."""
    torch.manual_seed(seed)
    net = TwoResolutions()
    search = FBNetV5(net, search_space(net), _heads(), steps=steps, seed=seed, recipe=RECIPE)
    pairs = Pairs(task.train, 0.8, classes=task.classes, seed=seed)
    for step in range(steps):
        first, second = pairs.batch(seed * steps + step, BATCH)
        search.step((_labelled(first, 2 * step), _labelled(second, 2 * step + 1)))
    one, other = (search.of(name).probabilities() for name in TASKS)
    middle = (one + other) / 2
    js = (torch.special.entr(middle) - (torch.special.entr(one) + torch.special.entr(other)) / 2).sum(1).mean()
    return {name: search.architecture(name) for name in TASKS}, float(js)


def _alone(task: Task, arch: Architecture, name: str, seed: int, steps: int) -> float:
    """The validation loss of a network trained for one task alone."""
    torch.manual_seed(seed)
    net = nn.Sequential(extract(TwoResolutions(), arch), _heads()[name].module)
    loss = _heads()[name].loss
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        images, labels = _labelled(task.train.batch(seed * steps + step, BATCH), step)
        optimizer.zero_grad()
        loss(net(images), labels[name]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()
    images, labels = _labelled(next(iter(task.validation.batches(len(task.validation)))), -1)
    with torch.no_grad():
        return float(loss(net(images), labels[name]))


def _heads() -> dict[str, Head]:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
    return {"digit": Head(pooled), "image": Head(nn.Conv2d(WIDTH, 1, 1), F.mse_loss)}


def _labelled(batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Labels]:
    """Images with noise, and what both tasks have to tell."""
    images, digits = batch
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(step + 1))
    return images + NOISE * noise, {"digit": digits, "image": images}


def _operations() -> dict[str, nn.Module]:
    return {"skip": nn.Identity(), "fine": _convolution(), "coarse": _coarse()}


def _convolution() -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))


def _coarse() -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), *_convolution(), nn.Upsample(scale_factor=2))


def _mean(values: list[Any], digits: int = 3) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"
