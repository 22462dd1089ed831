# SPDX-License-Identifier: Apache-2.0
"""TangleNAS's samplers beside uniform sampling and a random search, on the entangled macro space of 216 networks.

Digits: 1077 training images for the weights, 451 validation images for the logits, 269 test images. What is minimised
is the cross-entropy plus half of the network's share of the largest one's multiplications. All have equally many
gradient steps: TangleNAS takes half of its own on the logits; uniform sampling takes all on the weights, and then
scores 100 random networks on the validation images, by shared weights. Batches of 32, learning rate 0.1, of
logits 0.02.

inherited: of the network found, with the weights it inherits and batch-norm statistics of its own, on the test images.
retrained: trained by itself from new weights for 270 steps. One row for each method: means over seeds, with the
standard error. random network: one drawn uniformly, retrained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sartor.architecture import Architecture
from sartor.differentiable.descent import Recipe
from sartor.differentiable.penalties import add
from sartor.differentiable.tanglenas import Sampler, TangleNAS
from sartor.evaluation import predictions, specialised
from sartor.relaxation import Relaxation
from sartor.spaces.entangled_macro import CHANNELS, KERNELS, EntangledMacro
from sartor.supernet import extract, search_space
from sartor.task import Task, load_task

Row = Mapping[str, str | float | int | None]
SAMPLERS: tuple[Sampler, ...] = ("drnas", "darts", "gdas", "spos")
BATCH, SHARE, TRAINING = 32, 0.5, 270
RECIPE = Recipe(lr=0.1, alpha_lr=0.02)


def rows(quick: bool) -> Iterator[Row]:
    """A row for each way to search."""
    seeds, steps = (1, 40) if quick else (3, 600)
    task = load_task("digits")
    shares = Shares()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for sampler in SAMPLERS:
            search = _searched(sampler, task, shares, seed, steps)
            arch = _by_random_search(search, task, shares, seed) if sampler == "spos" else search.architecture()
            network = specialised(search.net, arch, [task.train.batch(i, 256)[0] for i in range(4)])
            one = {
                "inherited": _objective(network, task.test, float(shares(arch))),
                **_alone(arch, task, shares, seed),
            }
            found.setdefault("spos and random search" if sampler == "spos" else sampler, []).append(one)
        any_one = search_space(EntangledMacro()).sample(random.Random(seed))
        found.setdefault("random network", []).append({"inherited": np.nan, **_alone(any_one, task, shares, seed)})
    for name, several in found.items():
        columns = {key: np.array([one[key] for one in several]) for key in several[0]}
        yield {"method": name, "seeds": seeds, **{key: _told(values) for key, values in columns.items()}}


def _searched(sampler: Sampler, task: Task, shares: Shares, seed: int, steps: int) -> TangleNAS:
    torch.manual_seed(seed)
    net = EntangledMacro()
    length = steps if sampler == "spos" else steps // 2
    search = TangleNAS(
        net, shares.space, steps=length, sampler=sampler, seed=seed, cost=shares, penalty=add(SHARE), recipe=RECIPE
    )
    for step in range(length):
        at = seed * steps + step
        search.step((task.train.batch(at, BATCH), task.validation.batch(at, BATCH)))
    return search


def _by_random_search(search: TangleNAS, task: Task, shares: Shares, seed: int) -> Architecture:
    rng, calibration = random.Random(seed), [task.train.batch(i, 256)[0] for i in range(4)]
    several = {search.space.sample(rng) for _ in range(100)}
    return min(
        sorted(several, key=repr),
        key=lambda arch: _objective(specialised(search.net, arch, calibration), task.validation, float(shares(arch))),
    )


def _alone(arch: Architecture, task: Task, shares: Shares, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    network: Any = extract(EntangledMacro(), arch)
    network.reset_parameters()
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING)
    for step in range(TRAINING):
        images, labels = task.train.batch(seed * TRAINING + step, BATCH)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    outputs, labels = predictions(network, task.test.batches(256))
    share = float(shares(arch))
    accuracy = 100 * float((outputs.argmax(1) == labels).float().mean())
    return {"retrained": _objective(network, task.test, share), "share of MACs": share, "accuracy": accuracy}


def _objective(network: nn.Module, split: Any, share: float) -> float:
    outputs, labels = predictions(network, split.batches(256))
    return float(F.cross_entropy(outputs, labels)) + SHARE * share


class Shares:
    """The expected share of the largest network's multiplications: exact, as the choices are independent."""

    def __init__(self) -> None:
        self.space = search_space(EntangledMacro())
        self.relaxation = Relaxation(self.space)

    def __call__(self, assignment: Mapping[str, Any]) -> torch.Tensor:
        """Return the share of an assignment, soft or hard."""
        return self._macs(assignment) / self._macs(self.space.largest())

    def _macs(self, assignment: Mapping[str, Any]) -> torch.Tensor:
        weights = self.relaxation.weights(assignment)
        before: Any = 1.0
        total: Any = 0.0
        for layer, pixels in enumerate((64, 16, 16)):
            squares = torch.tensor([float(k) ** 2 for k in KERNELS]) @ weights[f"layer_{layer}.kernel"].float()
            channels = torch.tensor([float(c) for c in CHANNELS]) @ weights[f"layer_{layer}.channels"].float()
            total = total + squares * before * channels * pixels
            before = channels
        found: torch.Tensor = total + 10 * before
        return found


def _told(values: Any) -> str:
    if np.isnan(values).any():
        return "-"
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{values.mean():.3f} ± {error:.3f}"
