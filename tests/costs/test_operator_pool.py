# SPDX-License-Identifier: Apache-2.0
"""Operators ranked per device, and the space of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as nas
from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.costs.operator_pool import Operator, OperatorStudy, agreement, study_layers, study_networks, study_on_target
from sartor.costs.roofline import Roofline
from sartor.costs.systolic import SystolicArray
from sartor.protocols import Artefact, Measurement
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sartor.targets.artefacts import TargetError
from sartor.workload import Workload, macs, parameters, trace

CPU, NPU = Roofline(20, 10, 0.01), SystolicArray(64, 64, "ws", mhz=500)
EXAMPLE = torch.empty(1, 16, 16, 16)


def convolution(kernel: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=groups, bias=False)


def separable(kernel: int) -> nn.Module:
    return nn.Sequential(convolution(kernel, 16), convolution(1))


def operators() -> dict[str, nn.Module]:
    """Ten operators: plain, grouped, depthwise separable, of large kernels, and some without arithmetic."""
    return {
        "plain1": convolution(1), "plain3": convolution(3), "plain5": convolution(5), "grouped3": convolution(3, 4),
        "separable3": separable(3), "separable5": separable(5), "separable7": separable(7),
        "se": nas.SqueezeExcite(16, 4), "pool": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity(),
    }  # fmt: skip


class Net(nn.Module):
    """Two layers of ten operators, the second of which may be left out, and a linear layer of elastic width."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nas.OneOf(operators())
        self.rest = nas.Repeat(nas.OneOf(operators()), depth=Choice([0, 1]))
        self.width = Choice([8, 32])
        self.up, self.down = nas.Linear(16, self.width), nas.Linear(self.width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.rest(self.first(x)).mean((2, 3))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def study() -> OperatorStudy:
    return study_layers(Net(), EXAMPLE, CPU)


def test_every_operator_is_taken_alone_at_its_place(study: OperatorStudy) -> None:
    assert list(study.layers) == ["first.choice", "rest.0.choice"]
    names = list(operators())
    for layer in study.layers.values():
        assert layer[names.index("plain3")] == Operator(
            16 * 16 * 16 * 9 * 16, 16 * 9 * 16, CPU(trace(convolution(3), EXAMPLE))
        )
        assert layer[names.index("skip")] == Operator(0, 0, 0)
        assert layer[names.index("pool")].score == 0


def test_the_score_is_capacity_for_time(study: OperatorStudy) -> None:
    """S = FLOPs * parameters / latency, as a share of the layer's best."""
    found = study.layers["first.choice"]
    best = max(one.macs * one.parameters / one.ms for one in found if one.ms)
    wanted = [one.macs * one.parameters / one.ms / best if one.ms else 0 for one in found]
    assert study.scores("first.choice").tolist() == pytest.approx(wanted)
    ranking = study.ranking("first.choice")
    assert ranking[0] == "plain5" and ranking[-2:] == ("skip", "pool")


def test_devices_rank_operators_differently(study: OperatorStudy) -> None:
    other = study_layers(Net(), EXAMPLE, NPU)
    assert agreement(study, study) == pytest.approx(1.0)
    assert 0 < agreement(study, other) < 1


def test_the_space_of_the_pool(study: OperatorStudy) -> None:
    space = study.restricted(4)
    assert [len(space.choices[layer]) for layer in study.layers] == [4, 4]
    assert space.choices["width"] == (8, 32)
    for layer in study.layers:
        assert "skip" in space.choices[layer]  # the fastest stays
        assert set(study.ranking(layer)[:3]) < set(space.choices[layer])
    heavy = study.pool(4, fastest=False)["first.choice"]
    assert set(heavy) == set(study.ranking("first.choice")[:4])
    assert len(study.pool(99)["first.choice"]) == 10
    with pytest.raises(ValueError, match="size is 0"):
        study.pool(0)


def test_operators_of_a_network_add_up(study: OperatorStudy) -> None:
    space = search_space(Net())
    arch = space.canonical({**space.largest(), "first.choice": "plain3", "rest.0.choice": "se"})
    (three, se) = (study.layers[layer][place].ms for layer, place in (("first.choice", 1), ("rest.0.choice", 7)))
    assert study.ms(arch) == pytest.approx(three + se)
    assert study.ms(space.canonical({**arch, "rest.depth": 0})) == pytest.approx(three)


def test_any_choice_within_the_network() -> None:
    net = Net()
    space = search_space(net)

    def workload(arch: Architecture) -> Workload:
        return trace(extract(net, arch), EXAMPLE)

    study = study_networks(space, workload, lambda arch: CPU(workload(arch)))
    assert set(study.layers) == set(space.choices)
    largest = workload(space.largest())
    assert study.layers["width"][1] == Operator(macs(largest), parameters(largest), CPU(largest))
    assert study.restricted(1).choices["width"] == (8,)  # all the same speed but for the calls: the fastest stays


def measured(ms: float) -> Measurement:
    return Measurement(
        latency_ms=ms, p10=ms, p90=ms, p95=ms, p99=ms, minimum=ms, runs=1, rounds=1, ci_low=ms, ci_high=ms, cv=0.0,
        noisy=False, notes=(), size_mb=0.0, memory_mb=None,
    )  # fmt: skip


class FakeTarget:
    """A target whose latency is the number of parameters, in microseconds."""

    name = "fake"

    def __init__(self) -> None:
        self.sizes: dict[Path, int] = {}

    def fingerprint(self) -> dict[str, str]:
        return {"runtime": "fake"}

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        assert path.is_dir() and model(*example).shape == example[0].shape
        self.sizes[path] = sum(p.numel() for p in model.parameters())
        return Artefact(path, tuple(example[0].shape), ())

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        return [measured(1e-3 * self.sizes[artefact.path]) for artefact in artefacts]


def test_measured_on_a_target(tmp_path: Path) -> None:
    target = FakeTarget()
    study = study_on_target(Net(), EXAMPLE, target, tmp_path)
    assert len(target.sizes) == 9  # both layers have the same operators; the skip connection is not measured
    for layer in study.layers.values():
        assert [one.ms for one in layer] == pytest.approx([1e-3 * one.parameters for one in layer])


class RefusingTarget(FakeTarget):
    """The same, with a runtime that lacks the operator of the most weights."""

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        found: list[Measurement | None] = [*super().measure(artefacts)]
        worst = max(range(len(found)), key=lambda place: self.sizes[artefacts[place].path])
        found[worst] = None
        raise TargetError("no such operator", {worst: "no such operator"}, found)


def test_what_a_runtime_refuses_is_in_no_pool(tmp_path: Path) -> None:
    study = study_on_target(Net(), EXAMPLE, RefusingTarget(), tmp_path)
    for layer, operators in study.layers.items():
        refused = [place for place, one in enumerate(operators) if math.isinf(one.ms)]
        assert len(refused) == 1
        pool = study.pool(len(operators))[layer]
        assert study.space.choices[layer][refused[0]] not in pool and len(pool) == len(operators) - 1


def test_a_network_without_mixed_operations() -> None:
    net = nas.Linear(4, Choice([2, 4], name="width"))
    with pytest.raises(ValueError, match="use study_networks"):
        study_layers(net, torch.empty(1, 4), CPU)


def test_no_ranking_has_no_agreement() -> None:
    alike = OperatorStudy(SearchSpace({"a": (1, 2)}), {"a": (Operator(0, 0, 1), Operator(0, 0, 2))})
    assert agreement(alike, alike) != agreement(alike, alike)
