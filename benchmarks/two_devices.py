"""Two devices with opposite operator costs, small spaces in which that matters, and a search for each device.

A `Device` has two speeds, of depthwise convolutions and of all other multiply-accumulates. "matrix" has a unit for
matrix products, in tiles of 256 channels, and is slow at depthwise convolutions, so that large kernels are dear and
width is free; "vector" is the other way round. Latencies are in microseconds, exact and the same at every call.

FBNet, ProxylessNAS and LA-DARTS search `Blocks`, four layers of a dense or a separable convolution with kernel 3 or 5:
256 networks. Single-Path NAS searches `Superkernels`, three bottlenecks with kernel 3 or 5 and expansion 3 or 6: 64
networks. All train on the digits, 8x8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.costs.expected import CostTable, cost_table
from sartor.costs.gemm import macs
from sartor.data.pairs import Pairs
from sartor.differentiable import fbnet, la_darts, proxylessnas, single_path
from sartor.differentiable.penalties import add, add_log, mul_log
from sartor.differentiable.single_path_runtime import Corners
from sartor.nn import OneOf
from sartor.predictors import LADARTS
from sartor.space import SearchSpace
from sartor.spaces.single_path import SuperMBConv
from sartor.supernet import extract, search_space
from sartor.task import Task, load_task
from sartor.workload import Workload, trace

STEPS, BATCH, LAYERS, WIDTH = 150, 32, 4, 8
METHODS = ("FBNet", "ProxylessNAS", "Single-Path", "LA-DARTS")


@dataclass(frozen=True)
class Device:
    """Multiply-accumulates per microsecond of depthwise convolutions and of all else.

    call: microseconds for each operator that is started. tile: output channels are padded to multiples of it.
    """

    name: str
    depthwise: float
    dense: float
    call: float = 1.0
    tile: int = 1

    def __call__(self, workload: Workload) -> float:
        """Return the microseconds of a network."""
        spent = 0.0
        for op in workload:
            if count := macs(op):
                alone = op.kind == "conv" and op.attribute("groups", 1) > 1
                channels = op.output[1]
                padded = count * math.ceil(channels / self.tile) * self.tile / channels
                spent += self.call + padded / (self.depthwise if alone else self.dense)
        return spent


MATRIX = Device("matrix", depthwise=1_600.0, dense=64_000.0, tile=256)
VECTOR = Device("vector", depthwise=2_000.0, dense=50.0)


class Blocks(nn.Module):
    """Layers of a dense or a separable convolution: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.layers = nn.Sequential(*(OneOf(_operations(), name=f"layer_{i}") for i in range(LAYERS)))
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        logits: Tensor = self.classifier(F.relu(self.layers(self.stem(x))).mean((2, 3)))
        return logits


