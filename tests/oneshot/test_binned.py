# SPDX-License-Identifier: Apache-2.0
"""Draws of a wanted cost meet it, whatever the cost; counting multiply-accumulates layer by layer is exact."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import sartor.nn as elastic
from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.oneshot._binned import Bins
from sartor.oneshot._macs import Macs
from sartor.space import SearchSpace
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import extract, search_space
from sartor.workload import macs, trace
from toy_supernet import ToyNet

SPACE = SearchSpace({f"c{i}": (1, 2, 3, 4) for i in range(8)})
GATED = SearchSpace(
    {"depth": (1, 2, 3), **{f"width{i}": (2, 4, 8) for i in range(3)}},
    {"width1": ((("depth", (2, 3)),),), "width2": ((("depth", (3,)),),)},
)


def total(arch: Architecture) -> float:
    return float(sum(arch.values()))  # type: ignore[arg-type]


def gated(arch: Architecture) -> float:
    return float(sum(int(str(arch[f"width{i}"])) for i in range(int(str(arch["depth"])))))


def test_uniform_sampling_is_biased_to_the_middle_of_the_costs() -> None:
    """ShiftNAS: of eight choices, the central third of the range has more than four fifths of the draws."""
    space = SearchSpace({f"c{i}": tuple(range(1, 10)) for i in range(8)})
    bins = Bins(space, total, count=3, samples=4000)
    assert (bins.low, bins.high) == (8, 72)
    assert bins.prior[1] > 0.8 and bins.prior.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("space", "cost"), [(SPACE, total), (GATED, gated)])
def test_draws_are_in_their_bin_nine_times_in_ten(space: SearchSpace, cost: object) -> None:
    bins = Bins(space, cost, count=6, samples=2000)  # type: ignore[arg-type]
    rng = random.Random(1)
    for place in bins.met:
        archs = [bins.sample(place, rng) for _ in range(50)]
        assert sum(bins.of(arch) == place for arch in archs) >= 45
        assert all(arch in space for arch in archs)
    by_prior = [bins.draw(rng) for _ in range(1000)]
    assert np.abs(np.bincount(by_prior, minlength=6) / 1000 - bins.prior).max() < 0.06


def test_bins_of_a_width_round_costs_to_its_multiples() -> None:
    bins = Bins(SPACE, total, width=5.0, samples=500)
    assert [bins.centre(place) for place in bins.met] == [10.0, 15.0, 20.0, 25.0, 30.0]
    assert all(abs(cost - bins.centre(bins._bin(cost))) <= 2.5 for cost in bins.costs.tolist())


def test_marginals_are_those_of_the_uniform_draws_where_there_are_many() -> None:
    space = SearchSpace({"a": (0, 1), "b": (0, 1)})
    bins = Bins(space, total, count=3, samples=4000)
    assert bins.prior == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    half = np.array(bins.marginals[1]["a"])
    assert half / half.sum() == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_ends_are_sampled_from_though_uniform_draws_never_meet_them() -> None:
    bins = Bins(SPACE, total, count=12, samples=400)
    assert bins.prior[0] == 0.0 and 0 in bins.met and 11 in bins.met
    assert bins.of(bins.sample(11, random.Random(0))) == 11


def test_costs_are_asked_for_together_where_that_is_possible() -> None:
    class Table:
        calls = 0

        def __call__(self, arch: Architecture) -> float:
            return total(arch)

        def costs(self, archs: list[Architecture]) -> list[float]:
            self.calls += 1
            return [*map(total, archs)]

    table = Table()
    assert np.array_equal(
        Bins(SPACE, table, count=4, samples=100).costs, Bins(SPACE, total, count=4, samples=100).costs
    )
    assert table.calls == 1


def test_what_makes_no_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Bins(SPACE, total)
    with pytest.raises(ValueError, match="not finite"):
        Bins(SPACE, lambda arch: math.nan, count=3, samples=10)
    sparse = Bins(SearchSpace({"a": (0, 9)}), total, count=3, samples=20)
    with pytest.raises(ValueError, match="bin 1 is known"):
        sparse.sample(1, random.Random(0))


@pytest.mark.parametrize(
    ("net", "shape"),
    [(ToyNet(), (1, 8, 8)), (MobileNet(10, 1, (8, 8)), (1, 8, 8)), (MobileNet(4, 3, (28, 28)), (3, 28, 28))],
)
def test_macs_are_those_of_the_traced_network(net: nn.Module, shape: tuple[int, int, int]) -> None:
    space, rng, count = search_space(net), random.Random(0), Macs(net, shape)
    ghost = net.to("meta")
    for number in range(100):
        arch = space.sample(rng)
        if number < 80:
            count(arch)
            continue
        plain = extract(ghost, arch)
        size = int(getattr(plain, "resolution", shape[1]))
        assert count(arch) == macs(trace(plain, torch.empty(1, shape[0], size, size, device="meta")))
    assert count.separable


class Strided(nn.Module):
    """The kernel of one layer decides the size of the map of the next, of which no size tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first = elastic.OneOf({"whole": nn.Identity(), "pool": nn.AvgPool2d(2)})
        self.width = Choice([2, 4])
        self.second = elastic.Conv2d(1, self.width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


def test_macs_are_traced_where_layers_hang_on_more_than_their_own_options() -> None:
    net = Strided()
    count, rng = Macs(net, (1, 8, 8)), random.Random(0)
    for _ in range(50):
        arch = search_space(net).sample(rng)
        assert count(arch) == int(str(arch["width"])) * (64 if arch["first.choice"] == "whole" else 16)
    assert not count.separable
