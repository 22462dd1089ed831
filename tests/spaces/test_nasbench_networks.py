# SPDX-License-Identifier: Apache-2.0
"""The networks of the tabular benchmarks: the space contract, and the published parameters and FLOPs."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.architecture import Architecture
from sartor.nn import OneOf, Zero
from sartor.space import SearchSpace
from sartor.spaces import nasbench201_cell, nasbench_macro_layers
from sartor.spaces.nasbench201 import Cell, NASBench201, published_flops
from sartor.spaces.nasbench_macro import NASBenchMacro
from sartor.supernet import activated, extract, search_space
from sartor.tables import load
from sartor.workload import macs, parameters, trace

torch.set_num_threads(1)

# The published ones, of which golden files keep names and costs, and small ones that run in milliseconds.
CASES = [
    SpaceCase("nasbench201", NASBench201, (2, 3, 32, 32)),
    SpaceCase("nasbench_macro", NASBenchMacro, (2, 3, 32, 32)),
]
SMALL = [
    SpaceCase("nasbench201", partial(NASBench201, 4, 1, (9, 9), width=4, cells=1), (2, 1, 9, 9)),
    SpaceCase("nasbench_macro", partial(NASBenchMacro, 4, 1, (9, 9), width=4), (2, 1, 9, 9)),
]
every_space = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_small_space = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


def write_golden() -> None:
    for case in CASES:
        law.write(case)


@every_space
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_small_space
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


@every_small_space
def test_equal_networks_are_equal_keys(case: SpaceCase) -> None:
    law.equal_networks_are_equal_keys(case)


@every_small_space
def test_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float64, count=10)


@every_small_space
def test_one_hot_equals_hard(case: SpaceCase) -> None:
    law.one_hot_equals_hard(case)


@every_small_space
def test_gradients_reach_every_choice(case: SpaceCase) -> None:
    law.gradients_reach_every_choice(case)


@every_small_space
def test_meta_build_takes_no_memory(case: SpaceCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_small_space
def test_copies_are_independent(case: SpaceCase) -> None:
    law.copies_are_independent(case)


@every_small_space
def test_exports(case: SpaceCase) -> None:
    law.exports(case)


# ---- the tables' spaces, and back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "space"),
    [(CASES[0], nasbench201_cell.space()), (CASES[1], nasbench_macro_layers.space())],
    ids=["nasbench201", "nasbench_macro"],
)
def test_the_space_is_that_of_the_table(case: SpaceCase, space: SearchSpace) -> None:
    assert search_space(case.ghost()) == space == load(case.name).space


@every_space
def test_string_architecture_and_network_are_each_others_inverse(case: SpaceCase) -> None:
    cells: Any = nasbench201_cell if case.name == "nasbench201" else nasbench_macro_layers
    ghost: Any = case.ghost()
    rng = random.Random(0)
    for arch in (cells.space().sample(rng) for _ in range(5)):
        network: Any = extract(ghost, cells.from_string(cells.to_string(arch)))
        assert network.architecture() == arch
        with activated(ghost, arch):
            assert ghost.architecture() == arch


def test_networks_of_other_operations_have_no_architecture() -> None:
    network: Any = extract(NASBench201(width=4, cells=2), nasbench201_cell.space().smallest())
    network.layers[0].edges["op_01"] = nn.Identity()
    with pytest.raises(ValueError, match="2 different cells"):
        network.architecture()
    for cell in network.layers:
        if isinstance(cell, Cell):
            cell.edges["op_01"] = nn.MaxPool2d(3)
    with pytest.raises(ValueError, match=r"MaxPool2d.* is no operation of NAS-Bench-201"):
        network.architecture()
    macro: Any = NASBenchMacro(width=4)
    macro.layers[1] = nn.Conv2d(8, 8, 1)
    with pytest.raises(ValueError, match="is no operation of NAS-Bench-Macro"):
        macro.architecture()


# ---- published costs ----------------------------------------------------------------------------------------


def sample(name: str, count: int) -> list[Architecture]:
    space, rng = load(name).space, random.Random(0)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


def test_parameters_and_flops_of_nasbench201_are_the_published_ones() -> None:
    table, ghost = load("nasbench201"), CASES[0].ghost()
    for arch in sample("nasbench201", 6):
        network = extract(ghost, arch)
        workload = trace(network, torch.empty(1, 3, 32, 32))
        assert sum(p.numel() for p in network.parameters()) == round(1e6 * table.values("params_m", [arch])[0])
        assert published_flops(workload) == round(1e6 * table.values("flops_m", [arch])[0])


def test_parameters_and_flops_of_macro_are_the_published_ones() -> None:
    table, ghost = load("nasbench_macro"), CASES[1].ghost()
    for arch in sample("nasbench_macro", 6):
        workload = trace(extract(ghost, arch), torch.empty(1, 3, 32, 32))
        assert parameters(workload) == round(1e6 * table.values("params_m", [arch])[0])
        assert macs(workload) == round(1e6 * table.values("flops_m", [arch])[0])


# ---- the cell -----------------------------------------------------------------------------------------------


def test_a_zero_is_the_same_left_out() -> None:
    torch.manual_seed(0)
    network: Any = extract(
        NASBench201(width=4, cells=1).eval(),
        nasbench201_cell.from_string("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"),
    )
    x = torch.randn(2, 3, 8, 8)
    cell = next(module for module in network.layers if isinstance(module, Cell))
    inner = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        edges = cell.edges
        one = edges["op_01"](inner)
        two = edges["op_02"](inner) + edges["op_12"](one)
        three = edges["op_03"](inner) + edges["op_13"](one) + edges["op_23"](two)
        assert torch.equal(cell(inner), three)
        assert network(x).shape == (2, 10)
    assert isinstance(edges["op_02"], Zero) and not edges["op_02"](inner).any()
    assert not any(op.kind == "mul" for op in trace(network, x))


def test_the_choices_are_shared_by_all_cells() -> None:
    network = NASBench201(width=4)
    choices = {id(module.choice) for module in network.modules() if isinstance(module, OneOf)}
    assert len(choices) == 6 and sum(isinstance(module, Cell) for module in network.modules()) == 15


@pytest.mark.parametrize(("build", "side"), [(NASBench201, 3), (NASBenchMacro, 7)])
def test_images_that_are_too_small(build: Any, side: int) -> None:
    with pytest.raises(ValueError, match=f"images of {side}x40 do not fit {build.__name__}"):
        build(size=(side, 40))
    build(classes=2, channels=1, size=(side + 1, 40), width=4)
