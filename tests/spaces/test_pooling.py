# SPDX-License-Identifier: Apache-2.0
"""The pooling space: the space contract, the layouts of the paper, and sizes of maps in each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from contracts import space_contract as law
from contracts.layer_contract import distance
from contracts.space_contract import SpaceCase
from sartor.choice import indices
from sartor.spaces.pooling import PoolingResNet
from sartor.supernet import activated, extract, search_space
from sartor.workload import parameters, trace

torch.set_num_threads(1)

RESNET20 = SpaceCase("pooling-resnet20", partial(PoolingResNet, 10, 3, (32, 32), units=10, width=16), (2, 3, 32, 32))
CASES = [SpaceCase("pooling", PoolingResNet, (2, 1, 8, 8)), RESNET20]
SMALL = SpaceCase("pooling", partial(PoolingResNet, 4, 1, (7, 5), units=4, width=4), (2, 1, 7, 5))


def write_golden() -> None:
    for case in CASES:
        law.write(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


def test_the_laws_of_a_space() -> None:
    law.searching_stays_in_the_space(SMALL)
    law.equal_networks_are_equal_keys(SMALL)
    law.extraction_equals_activation(SMALL, torch.float64, count=10)
    law.one_hot_equals_hard(SMALL)
    law.gradients_reach_every_choice(SMALL)
    law.meta_build_takes_no_memory(SMALL)
    law.copies_are_independent(SMALL)
    law.exports(SMALL)


def test_layouts_are_those_of_the_paper() -> None:
    space = search_space(RESNET20.ghost())
    assert space.size == 36 and space.choices["pooling"][0] == (1, 2)  # the first unit is never pooled
    assert search_space(PoolingResNet()).size == 10


def test_a_layout_changes_the_maps_and_no_weight() -> None:
    network: Any = PoolingResNet().eval()
    counts = set()
    for layout in search_space(network).choices["pooling"]:
        small: Any = extract(network, {"pooling": layout})
        counts.add(parameters(trace(small, torch.empty(1, 1, 8, 8))))
        sides: list[int] = []
        for unit in small.units:
            unit.register_forward_hook(lambda _, __, out, sides=sides: sides.append(out.shape[-1]))
        small(torch.zeros(1, 1, 8, 8))
        assert sides == [8 // 2 ** sum(place <= unit for place in indices(layout)) for unit in range(6)]
    assert len(counts) == 1


def test_a_mixture_is_that_of_the_outputs() -> None:
    network = SMALL.network(torch.float64).eval()
    x, weights = SMALL.inputs(torch.float64), torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    outputs = []
    for layout in ((1, 2), (2, 3)):
        with activated(network, {"pooling": layout}):
            outputs.append(network(x))
    with activated(network, {"pooling": weights}):
        assert distance(network(x), (outputs[0] + outputs[1]) / 2) <= 1e-12


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="6 poolings do not fit 6 units: give 1 to 5"):
        PoolingResNet(poolings=6)
    with pytest.raises(ValueError, match="images of 3x8 do not fit PoolingResNet: give at least 4 pixels"):
        PoolingResNet(size=(3, 8))
    network = PoolingResNet()
    with pytest.raises(ValueError, match="all weights of"), activated(network, {"pooling": torch.zeros(10)}):
        network(torch.zeros(1, 1, 8, 8))
