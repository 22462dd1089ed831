# SPDX-License-Identifier: Apache-2.0
"""One gradient-based search: a supernet trained on real data, the network read out of it, and what that took."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sartor.architecture import Architecture
from sartor.bench.contenders import Scene, Searching, contender
from sartor.data.pairs import Pairs
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sartor.task import Task

__all__ = ["Found", "Ground", "ground", "mean_training", "search_network"]

COUNTED = 0.25  # share of the steps whose multiplications are counted, drawn at random: counting doubles their time
JUDGED, BATCHES = 256, 4  # images of a validation batch, and how many of these a read-out judges on at most
SAMPLED = 64  # networks whose training is counted


@dataclass(frozen=True)
class Ground:
    """Where gradient-based searches take place.

    network: `network(mixed)` makes a supernet in the form of a search. data: the task; only its training split is
    used. batch: images of a step. training: steps of the training of one network, the unit of costs.
    """

    name: str
    network: Callable[[Any], nn.Module]
    data: Callable[[], Task]
    batch: int
    training: int


@dataclass(frozen=True)
class Found:
    """What a search found.

    passes: forward passes, most of them with a backward one. macs: 1e6 multiply-accumulates of convolutions and matrix
    products, those of backward passes included, estimated from a random share of the steps. cpu_s: of the whole
    search. watched: what `watch` returned after each part of the search.
    """

    arch: Architecture
    passes: int
    macs: float
    cpu_s: float
    watched: tuple[Any, ...] = ()


@cache
def ground(table: str) -> Ground:
    """Return where the networks of a table are searched; ValueError for a table without such a place."""
    if table != "micro":
        raise ValueError(
            f"gradient-based methods search the table micro, and {table!r} is asked for: name --space micro"
        )
    from sartor.spaces.micro import Micro
    from sartor.task import load_task

    def network(mixed: Any) -> nn.Module:
        return Micro(affine=False, mixed=mixed)

    # the table's networks were trained for 8 epochs of 1077 images in batches of 32
    return Ground("micro", network, cache(lambda: load_task("digits")), batch=32, training=8 * 1077 // 32)


def search_network(
    place: Ground,
    method: str | Callable[[Scene], Searching],
    *,
    steps: int,
    seed: int,
    watch: Callable[[Searching], Any] | None = None,
    parts: int = 0,
) -> Found:
    """Search with a method of `contenders`, or with what makes a search, on the training split alone.

    Methods of two levels have it halved. The same seed finds the same network. watch: called `parts` times, evenly
    spread over the search. Raises ValueError where a loss is not finite.
    """
    make = contender(method) if isinstance(method, str) else method
    task, work = place.data(), Work()
    draws = np.random.default_rng([seed, 1])
    watched: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs = Pairs(task.train, 0.5, classes=task.classes, seed=seed)
        validation = list(itertools.islice(pairs.shares[1].batches(JUDGED), BATCHES))
        scene = Scene(lambda mixed: work.counting(place.network(mixed)), steps, seed, validation)
        learner = make(scene)
        total = int(getattr(learner, "steps", steps))
        begun = time.process_time()
        for step in range(total):
            at = seed * total + step  # each seed sees the images in another order
            batch = (task.train if learner.needs == "single" else pairs).batch(at, place.batch)
            counted = draws.random() < COUNTED or (step == total - 1 and not work.entered)
            with work if counted else nullcontext():
                learner.step(batch)
            if watch is not None and parts * (step + 1) // total > parts * step // total:
                watched.append(watch(learner))
        spent = time.process_time() - begun
    macs = work.flops / 2e6 * total / work.entered
    return Found(learner.architecture(), work.passes, macs, spent, tuple(watched))


@cache
def mean_training(place: Ground) -> float:
    """Return the mean over networks of the space of the 1e6 multiply-accumulates of a whole training."""
    net = place.network(None)
    space = search_space(net)
    images, labels = next(iter(place.data().train.batches(2)))
    work = Work()
    with torch.random.fork_rng(), work:
        archs = _archs(space)
        for arch in archs:
            network = extract(net, arch)
            network.train()
            loss = F.cross_entropy(network(images), labels)
            torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    return work.flops / 2e6 / len(archs) * place.batch / len(labels) * place.training


def _archs(space: SearchSpace) -> list[Architecture]:
    """All networks of a small space; some of a large one, always the same."""
    if space.size > SAMPLED:
        rng = random.Random(0)
        return [space.sample(rng) for _ in range(SAMPLED)]
    several = itertools.product(*space.choices.values())
    return [space.canonical(dict(zip(space.choices, options, strict=True))) for options in several]


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts passes through networks all the time, and inside its block the multiplications of all operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.passes = self.flops = self.entered = 0

    def __enter__(self) -> Any:
        """Count the multiplications from here on."""
        self.entered += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operator, and count two for each multiply-accumulate."""
        found = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        return found

    def counting(self, net: nn.Module) -> nn.Module:
        """Return the network, whose passes are counted; copies of it count here, too."""
        net.register_forward_pre_hook(self._pass)
        return net

    def __deepcopy__(self, memo: Any) -> Work:
        """A copy of a network counts in the same place."""
        return self

    def _pass(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.passes += 1
