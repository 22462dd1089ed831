# SPDX-License-Identifier: Apache-2.0
"""Mixtures of supernets, balanced or not, beside one supernet: how they rank the pooling layouts of a small ResNet.

Digits, six units with two poolings: ten layouts. The truth is the validation accuracy of each trained by itself, the
mean of three seeds. A mixture has the same number of steps in all, whatever the number of its sets of weights; then
every layout is evaluated with every set on the validation images, and the best set's accuracy is its score. tau:
Kendall's, of those scores and the truth. noted: tau of the values V noted while training. use: entropy of how often
each set was used, 1 if all equally often. picked: the true accuracy of the layout of the best score.
Means over seeds, with the standard error. Batches of 32, learning rate 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sartor.architecture import Architecture
from sartor.differentiable.balanced_mixture import BalancedMixture, architectures
from sartor.evaluation import predictions
from sartor.ranking import kendall_tau
from sartor.spaces.pooling import PoolingResNet
from sartor.supernet import extract, search_space
from sartor.task import Task, load_task

Row = Mapping[str, str | float | int | None]
BATCH, SIZE = 32, 128
SETTINGS = (("M = 1", 1, True), ("M = 4, unbalanced", 4, False), ("M = 4, balanced", 4, True))


def rows(quick: bool) -> Iterator[Row]:
    """A row for the truth and for each mixture."""
    seeds, steps, training = (1, 60, 20) if quick else (3, 500, 120)
    task = load_task("digits")
    layouts = architectures(search_space(PoolingResNet()))
    several = np.array([[_alone(arch, task, seed, training) for arch in layouts] for seed in range(seeds)])
    truth = several.mean(0)
    between = [kendall_tau(one, other) for i, one in enumerate(several) for other in several[i + 1 :]]
    yield _row("trained alone", seeds, tau=between or [1.0], noted=[], use=[], picked=[float(truth.max())])
    for name, models, balanced in SETTINGS:
        found = [_mixture(task, truth, seed, steps, models, balanced) for seed in range(seeds)]
        yield _row(name, seeds, **{key: [one[key] for one in found] for key in found[0]})


def _mixture(task: Task, truth: Any, seed: int, steps: int, models: int, balanced: bool) -> dict[str, float]:
    torch.manual_seed(seed)
    net = PoolingResNet()
    search = BalancedMixture(net, search_space(net), steps=steps, models=models, balanced=balanced, seed=seed)
    for step in range(steps):
        at = seed * steps + step
        search.step((task.train.batch(at, BATCH), task.validation.batch(at, SIZE)))
    scores = search.evaluated(list(task.validation.batches(256))).max(1).values.numpy()
    used = search.used.sum(0).double() / search.used.sum()
    use = float(torch.special.entr(used).sum()) / np.log(models) if models > 1 else 1.0
    noted = search.values.max(1).values.numpy()
    picked = float(truth[int(scores.argmax())])
    return {"tau": kendall_tau(scores, truth), "noted": kendall_tau(noted, truth), "use": use, "picked": picked}


def _alone(arch: Architecture, task: Task, seed: int, steps: int) -> float:
    torch.manual_seed(seed)
    network: Any = extract(PoolingResNet(), arch)
    network.reset_parameters()
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        images, labels = task.train.batch(seed * steps + step, BATCH)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    outputs, labels = predictions(network, task.validation.batches(256))
    return 100 * float((outputs.argmax(1) == labels).float().mean())


def _row(name: str, seeds: int, **columns: list[float]) -> Row:
    return {"": name, "seeds": seeds, **{key: _told(values) for key, values in columns.items()}}


def _told(values: list[float]) -> str:
    if not values:
        return "-"
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"
