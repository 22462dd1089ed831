# SPDX-License-Identifier: Apache-2.0
"""What learners of shared weights are compared on: data, space, networks trained alone, and one training of a learner.

Digits: 500 images for training, with noise of standard deviation .35 added once, so that networks differ; 1,297 to
evaluate on. Nothing is chosen by these, so they serve as the truth and as the estimate of it. Every learner, the
baseline and the networks trained alone have one recipe, and batches of 64.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor import names
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.data.digits import read_digits
from sartor.evaluation import predictions, specialised
from sartor.fit import fit
from sartor.oneshot import Recipe, Supervised
from sartor.ranking import kendall_tau
from sartor.recipes.profiling import spread_samples
from sartor.recipes.training import reset_parameters
from sartor.space import SearchSpace
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import extract, recalibrate_batchnorm, search_space
from sartor.task import Task, load_task

BATCH, NETWORKS, TRUTH_STEPS, TRUTH_SEEDS = 64, 30, 600, 3
RECIPE = Recipe(schedule="cosine", dropout=0.0)
EXTREMES = ("largest", "smallest")

Network = Callable[[], nn.Module]


@dataclass(frozen=True)
class Comparison:
    """One data set and space, and a folder where what was trained is kept."""

    task: Task
    network: Network
    folder: Path
    recipe: Recipe = RECIPE
    truth_steps: int = TRUTH_STEPS
    truth_seeds: int = TRUTH_SEEDS
    networks: int = NETWORKS
    most: int | None = None  # images of each split that networks are evaluated on

    @cached_property
    def space(self) -> SearchSpace:
        """All sub-networks."""
        return search_space(self.network())

    @cached_property
    def architectures(self) -> list[Architecture]:
        """The networks of the truth: from the smallest to the largest."""
        given = [self.space.largest(), self.space.smallest()]
        return spread_samples(self.space, self.networks + 2, given, random.Random("truth"))

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Training images for batch-norm statistics."""
        size = min(128, len(self.task.train))
        return [self.task.train.batch(i, size)[0] for i in range(4)]

    @cached_property
    def held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Images that nothing was trained on: the first of both splits."""
        each = None if self.most is None else self.most // 512
        splits = (self.task.validation, self.task.test)
        return [batch for split in splits for batch in itertools.islice(split.batches(512), each)]

    def score(self, network: nn.Module) -> tuple[float, float]:
        """Return accuracy and mean negative log-likelihood of a network as it would be deployed."""
        outputs, labels = predictions(network, self.held_out)
        loss = float(torch.nn.functional.cross_entropy(outputs, labels))
        return self.task.metric(outputs, labels), loss

    def alone(self, arch: Architecture, steps: int, seed: int) -> tuple[float, float]:
        """Return the score of a network trained from scratch; kept in the folder."""
        name = f"alone/{arch.id}-{steps}-{seed}"
        score: tuple[float, float] = self._kept(name, lambda: {"score": self._alone(arch, steps, seed)})["score"]
        return score

    def _alone(self, arch: Architecture, steps: int, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        network = extract(self.network(), arch)
        reset_parameters(network)
        learner = Supervised(network, self.task.loss, steps=steps, batch_size=BATCH, recipe=self.recipe)
        fit(learner, self.task.train, steps=steps, batch_size=BATCH, seed=seed, progress=_quiet)
        recalibrate_batchnorm(network, self.calibration)
        return self.score(network.eval())

    @cached_property
    def truth(self) -> list[tuple[float, float]]:
        """Mean accuracy and loss of each of `architectures`, trained alone."""
        seeds = range(self.truth_seeds)
        each = [[self.alone(arch, self.truth_steps, seed) for seed in seeds] for arch in self.architectures]
        return [(float(np.mean([a for a, _ in one])), float(np.mean([b for _, b in one]))) for one in each]

    def trained(self, name: str, seed: int, passes: int, **given: Any) -> Mapping[str, Any]:
        """Return what sub-networks reach with the weights of a learner after `passes` passes; kept in the folder."""
        label = "-".join([name, *(f"{key}={value}" for key, value in given.items())])
        return self._kept(f"{label}-{passes}-{seed}", lambda: self._trained(name, seed, passes, **given))

    def _trained(self, name: str, seed: int, passes: int, **given: Any) -> Mapping[str, Any]:
        learner, seconds = self.learned(name, seed, passes, **given)
        scores = [self.score(self.specialised(learner, arch)) for arch in self.architectures]
        return {"scores": scores, "effort": list(learner.effort), "cpu_s": seconds}

    def specialised(self, learner: Any, arch: Architecture) -> nn.Module:
        """The sub-network with the learner's weights, as it would be deployed."""
        routed = getattr(learner, "network_for", None)
        return specialised(routed(arch) if routed else learner.net, arch, self.calibration)

    def learned(self, name: str, seed: int, passes: int, **given: Any) -> tuple[Any, float]:
        """Return a learner after `passes` passes, and the CPU seconds of its training."""
        torch.manual_seed(seed)
        kind: Any = names.load("methods", name)
        accepted = inspect.signature(kind).parameters
        shared = {"batch_size": BATCH, "seed": seed, "recipe": self.recipe}
        shared = {key: value for key, value in shared.items() if key in accepted} | given
        net = self.network()

        def made(steps: int) -> Any:
            return kind(net, self.space, self.task.loss, steps=steps, **shared)

        state = copy.deepcopy(net.state_dict())
        steps = max(1, round(passes / made(passes).passes_per_step))
        net = self.network()
        net.load_state_dict(state)
        learner = made(steps)
        data: Any = learner.data(self.task.train) if hasattr(learner, "data") else self.task.train
        before = time.process_time()
        fit(learner, data, steps=steps, batch_size=BATCH, seed=seed, progress=_quiet)
        return learner, time.process_time() - before

    def _kept(self, name: str, made: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, made())
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]


