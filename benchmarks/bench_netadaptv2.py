# SPDX-License-Identifier: Apache-2.0
"""Ordered dropout beside sliced passes at equal CPU time, and coordinate descent by one choice and by several.

On noisy digits (`oneshot_common`), in the chain with bypass. `training`: a sub-network for each of 64 images in one
pass; 8 in sliced passes of 8 images each; 8 in passes of all 64; and one a step. All arms train for the CPU time of
ordered dropout's steps, with one recipe. Accuracy is that of 24 sub-networks with batch-norm statistics of their own.
`descent`: with the weights of ordered dropout, from the largest network to 40 % of its multiply-accumulates; validation
decides, and the other half of the held-out images is what is told.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot_common import BATCH, RECIPE, Comparison, digits, spread
from sartor.architecture import Architecture
from sartor.evaluation import predictions
from sartor.objective import Objective
from sartor.oneshot._training import Training, draws
from sartor.oneshot.netadaptv2 import NetAdaptV2
from sartor.oneshot.sampling import uniform
from sartor.space import SearchSpace
from sartor.spaces.bypass_chain import BypassChain
from sartor.strategies.coordinate_descent import CoordinateDescent
from sartor.supernet import extract
from sartor.trial import Trial
from sartor.workload import macs, trace
from timing import compared

Row = Mapping[str, str | float | int | None]
Batch = tuple[Tensor, Tensor]

SUBNETS = 8
DESCENTS = {"one choice": (0.0, 12, 0.065), "a fifth of the choices": (0.2, 24, 0.125)}  # share, candidates, first step
BUDGET = 0.4


class Sliced:
    """Several sub-networks a step, each in a sliced pass: on its share of the batch, or on all of it."""

    def __init__(self, net: nn.Module, space: SearchSpace, *, steps: int, subnets: int, whole: bool, seed: int) -> None:
        self.net, self.space, self.subnets, self.whole, self.seed = net, space, subnets, whole, seed
        self.training = Training(net, steps=steps, batch_size=BATCH, recipe=RECIPE)

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one step."""
        archs = uniform(self.space, draws(self.seed, self.training.done), self.subnets)
        images, labels = next(self.training.parts(batch))
        shares = [(images, labels)] * self.subnets
        if not self.whole:
            shares = list(zip(images.chunk(self.subnets), labels.chunk(self.subnets), strict=True))
        for arch, (x, y) in zip(archs, shares, strict=True):
            loss = self.training.recipe.smoothed(F.cross_entropy, self.training.logits(arch, x), y)
            self.training.backward(loss / self.subnets)
        return {"loss": float(loss.detach()), "learning_rate": self.training.update()}


ARMS: dict[str, dict[str, Any]] = {
    "1 pass of ordered dropout, 64 sub-networks": {},
    "8 sliced passes of 8 images": {"subnets": SUBNETS, "whole": False},
    "8 sliced passes of 64 images": {"subnets": SUBNETS, "whole": True},
    "1 sliced pass of 64 images (uniform)": {"subnets": 1, "whole": True},
}


def rows(quick: bool) -> Iterator[Row]:
    """A row for each arm of training, and of descent."""
    seeds, steps = (2, 60) if quick else (3, 200)
    comparison = replace(digits(Path("runs/netadaptv2")), network=lambda: BypassChain(10, 1, (8, 8)), networks=22)
    batch = comparison.task.train.batch(0, BATCH)
    learners = [made(comparison, given, steps, 0)[0] for given in ARMS.values()]
    times = compared([partial(learner.step, batch) for learner in learners], 15)
    trained: list[nn.Module] = []
    for (name, given), ms in zip(ARMS.items(), times, strict=True):
        equal = max(1, round(steps * times[0].median / ms.median))
        nets = [run(comparison, given, equal, seed) for seed in range(seeds)]
        trained = trained or nets
        accuracy = np.array([[100 * score(comparison, net, arch) for arch in comparison.architectures] for net in nets])
        columns = {"largest": accuracy[:, 0], "smallest": accuracy[:, 1], "mean": accuracy[:, 2:].mean(1)}
        yield _row("training", name, step=str(ms), steps=equal, **{key: spread(x) for key, x in columns.items()})
    for name, (layers, samples, first) in DESCENTS.items():
        found = [descended(comparison, net, layers, samples, first, seed) for seed, net in enumerate(trained)]
        means = {key: spread([one[key] for one in found]) for key in ("steps", "evaluations", "chosen", "other half")}
        yield _row("descent", name, **means)


def made(comparison: Comparison, given: Mapping[str, Any], steps: int, seed: int) -> tuple[Any, nn.Module]:
    """Return a learner and its network, of a seed."""
    torch.manual_seed(seed)
    net = comparison.network()
    if given:
        return Sliced(net, comparison.space, steps=steps, seed=seed, **given), net
    return NetAdaptV2(net, comparison.space, steps=steps, batch_size=BATCH, recipe=RECIPE, seed=seed), net


def run(comparison: Comparison, given: Mapping[str, Any], steps: int, seed: int) -> nn.Module:
    """Return a trained network."""
    learner, net = made(comparison, given, steps, seed)
    for step in range(steps):
        learner.step(comparison.task.train.batch(step, BATCH))
    return net


def score(comparison: Comparison, net: nn.Module, arch: Architecture) -> float:
    """Return the accuracy on all held-out images."""
    return comparison.score(comparison.specialised(_Holder(net), arch))[0]


class _Holder:
    def __init__(self, net: nn.Module) -> None:
        self.net = net


def descended(
    comparison: Comparison, net: nn.Module, layers: float, samples: int, first: float, seed: int
) -> dict[str, float]:
    """Descend once; return its steps and evaluations, and the accuracy of what was chosen, on both halves."""
    halves = list(comparison.task.validation.batches(512)), list(comparison.task.test.batches(512))

    def accuracy(arch: Architecture, half: Sequence[Batch]) -> float:
        outputs, labels = predictions(comparison.specialised(_Holder(net), arch), half)
        return comparison.task.metric(outputs, labels)

    used: dict[Architecture, float] = {}

    def resource(arch: Architecture) -> float:
        if arch not in used:
            used[arch] = float(macs(trace(extract(net, arch), torch.empty(1, 1, 8, 8))))
        return used[arch]

    space = comparison.space
    budget = BUDGET * resource(space.largest())
    objectives = (Objective("error", lambda arch: 1 - accuracy(arch, halves[0])),)
    given = {"resource": resource, "budget": budget, "samples": samples, "layers": layers, "step": first}
    descent = CoordinateDescent(space, objectives, **given)  # type: ignore[arg-type]
    best, steps = (2.0, space.largest()), 0
    for number in itertools.count():
        arch = descent.ask(random.Random(f"{seed}/{number}"))
        error = objectives[0].measure(arch)
        if resource(arch) <= budget:
            best = min(best, (error, arch), key=lambda one: one[0])
        steps = descent.steps
        descent.tell(Trial(number, arch, {"error": error}, state="done"))
        if descent.steps < steps:
            break
    chosen, other = (100 * accuracy(best[1], half) for half in halves)
    return {"steps": steps + 1, "evaluations": number + 1, "chosen": chosen, "other half": other}


def _row(proof: str, arm: str, **found: str | int) -> Row:
    columns = ("step", "steps", "evaluations", "largest", "smallest", "mean", "chosen", "other half")
    titles = {"step": "CPU ms a step", **{name: f"{name} (%)" for name in columns[3:]}}
    return {"proof": proof, "arm": arm, **{titles.get(name, name): found.get(name) for name in columns}}
