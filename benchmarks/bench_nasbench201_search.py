"""Gradient-based searches with real training on NAS-Bench-201's cell, on small images; the table scores what they find.

Supernets of three cells (width 8, no scales in the cells' norms, statistics of the batch) train on the training split
of MNIST at 16x16 pixels, 500 steps of 64 images, with the recipes of `sartor.bench.contenders`; `SARTOR_MNIST` names
`mnist.npz`. --quick: the built-in digits, 8 steps, one seed. The cell found is scored by its test accuracy on CIFAR-10
(200 epochs) and its rank among 15,625, which no search sees: it is found on another task. Means over 3 seeds.

`skips after`: share of the six edges that would be skips after a quarter, half, three quarters and all of the search:
the collapse of DARTS shows here. `trainings`: multiply-accumulates of the search over those of training the mean cell
alone for as many steps. Random search spends the same: it draws that many cells and one more, and keeps the best by the
accuracy that CIFAR-10's validation images have after 12 epochs; expectations over all draws, exact. SARTOR_STEPS,
SARTOR_SEEDS and SARTOR_METHODS (names with commas between) ask for another length, number of seeds and other methods.

TangleNAS's edges are entangled, as in its paper: the 1x1 convolution is the centre of the 3x3 one, so that both are one
convolution of a mixed kernel. Behind it comes a batch norm, which would divide the sum of the two weights away: it is
multiplied in again. PC-DARTS has partial channels, a quarter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.bench.contenders import Contender
from sartor.bench.finds import Truth, interval
from sartor.bench.gradient import Found, Ground, mean_training, search_network
from sartor.choice import Choice
from sartor.differentiable.diagnostics import share
from sartor.nn import OneOf
from sartor.spaces.nasbench201 import Cell, NASBench201
from sartor.tables import load
from sartor.task import Task, load_task

Row = Mapping[str, str | float | int | None]

DATA = os.environ.get("SARTOR_MNIST", "mnist.npz")
NAMED = os.environ.get("SARTOR_METHODS", "").split(",")
METHODS = (
    *("darts", "gdas", "gdas_gated", "pc_darts", "darts_pt", "darts_pt_fixed", "snas"),
    "tanglenas",
)
STEPS, SEEDS = int(os.environ.get("SARTOR_STEPS", "500")), int(os.environ.get("SARTOR_SEEDS", "3"))
PARTS = 4
SKIP = "skip_connect"


def rows(quick: bool) -> Iterator[Row]:
    """A row per method, then those that need no search."""
    steps, seeds = (8, 1) if quick else (STEPS, SEEDS)
    place = images(quick, steps)
    truth, table = _truth(), load("nasbench201")
    for method in METHODS if NAMED == [""] else NAMED:
        make = ENTANGLED if method == "tanglenas" else method
        several = [search_network(place, make, steps=steps, seed=s, watch=_skips, parts=PARTS) for s in range(seeds)]
        yield _row(method, several, truth, mean_training(place), table.values("cifar10", [one.arch for one in several]))
    rank, regret = truth.random(1)
    yield _told("one at random", truth.best - regret, rank)
    for name in (SKIP, "nor_conv_3x3"):
        accuracy = float(table.values("cifar10", [Architecture(dict.fromkeys(table.space.choices, name))])[0])
        yield _told(f"all {name}", accuracy, truth.rank(accuracy))


def images(quick: bool, steps: int) -> Ground:
    """Return where the cell is searched."""
    side, batch = (8, 32) if quick else (16, 64)
    return Ground("nasbench201", partial(supernet, side=side), partial(_task, quick), batch, steps)


@cache
def _task(quick: bool) -> Task:
    return load_task("digits") if quick else load_task(DATA, image_size=16)


def supernet(mixed: Any, side: int) -> nn.Module:
    """Return a small network of the cell in its form for a search; `mixed` makes its edges."""
    net = NASBench201(10, 1, (side, side), width=8, cells=1, affine=False, track_running_stats=False)
    for cell in (module for module in net.layers if isinstance(module, Cell)) if mixed else ():
        for name, edge in list(cell.edges.items()):
            assert isinstance(edge, OneOf)
            width = next(m for m in edge.modules() if isinstance(m, nn.Conv2d)).in_channels
            new = mixed(partial(_operations, name, edge.choice), width, 1)
            new.choice = edge.choice
            cell.edges[name] = new
    return net


def _operations(name: str, choice: Choice, width: int) -> dict[str, nn.Module]:
    """The operations of an edge in another width."""
    edge = Cell(width, {name: choice}, False, False).edges[name]
    assert isinstance(edge, OneOf)
    return dict(edge.items())


class EntangledEdge(nn.Module):
    """An edge whose two convolutions are one: (N, C, H, W) -> the same shape, under soft weights alone."""

    def __init__(self, make: Callable[[int], dict[str, nn.Module]], width: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict({name: one for name, one in make(width).items() if "1x1" not in name})
        self.choice = Choice(tuple(make(width)))

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum of all operations."""
        soft = self.choice.weights
        assert soft is not None
        weights = dict(zip(self.choice.options, soft.unbind(), strict=True))
        _, convolution, norm = self.operations["nor_conv_3x3"].children()
        both = weights["nor_conv_1x1"] + weights["nor_conv_3x3"]
        assert isinstance(convolution, nn.Conv2d)
        centre = torch.zeros_like(convolution.weight)
        centre[:, :, 1, 1] = 1.0
        kernel = convolution.weight * (weights["nor_conv_3x3"] + weights["nor_conv_1x1"] * centre) / both
        total: Tensor = both * norm(F.conv2d(x.relu(), kernel, padding=1))
        for name in (SKIP, "avg_pool_3x3"):
            total = total + weights[name] * self.operations[name](x)
        return total


ENTANGLED = Contender("tanglenas", mixed=lambda: EntangledEdge)


def _skips(learner: Any) -> float:
    return share(learner.architecture(), SKIP)


@cache
def _truth() -> Truth:
    table = load("nasbench201")
    return Truth(table.column("cifar10_val12"), table.column("cifar10"), "max")


def _row(method: str, found: list[Found], truth: Truth, training: float, accuracies: Any) -> Row:
    trainings = [one.macs / training for one in found]
    chance = [truth.random(int(one) + 1) for one in trainings]
    ranks = np.array([truth.rank(value) for value in accuracies])
    accuracy, rank = interval(np.asarray(accuracies, dtype=float)), interval(ranks)
    assert accuracy is not None and rank is not None
    skips = np.mean([one.watched for one in found], axis=0)
    return {
        "method": method,
        "accuracy": accuracy["mean"],
        "of seeds": " ".join(f"{value:.2f}" for value in accuracies),
        "rank": rank["mean"],
        "random accuracy": truth.best - float(np.mean([regret for _, regret in chance])),
        "random rank": float(np.mean([rank for rank, _ in chance])),
        "skips after": " ".join(f"{value:.2f}" for value in skips),
        "passes": float(np.mean([one.passes for one in found])),
        "trainings": float(np.mean(trainings)),
        "CPU s": float(np.mean([one.cpu_s for one in found])),
    }


def _told(name: str, accuracy: float, rank: float) -> Row:
    nothing = dict.fromkeys(("random accuracy", "random rank", "skips after", "passes", "trainings", "CPU s"))
    return {"method": name, "accuracy": accuracy, "of seeds": None, "rank": rank, **nothing}