def digits(folder: Path | None = None) -> Comparison:
    """Return the comparison on noisy digits, in the elastic MobileNet for 8x8 images."""
    part = read_digits().train
    rng = np.random.default_rng(0)
    order = rng.permutation(len(part.labels))
    images = np.asarray(part.images)[order].astype(np.float32) / 255
    images, labels = images + rng.normal(0, 0.35, images.shape).astype(np.float32), part.labels[order]
    images = (images - images.min()) / np.ptp(images)  # pixels are 0 to 1; training normalises
    cut = (slice(500), slice(500, 1100), slice(1100, None))
    (x, y), (xv, yv), (xt, yt) = ((images[one], labels[one]) for one in cut)
    task = Task.from_arrays(x, y, xt, yt, x_validation=xv, y_validation=yv, name="noisy digits")
    return Comparison(task, lambda: MobileNet(10, 1, (8, 8)), folder or _folder("oneshot-digits"))


def mnist(path: str, folder: Path | None = None) -> Comparison:
    """Return the comparison on MNIST, resized to 14x14, in the elastic MobileNet for such images."""
    task = load_task(path, image_size=14)
    network = partial(MobileNet, 10, 1, (14, 14))
    return Comparison(task, network, folder or _folder("oneshot-mnist"), truth_steps=500, truth_seeds=1, most=2048)


def _folder(name: str) -> Path:
    return Path(os.environ.get("SARTOR_OUT") or Path(__file__).parents[1] / "runs" / name)


def summary(comparison: Comparison, found: Mapping[str, Any]) -> dict[str, float]:
    """Return accuracy in percent of the largest, smallest and mean network, and tau against the networks alone.

    Tau is that of the losses, which have no ties.
    """
    accuracy = [100 * a for a, _ in found["scores"]]
    losses, truth = [loss for _, loss in found["scores"]], [loss for _, loss in comparison.truth]
    alone = [100 * a for a, _ in comparison.truth]
    return {
        "largest": accuracy[0],
        "smallest": accuracy[1],
        "mean": float(np.mean(accuracy[2:])),
        "tau": kendall_tau(losses, truth),
        "gap": float(np.mean(np.subtract(alone[2:], accuracy[2:]))),
    }


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and standard deviation as text."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def _quiet(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None