def _operations() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for kernel in (3, 5):
        conv = partial(nn.Conv2d, WIDTH, WIDTH, padding=kernel // 2, bias=False)
        depthwise, pointwise = conv(kernel, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        found[f"dense_{kernel}"] = nn.Sequential(nn.ReLU(), conv(kernel), _norm())
        found[f"separable_{kernel}"] = nn.Sequential(nn.ReLU(), depthwise, pointwise, _norm())
    return found


def _norm() -> nn.Module:
    return nn.BatchNorm2d(WIDTH, affine=False)


class Superkernels(nn.Module):
    """Bottlenecks beside their input, each a superkernel: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.layers = nn.ModuleList([SuperMBConv(WIDTH, WIDTH, 1, f"layer_{i}") for i in range(3)])
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Result:
    """What a search found; expected is the latency of the distribution that it ended with, in microseconds."""

    arch: Architecture
    expected: float


def search(method: str, device: Device, strength: float, seed: int, steps: int = STEPS) -> Result:
    """Search for a device; `strength` is that of the method's own latency term, 0 for none.

    FBNet: the power beta of loss * 0.2 * log(latency)^beta, 0.6 in the paper. ProxylessNAS and LA-DARTS: the weight
    of the latency in units of the mean latency of the space. Single-Path: lambda of lambda * log(latency), 0.02 in
    the paper.
    """
    task = load_digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        learner, cost = MAKERS[method](device, strength, seed, steps)
        pairs = Pairs(task.train, 0.8 if method == "FBNet" else 0.5, classes=task.classes, seed=seed)
        source: Any = task.train if learner.needs == "single" else pairs
        for step in range(steps):
            learner.step(source.batch(seed * steps + step, BATCH))
        arch: Architecture = learner.architecture()
        if method == "Single-Path":
            return Result(arch, latency(method, device, arch))
        return Result(arch, float(cost(learner.alphas.assignment(learner.alphas.probabilities()))))


Made = tuple[Any, Callable[[Any], Tensor]]


def _fbnet(device: Device, strength: float, seed: int, steps: int) -> Made:
    net, cost = Blocks(), table_of(device)
    recipe = fbnet.RECIPE.shortened(steps)
    penalty = mul_log(0.2, strength)
    return fbnet.FBNet(net, cost.space, steps=steps, seed=seed, cost=cost, penalty=penalty, recipe=recipe), cost


def _proxylessnas(device: Device, strength: float, seed: int, steps: int) -> Made:
    net, cost = Blocks(), table_of(device)
    recipe, penalty = proxylessnas.RECIPE.shortened(steps), add(strength / mean_latency(device))
    made = proxylessnas.ProxylessNAS(net, cost.space, steps=steps, seed=seed, cost=cost, penalty=penalty, recipe=recipe)
    return made, cost


def _la_darts(device: Device, strength: float, seed: int, steps: int) -> Made:
    net, cost, unit = Blocks(), table_of(device), mean_latency(device)
    recipe = la_darts.RECIPE.shortened(steps)
    made = la_darts.LADARTSSearch(
        net, cost.space, steps=steps, seed=seed, cost=regressor(device), unit=unit, penalty=add(strength), recipe=recipe
    )
    return made, cost


def _single_path(device: Device, strength: float, seed: int, steps: int) -> Made:
    net = Superkernels()
    space = search_space(net)
    cost = Corners.measured(net, space, partial(latency, "Single-Path", device))
    recipe = replace(single_path.RECIPE, lr=0.1)  # so that thresholds get somewhere in so few steps
    made = single_path.SinglePathNAS(
        net, space, steps=steps, seed=seed, cost=cost, penalty=add_log(strength), recipe=recipe
    )
    return made, cost


MAKERS: dict[str, Callable[[Device, float, int, int], Made]] = {
    "FBNet": _fbnet,
    "ProxylessNAS": _proxylessnas,
    "Single-Path": _single_path,
    "LA-DARTS": _la_darts,
}


@cache
def load_digits() -> Task:
    """Return the digits."""
    return load_task("digits")


@cache
def latency(method: str, device: Device, arch: Architecture) -> float:
    """Return the microseconds of a network of a method's space."""
    return device(_workload(method == "Single-Path", arch))


@cache
def _workload(superkernels: bool, arch: Architecture) -> Workload:
    net: nn.Module = Superkernels() if superkernels else Blocks()
    return trace(extract(net, arch), load_digits().example)


@cache
def table_of(device: Device) -> CostTable:
    """Return what each operation of `Blocks` adds."""
    return cost_table(search_space(Blocks()), partial(latency, "FBNet", device))


@cache
def everything() -> tuple[SearchSpace, list[Architecture]]:
    """Return the space of `Blocks` and its 256 networks."""
    space = search_space(Blocks())
    several = itertools.product(*space.choices.values())
    return space, [space.canonical(dict(zip(space.choices, one, strict=True))) for one in several]


@cache
def mean_latency(device: Device) -> float:
    """Return the mean microseconds of the networks of `Blocks`."""
    return float(table_of(device).costs(everything()[1]).mean())


@cache
def regressor(device: Device) -> LADARTS:
    """Return LA-DARTS's regressor, trained on 128 networks of `Blocks`."""
    space, archs = everything()
    known = archs[::2]
    found: LADARTS = LADARTS(space, seed=0).fit(known, np.array([latency("LA-DARTS", device, arch) for arch in known]))
    return found
