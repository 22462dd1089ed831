# SPDX-License-Identifier: Apache-2.0
"""The chain with bypass: the space contract, and depth by width."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.spaces.bypass_chain import STEM, BypassChain
from sartor.supernet import extract, search_space

torch.set_num_threads(1)

SMALL = SpaceCase("bypass_chain-8-grey", partial(BypassChain, 10, 1, (8, 8)), (2, 1, 8, 8))
LARGE = SpaceCase("bypass_chain-28-colour", partial(BypassChain, 10, 3, (28, 28)), (2, 3, 28, 28))
every = pytest.mark.parametrize("case", [SMALL, LARGE], ids=lambda case: case.name)


def write_golden() -> None:
    for case in (SMALL, LARGE):
        law.write(case)


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


def test_contract() -> None:
    law.equal_networks_are_equal_keys(SMALL)
    law.extraction_equals_activation(SMALL, torch.float64, count=10)
    law.one_hot_equals_hard(SMALL)


def test_without_filters_nothing_but_pools_is_left() -> None:
    """The smallest network is the stem, two pools and the classifier."""
    net = BypassChain(10)
    small = extract(net, search_space(net).smallest())
    assert sum(p.numel() for p in small.parameters()) == STEM * 9 + 2 * STEM + 10 * STEM + 10
    assert search_space(net).size == (1 + 3 * 2) ** 6


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="images of 64x64 do not fit BypassChain: give 8 to 32"):
        BypassChain(10, 3, (64, 64))
