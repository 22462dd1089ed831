# SPDX-License-Identifier: Apache-2.0
"""DARTS's cell network: the space contract, its counts, both forms, published cells, and what training needs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.architecture import Architecture
from sartor.choice import Kept
from sartor.nn import OneOf
from sartor.spaces.cell_operations import OPERATIONS, DropPath, FactorizedReduce, Pool
from sartor.spaces.darts import DartsNetwork, from_genotype, to_genotype
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import parameters, trace

torch.set_num_threads(1)

Small = partial(DartsNetwork, 4, 1, (9, 9), width=2, cells=3)
CASES = [
    SpaceCase("darts", DartsNetwork, (2, 3, 32, 32)),
    SpaceCase("darts-evaluation", partial(DartsNetwork, form="evaluation", cells=20, width=36), (2, 3, 32, 32)),
]
SMALL = [
    SpaceCase("darts", Small, (4, 1, 9, 9)),
    SpaceCase("darts-evaluation", partial(Small, form="evaluation", drop_path=0.2), (4, 1, 9, 9)),
]
every_space = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_small_space = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)

DARTS_V2 = """Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1),
            ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
            ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=range(2, 6))"""


def write_golden() -> None:
    for case in CASES:
        law.write(case)


def ghost(**arguments: Any) -> DartsNetwork:
    with torch.device("meta"):
        return DartsNetwork(**arguments)


@every_space
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_small_space
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


def test_equal_networks_are_equal_keys() -> None:
    law.equal_networks_are_equal_keys(SMALL[0])


@every_small_space
def test_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float64, count=5)


@every_small_space
def test_one_hot_equals_hard(case: SpaceCase) -> None:
    law.one_hot_equals_hard(case)


def test_gradients_reach_every_choice() -> None:
    law.gradients_reach_every_choice(SMALL[0])


@every_small_space
def test_meta_build_takes_no_memory(case: SpaceCase) -> None:
    law.meta_build_takes_no_memory(case)


def test_copies_are_independent() -> None:
    law.copies_are_independent(SMALL[0])


def test_exports() -> None:
    law.exports(SMALL[1])


# ---- counts and names ----------------------------------------------------------------------------------------


def test_the_space_has_the_published_number_of_cells() -> None:
    """Pairs of inputs for four nodes, and an operation on each of eight edges, in each of two cells."""
    assert search_space(ghost()).size == (180 * 8**8) ** 2
    without = {name: make for name, make in OPERATIONS.items() if name != "none"}
    assert search_space(ghost(operations=without)).size == (180 * 7**8) ** 2


def test_both_forms_have_the_same_choices() -> None:
    assert search_space(ghost()) == search_space(ghost(form="evaluation", cells=20, width=36))


def test_edges_may_have_fewer_operations() -> None:
    space = search_space(ghost(edges={"normal_op_02": ("skip_connect", "sep_conv_3x3")}))
    assert space.choices["normal_op_02"] == ("skip_connect", "sep_conv_3x3")
    assert len(space.choices["normal_op_12"]) == 8
    with pytest.raises(ValueError, match="no edge is named 'normal_op_20'"):
        ghost(edges={"normal_op_20": ("none",)})
    with pytest.raises(ValueError, match="normal_op_02 is to choose 'conv_9x9': the operations are none"):
        ghost(edges={"normal_op_02": ("conv_9x9",)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "final"}, "the form is 'final'"),
        ({"size": (3, 8)}, "at least 4 pixels"),
        ({"size": (7, 8), "auxiliary": True}, "at least 8 pixels"),
        ({"cells": 2}, "at least 3"),
    ],
)
def test_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ghost(**arguments)


# ---- published facts -----------------------------------------------------------------------------------------


def test_parameters_are_those_published() -> None:
    """3.3 million at 20 cells and 36 channels, without the auxiliary head."""
    big = ghost(form="evaluation", cells=20, width=36, drop_path=0.2)
    small = extract(big, from_genotype(DARTS_V2, search_space(big)))
    count = parameters(trace(small, torch.empty(1, 3, 32, 32)))
    assert count == sum(p.numel() for p in small.parameters())
    assert abs(count - 3.3e6) < 0.05e6


def test_genotypes_are_read_and_written() -> None:
    space = search_space(ghost())
    arch = from_genotype(DARTS_V2, space)
    assert arch["normal_inputs_5"] == (0, 2) and arch["normal_op_25"] == "dil_conv_3x3"
    assert arch["reduce_inputs_3"] == (1, 2) and arch["reduce_op_13"] == "max_pool_3x3"
    assert arch in space
    for seed in range(20):
        arch = space.sample(random.Random(seed))
        assert from_genotype(to_genotype(arch), space) == arch


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Genotype", "__import__('os').system", "needs|is no genotype|no option|normal"),
        ("[2, 3, 4, 5]", "[4, 5]", "normal_concat is"),
        ("('sep_conv_3x3', 0), ", "", "give 8 pairs"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)", "reads one source twice"),
        ("dil_conv_3x3", "conv_9x9", "is no option of 'normal_op_25'"),
        ("range(2, 6)", "open('x')", "is no genotype"),
        ("normal=", "normal=[", "is no genotype"),
    ],
)
def test_genotypes_that_cannot_be_read(old: str, new: str, message: str) -> None:
    space = search_space(ghost())
    if "system" in new:  # only the keywords are read, and nothing is called
        assert from_genotype(DARTS_V2.replace(old, new), space) == from_genotype(DARTS_V2, space)
        return
    with pytest.raises(ValueError, match=message):
        from_genotype(DARTS_V2.replace(old, new), space)


def test_reduction_cells_are_at_one_and_two_thirds() -> None:
    for cells, places in ((8, [2, 5]), (20, [6, 13])):
        net: Any = ghost(cells=cells)
        assert [i for i, cell in enumerate(net.cells) if "reduce" in str(cell.nodes[0].kept.name)] == places
    assert ghost().classifier.in_features == 4 * 64


def test_the_search_form_has_no_scales_and_normalised_pools() -> None:
    search, evaluation = ghost(), ghost(form="evaluation")
    assert not any(norm.affine for norm in search.cells.modules() if isinstance(norm, nn.BatchNorm2d))
    assert all(norm.affine for norm in evaluation.cells.modules() if isinstance(norm, nn.BatchNorm2d))
    assert {len(pool) for pool in search.modules() if isinstance(pool, Pool)} == {2}
    assert {len(pool) for pool in evaluation.modules() if isinstance(pool, Pool)} == {1}


def test_none_removed_leaves_the_function() -> None:
    """An edge of "none" adds nothing: the node is that of its other edge."""
    net = SMALL[0].network(torch.float64).eval()
    x, arch = SMALL[0].inputs(torch.float64), search_space(net).sample(random.Random(1))
    nothing = arch.replace({name: "none" for name in arch if "_op_0" in name})
    edges = {name: Kept(torch.tensor([0.0, 1.0])) for name in ("normal_inputs_2", "reduce_inputs_2")}
    with torch.no_grad():
        with activated(net, nothing):
            expected = net(x)
        with activated(net, {**nothing, **edges}):
            torch.testing.assert_close(net(x), expected)


# ---- training ------------------------------------------------------------------------------------------------


def test_the_auxiliary_head_reads_the_second_reduction() -> None:
    for size in ((8, 8), (28, 28), (32, 32), (33, 41)):
        net = DartsNetwork(5, 1, size, width=2, cells=3, form="evaluation", auxiliary=True).eval()
        arch = search_space(net).smallest()
        small: Any = extract(net, arch)
        x = torch.randn(2, 1, *size)
        with torch.no_grad(), activated(net, arch):
            logits, auxiliary = small.with_auxiliary(x)
            assert auxiliary.shape == (2, 5)
            torch.testing.assert_close(small(x), logits)
            torch.testing.assert_close(net.with_auxiliary(x)[1], auxiliary)
    with pytest.raises(ValueError, match="auxiliary=True"):
        Small().with_auxiliary(torch.zeros(1, 1, 9, 9))


def test_drop_path_spares_identities_and_follows_progress() -> None:
    big: Any = ghost(form="evaluation", drop_path=0.2)
    for cell in big.cells:
        for mixed in (one for one in cell.modules() if isinstance(one, OneOf)):
            operations: Mapping[str, Any] = dict(mixed.items())
            for name, operation in operations.items():
                spared = isinstance(operation, nn.Identity)
                assert spared or isinstance(operation[1], DropPath)
                assert not spared or name == "skip_connect"
                assert name != "skip_connect" or spared or isinstance(operation[0], FactorizedReduce)
    small: Any = extract(big, from_genotype(DARTS_V2, search_space(big)))
    paths = [module for module in small.modules() if isinstance(module, DropPath)]
    assert paths and {path.probability for path in paths} == {0.0}
    small.progress(0.5)
    assert {path.probability for path in paths} == {0.1}
    with pytest.raises(ValueError, match="from 0 to 1"):
        small.progress(600.0)


def test_a_mixed_operation_of_ones_own() -> None:
    class Half(nn.Module):
        """Half of the channels through the operations, as PC-DARTS does."""

        def __init__(self, make: Any, width: int, stride: int) -> None:
            super().__init__()
            self.mixed, self.stride = OneOf(make(width // 2)), stride

        @property
        def choice(self) -> Any:
            return self.mixed.choice

        @choice.setter
        def choice(self, choice: Any) -> None:
            self.mixed.choice = choice

        def forward(self, x: Tensor) -> Tensor:
            a, b = x.chunk(2, 1)
            b = b if self.stride == 1 else nn.functional.max_pool2d(b, 2, ceil_mode=True)
            return torch.cat((self.mixed(a), b), 1)

    net = DartsNetwork(4, 1, (8, 8), width=4, cells=3, mixed=Half)
    assert list(named_choices(net)) == list(named_choices(DartsNetwork(4, 1, (8, 8), width=2, cells=3)))
    arch: Architecture = search_space(net).sample(random.Random(0))
    with activated(net, arch):
        assert net(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    uniform = {name: torch.full((8,), 1 / 8) for name in arch if "_op_" in name}
    kept = {name: Kept(torch.ones(choice.extent)) for name, choice in named_choices(net).items() if "inputs" in name}
    with activated(net, {**uniform, **kept}):
        net(torch.randn(2, 1, 8, 8)).sum().backward()
