# SPDX-License-Identifier: Apache-2.0
"""AutoFormer: the space contract, its published sizes, and what its attention promises."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.spaces.autoformer import FORMS, AutoFormer, RelativePositions
from sartor.supernet import extract, search_space
from sartor.workload import parameters, trace

torch.set_num_threads(1)

TINY = SpaceCase("autoformer-224-colour", AutoFormer, (1, 3, 224, 224))
DIGITS = SpaceCase("autoformer-8-grey", partial(AutoFormer, 10, 1, (8, 8)), (2, 1, 8, 8))
SMALL = SpaceCase("autoformer-28-grey", partial(AutoFormer, 10, 1, (28, 28)), (2, 1, 28, 28))
every = pytest.mark.parametrize("case", [TINY, DIGITS, SMALL], ids=lambda case: case.name)
every_small = pytest.mark.parametrize("case", [DIGITS, SMALL], ids=lambda case: case.name)


def write_golden() -> None:
    for case in (TINY, DIGITS, SMALL):
        law.write(case)


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_small
@pytest.mark.parametrize("holds", law.LAWS, ids=lambda holds: holds.__name__)
def test_laws(case: SpaceCase, holds: Callable[[SpaceCase], None]) -> None:
    holds(case)


def test_searching_stays_in_the_published_space() -> None:
    law.searching_stays_in_the_space(TINY)


@pytest.mark.parametrize(
    ("form", "embed", "depth", "heads", "millions"),
    [("tiny", 192, 13, 3, 5.7), ("small", 384, 13, 6, 22.9), ("base", 576, 14, 9, 54.0)],
)
def test_the_published_winners_have_about_their_size(
    form: str, embed: int, depth: int, heads: int, millions: float
) -> None:
    """The width and depth of the published networks, with middling blocks; theirs differ from block to block."""
    with torch.device("meta"):
        ghost = AutoFormer(form=form)
    space = search_space(ghost)
    values = {name: heads if name.endswith("heads") else 3.5 for name in space.choices}
    arch = space.canonical({**values, "embed": embed, "blocks.depth": depth})
    found = parameters(trace(extract(ghost, arch), torch.empty(1, 3, 224, 224))) / 1e6
    assert found == pytest.approx(millions, rel=0.1)


def test_a_wider_block_holds_the_weights_of_a_narrow_one() -> None:
    """Weight entanglement: what is trained in a narrow block is trained in a wide one."""
    network = DIGITS.network()
    space = search_space(network)
    narrow: Any = extract(network, space.smallest())
    wide: Any = extract(network, space.largest())
    for name, tensor in narrow.blocks[0].named_parameters():
        whole = dict(wide.blocks[0].named_parameters())[name]
        assert torch.equal(tensor, whole[tuple(slice(0, length) for length in tensor.shape)]), name


def test_counts_rise_with_every_choice() -> None:
    ghost, rng = DIGITS.ghost(), random.Random(0)
    space = search_space(ghost)
    for name, options in space.choices.items():
        base = {**space.sample(rng), "blocks.depth": 4}
        archs = [space.canonical({**base, name: option}) for option in sorted(options, key=str)]
        sizes = [parameters(trace(extract(ghost, arch), torch.empty(1, 1, 8, 8))) for arch in archs]
        assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes), name


def test_positions_know_only_how_far_apart_they_are() -> None:
    positions = RelativePositions(4, (3, 5))
    table = positions()
    assert table.shape == (16, 16, 4)
    assert torch.equal(table[1, 3], table[2, 4]) and torch.equal(table[1, 6], table[6, 11])
    assert not torch.equal(table[1, 2], table[2, 1])
    assert all(torch.equal(table[0, i], table[0, 0]) for i in range(16)), "the first position lies nowhere"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"form 'huge' is unknown: give one of tiny, small, base, digits"):
        AutoFormer(form="huge")
    with pytest.raises(ValueError, match=r"images of 200x224 do not divide into patches of 16 pixels"):
        AutoFormer(size=(200, 224))
    assert set(FORMS) == {"tiny", "small", "base", "digits"}
