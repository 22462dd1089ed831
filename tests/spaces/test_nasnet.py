# SPDX-License-Identifier: Apache-2.0
"""NASNet's cells: the space contract, how many cells there are, shapes, and scheduled drop-path."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import Any

import pytest
import torch

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.spaces.cell_operations import DropPath
from sartor.spaces.nasnet import NASNET_OPERATIONS, NASNet
from sartor.supernet import activated, extract, search_space
from sartor.workload import trace

torch.set_num_threads(1)

FEW = {name: NASNET_OPERATIONS[name] for name in ("identity", "conv_1x3_3x1", "max_pool_5x5", "dil_conv_3x3")}
CASE = SpaceCase("nasnet", partial(NASNet, repeats=2), (2, 3, 32, 32))
SMALL = SpaceCase("nasnet", partial(NASNet, 4, 1, (9, 8), width=2, repeats=1, blocks=3, operations=FEW), (4, 1, 9, 8))


def write_golden() -> None:
    law.write(CASE)


def ghost(**arguments: Any) -> NASNet:
    with torch.device("meta"):
        return NASNet(**arguments)


def test_names_are_golden() -> None:
    law.names_are_golden(CASE)


def test_searching_stays_in_the_space() -> None:
    law.searching_stays_in_the_space(SMALL)


def test_equal_networks_are_equal_keys() -> None:
    """But for the order of a block's two halves, and for how a block ends that is read by none and adds one state."""
    space = search_space(SMALL.ghost())
    assert not space.gates  # every choice always matters


def test_extraction_equals_activation() -> None:
    law.extraction_equals_activation(SMALL, torch.float64, count=6)


def test_one_hot_equals_hard() -> None:
    law.one_hot_equals_hard(SMALL)


def test_gradients_reach_every_choice() -> None:
    law.gradients_reach_every_choice(SMALL)


def test_meta_build_takes_no_memory() -> None:
    law.meta_build_takes_no_memory(SMALL)


def test_copies_are_independent() -> None:
    law.copies_are_independent(SMALL)


def test_exports() -> None:
    law.exports(SMALL)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_number_of_cells_is_that_of_the_formula(blocks: int) -> None:
    """A block of p states and k operations has (pk)^2 ordered pairs of halves, pk (pk + 1) / 2 unordered, two ends."""
    few = {name: NASNET_OPERATIONS[name] for name in ("identity", "conv_1x1")}
    space = search_space(ghost(repeats=1, blocks=blocks, operations=few, width=2))
    ordered = unordered = 1
    for block in range(blocks):
        halves = (2 + block) * len(few)
        ordered *= 2 * halves**2
        unordered *= halves * (halves + 1)
    assert space.size == ordered**2
    names = [name for name in space.choices if name.startswith("normal")]
    cells = set()
    for options in itertools.product(*(space.choices[name] for name in names)):
        cell = dict(zip(names, options, strict=True))
        cells.add(
            tuple(
                (
                    frozenset({(cell[f"normal_input_{b}{s}"], cell[f"normal_op_{b}{s}"]) for s in "ab"}),
                    cell[f"normal_combine_{b}"],
                )
                for b in range(blocks)
            )
        )
    assert len(cells) == unordered


def drawn_networks_build(count: int) -> None:
    net = ghost(classes=7, repeats=1, width=4)
    space, rng = search_space(net), random.Random(0)
    for _ in range(count):
        small: Any = extract(net, space.sample(rng))
        x = torch.empty(2, 3, 32, 32, device="meta")
        assert small(x).shape == (2, 7)
        before = last = small.stem(x)
        for cell, side in zip(small.cells, (32, 16, 16, 8, 8), strict=True):
            before, last = last, cell(before, last)
            assert last.shape == (2, len(cell.output), side, side)


def test_drawn_networks_build() -> None:
    drawn_networks_build(4)


@pytest.mark.slow
def test_a_thousand_drawn_networks_build() -> None:
    drawn_networks_build(1000)


def test_a_cell_gives_out_what_no_block_reads() -> None:
    net = ghost(repeats=1, blocks=3, width=4, operations=FEW)
    arch = dict(search_space(net).smallest())
    arch |= {f"{kind}_combine_{b}": "add" for kind in ("normal", "reduce") for b in range(3)}
    arch |= {"normal_input_1a": "block_0", "normal_input_2b": "last", "normal_combine_2": "concat"}
    extracted: Any = extract(net, arch)
    cell: Any = extracted.cells[0]
    assert cell.output == (*range(8, 12), *range(16, 24))  # block 1 adds, block 2 concatenates, block 0 is read
    with activated(net, arch):
        assert net.cells[0].output.value == cell.output  # type: ignore[union-attr]


def test_a_concatenation_that_is_read_is_narrowed() -> None:
    net = ghost(repeats=1, blocks=2, width=4, operations=FEW)
    arch = dict(search_space(net).smallest()) | {"normal_input_1a": "block_0", "normal_combine_0": "concat"}
    kinds = [op.kind for op in trace(extract(net, arch), torch.empty(1, 3, 32, 32))]
    added = [op.kind for op in trace(extract(net, {**arch, "normal_combine_0": "add"}), torch.empty(1, 3, 32, 32))]
    assert kinds.count("conv") == added.count("conv") + 3  # one for each normal cell


def test_drop_path_grows_with_training_and_depth() -> None:
    net = ghost(repeats=1, blocks=2, width=2, operations=FEW, drop_path=0.4)
    small: Any = extract(net, search_space(net).smallest())  # identities, which are dropped, too
    cells = [{path.final for path in cell.modules() if isinstance(path, DropPath)} for cell in small.cells]
    assert [min(one) for one in cells] == pytest.approx([0.4 * (i + 1) / 5 for i in range(5)])
    assert all(len(one) == 1 for one in cells)
    for share, probability in ((0.0, 0.0), (0.5, 0.2), (1.0, 0.4)):
        small.progress(share)
        last = [path.probability for path in small.cells[-1].modules() if isinstance(path, DropPath)]
        assert len(last) == 4 and set(last) == {probability}


def test_images_must_be_halved_twice() -> None:
    with pytest.raises(ValueError, match="at least 4 pixels"):
        ghost(size=(3, 32))
    with pytest.raises(ValueError, match="at least 1 block"):
        ghost(blocks=0)
