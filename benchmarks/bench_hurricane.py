# SPDX-License-Identifier: Apache-2.0
"""HURRICANE: do devices rank operators differently, and do operators measured alone add up to networks?

Ten operators at 32 channels of 16x16 pixels, two layers. Devices: the processor by ONNX Runtime and by torch, one
thread, each operator measured alone; a roofline; a weight-stationary systolic array of 64x64. `tau` is Kendall's of the
scores, the mean over layers; `differ` counts the operators of the pools of four that are not in both. Then 30
NAS-Bench-201 networks without dead ends at 32x32 on ONNX Runtime: Spearman of the sum of operators that were measured
alone, and of multiply-accumulates, with the latency of the whole network.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import sartor.nn as nas
from sartor.architecture import Architecture
from sartor.costs.operator_pool import OperatorStudy, agreement, study_layers, study_on_target
from sartor.costs.roofline import Roofline
from sartor.costs.systolic import SystolicArray
from sartor.protocols import Target
from sartor.ranking import spearman
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import extract, search_space
from sartor.targets import load_target
from sartor.workload import macs, trace

Row = Mapping[str, str | float | int | None]
CHANNELS = 32


def rows(quick: bool) -> Iterator[Row]:
    """A row per pair of devices, then one for each way to predict whole networks."""
    yield from devices()
    yield from networks(10 if quick else 30)


def convolution(kernel: int, groups: int = 1) -> nn.Module:
    """Return a convolution that keeps channels and sides."""
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups)


def separable(kernel: int) -> nn.Module:
    """Return a depthwise and a pointwise convolution."""
    return nn.Sequential(convolution(kernel, CHANNELS), convolution(1))


class Layers(nn.Module):
    """Two layers of ten operators, the second at half the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = self._mixed(), self._mixed()

    @staticmethod
    def _mixed() -> nas.OneOf:
        return nas.OneOf(
            {
                "plain 1": convolution(1), "plain 3": convolution(3), "plain 5": convolution(5),
                "grouped 3": convolution(3, 4), "depthwise 3": convolution(3, CHANNELS),
                "separable 3": separable(3), "separable 5": separable(5), "separable 7": separable(7),
                "plain 3 se": nn.Sequential(convolution(3), nas.SqueezeExcite(CHANNELS, CHANNELS // 4)),
                "separable 3 se": nn.Sequential(separable(3), nas.SqueezeExcite(CHANNELS, CHANNELS // 4)),
            }
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, 32, 16, 16) -> (N, 32, 8, 8)."""
        return self.late(nn.functional.avg_pool2d(self.early(x), 2))  # type: ignore[no-any-return]


def devices() -> Iterator[Row]:
    """Compare the scores and pools of four devices."""
    net, example = Layers().eval(), torch.zeros(1, CHANNELS, 16, 16)
    studies = {
        "ONNX Runtime": measured(net, example, load_target("onnxruntime")),
        "torch": measured(net, example, load_target("torch")),
        "roofline": study_layers(net, example, Roofline(20, 10, 0.002)),
        "systolic array": study_layers(net, example, SystolicArray(64, 64, "ws", mhz=500)),
    }
    for (first, one), (second, other) in itertools.combinations(studies.items(), 2):
        pools = [study.pool(4) for study in (one, other)]
        differ = sum(len({*pools[0][layer]} - {*pools[1][layer]}) for layer in one.layers)
        best = " / ".join(str(study.ranking("early.choice")[0]) for study in (one, other))
        yield row("devices", f"{first}, {second}", tau=agreement(one, other), differ=differ, best=best)


def networks(count: int) -> Iterator[Row]:
    """Compare sums of operators with whole networks."""
    net, example = NASBench201().eval(), torch.zeros(1, 3, 32, 32)
    space, rng, target = search_space(net), random.Random(0), load_target("onnxruntime")
    archs: list[Architecture] = []
    while len(archs) < count:  # of networks whose operators are all used: a runtime leaves the others out
        arch = space.sample(rng)
        plain_one = extract(net, arch)
        if len(trace(plain_one, example)) == len(trace(plain_one, example, live=True)):
            archs.append(arch)
    study = measured(net, example, target)
    with tempfile.TemporaryDirectory() as folder:
        plain = [extract(net, arch) for arch in archs]
        places = [Path(folder) / str(number) for number in range(count)]
        for place in places:
            place.mkdir()
        artefacts = [target.prepare(one, (example,), [example], to) for one, to in zip(plain, places, strict=True)]
        whole = [one.p10 for one in target.measure(artefacts)]
    counted = [macs(trace(one, example)) for one in plain]
    for what, values in (("sum of operators", [study.ms(arch) for arch in archs]), ("multiply-accumulates", counted)):
        yield row("networks", what, spearman=spearman(values, whole))


def measured(net: nn.Module, example: Tensor, target: Target) -> OperatorStudy:
    """Measure every operator alone."""
    with tempfile.TemporaryDirectory() as folder:
        return study_on_target(net, example, target, Path(folder))


def row(part: str, what: str, **found: str | float) -> Row:
    """Return a row with all columns."""
    return {"part": part, "what": what, "tau": None, "differ": None, "best": None, "spearman": None, **found}
