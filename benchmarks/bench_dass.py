"""DASS beside a dense search whose network is pruned, and learned scores beside magnitudes, on the micro space.

Digits, 95 % of the weights of every layer but the stem pruned. First three rows: who finds the network, which then goes
through pre-training, pruning and fine-tuning (HYDRA), with the same seeds: DARTS, DASS of the first order (same steps),
or chance. Last two: three 3x3 convolutions, pre-trained alike and not fine-tuned, the mask from magnitudes or learned.
`accuracy`: on the validation images in %, batch norm estimated anew. `nonzero`: weights left in masked layers, which
differ as networks do. `ahead` and p: seeds in which it is more than that of the first row of its part, sign test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from sartor.architecture import Architecture
from sartor.differentiable.darts import DARTS
from sartor.differentiable.dass import DASS, HYDRA, KEPT, Stages, sparse
from sartor.differentiable.descent import Recipe
from sartor.evaluation import predictions
from sartor.nn.parametrized import baked, parametrizations
from sartor.nn.sparsify import TopK
from sartor.spaces.micro import Micro
from sartor.supernet import extract, recalibrate_batchnorm, search_space
from sartor.task import load_task

Row = Mapping[str, str | float | int | None]

KEEP = 0.05
SEARCH = Recipe(lr=0.1, lr_min=0.001, alpha_lr=0.01)
FOUND = Recipe(lr=0.1, lr_min=0.001)
STAGES = Stages(1, (0.5, 0.25, 0.25))
WIDEST = Architecture({f"slot_{i}": "conv_3x3" for i in range(3)})


def rows(quick: bool) -> Iterator[Row]:
    """A row per way to find a network, and per way to prune one."""
    seeds, steps = (2, 16) if quick else (5, 200)
    methods: Mapping[str, Callable[..., Any]] = {"DARTS": DARTS, "DASS": partial(DASS, keep=KEEP, order=1)}
    pruned = {
        **{name: [final(found(make, seed, steps), seed, steps) for seed in range(seeds)]
           for name, make in methods.items()},
        "chance": [final(search_space(Micro()).sample(random.Random(seed)), seed, steps) for seed in range(seeds)],
    }  # fmt: skip
    yield from _rows("search, then HYDRA", pruned)
    masks = {
        "magnitudes": [final(WIDEST, seed, steps, prune_lr=0.0, finetune_lr=0.0) for seed in range(seeds)],
        "learned scores": [final(WIDEST, seed, steps, finetune_lr=0.0) for seed in range(seeds)],
    }
    yield from _rows("mask, not fine-tuned", masks)


def found(make: Callable[..., Any], seed: int, steps: int) -> Architecture:
    """Search with halves of the training images."""
    images, labels = load_task("digits").train.batch(0, 1077)
    net = new(seed, affine=False)
    search = make(net, search_space(net), steps=steps, seed=seed, recipe=SEARCH)
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(labels), generator=generator).chunk(2)
    for _ in range(steps):
        drawn = [half[torch.randint(len(half), (32,), generator=generator)] for half in halves]
        search.step(tuple((images[one], labels[one]) for one in drawn))
    arch: Architecture = search.architecture()
    return arch


def final(
    arch: Architecture, seed: int, steps: int, prune_lr: float = 0.1, finetune_lr: float = 0.01
) -> tuple[float, int]:
    """Pre-train, prune and fine-tune a network; return its accuracy and its nonzero masked weights."""
    task, network = load_task("digits"), extract(sparse(new(seed), KEEP), {**arch, KEPT: KEEP})
    learner = HYDRA(network, steps=steps, recipe=FOUND, stages=STAGES, prune_lr=prune_lr, finetune_lr=finetune_lr)
    for step in range(steps):
        learner.step(task.train.batch(step + seed * steps, 32))
    nonzero = sum(int(mask.mask().sum()) for _, mask, _ in parametrizations(network, TopK))
    baked(network)
    recalibrate_batchnorm(network, (images for images, _ in task.train.batches(256)))
    return 100 * task.metric(*predictions(network, task.validation.batches(256))), nonzero


def new(seed: int, affine: bool = True) -> nn.Module:
    """Return a micro network with the first weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Micro(affine=affine)


def _rows(part: str, outcomes: Mapping[str, list[tuple[float, int]]]) -> Iterator[Row]:
    first = next(iter(outcomes))
    reference = np.array(outcomes[first])[:, 0]
    for name, outcome in outcomes.items():
        values, nonzero = np.array(outcome).T
        ahead, behind = int((values > reference).sum()), int((values < reference).sum())
        yield {
            "part": part,
            "": name,
            "seeds": len(values),
            "accuracy": round(float(values.mean()), 2),
            "s.e.": round(float(values.std(ddof=1) / len(values) ** 0.5), 2),
            "nonzero": round(float(nonzero.mean()), 1),
            "ahead": None if name == first else ahead,
            "behind": None if name == first else behind,
            "p": None if name == first or not ahead + behind else round(_p(ahead, ahead + behind), 3),
        }


def _p(ahead: int, differ: int) -> float:
    return float(binomtest(ahead, differ).pvalue)
