# SPDX-License-Identifier: Apache-2.0
"""Mixed-kernel inverted residuals: the space contract, and what a block computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from contracts import space_contract as law
from contracts.layer_contract import distance
from contracts.space_contract import SpaceCase
from sartor.nn.channels import channels_of
from sartor.spaces.mixed_kernels import KERNELS, SUBSETS, Group, MixedKernels, MixedResidual
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)

TINY = SpaceCase("mixed_kernels-8-grey", partial(MixedKernels, 10, 1, (8, 8)), (2, 1, 8, 8))
CASES = [
    SpaceCase("mixed_kernels-224-colour", MixedKernels, (1, 3, 224, 224)),
    SpaceCase("mixed_kernels-28-grey", partial(MixedKernels, 10, 1, (28, 28)), (2, 1, 28, 28)),
    TINY,
]


def write_golden() -> None:
    for case in CASES:
        law.write(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


def test_searching_stays_in_the_space() -> None:
    law.searching_stays_in_the_space(TINY)


def test_equal_networks_are_equal_keys() -> None:
    law.equal_networks_are_equal_keys(TINY)


def test_extraction_equals_activation() -> None:
    law.extraction_equals_activation(TINY, torch.float64, count=5)


def test_one_hot_equals_hard() -> None:
    law.one_hot_equals_hard(TINY)


def test_gradients_reach_every_choice() -> None:
    law.gradients_reach_every_choice(TINY)


def test_meta_build_takes_no_memory() -> None:
    law.meta_build_takes_no_memory(TINY)


def test_copies_are_independent() -> None:
    law.copies_are_independent(TINY)


def test_exports() -> None:
    law.exports(TINY)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 7x9 do not fit MixedKernels: give 8 to 224 pixels a side"):
        MixedKernels(10, 1, (7, 9))


def test_a_block_is_one_convolution_over_the_channels_of_all_groups() -> None:
    torch.manual_seed(0)
    block = MixedResidual(4, 4, 1, "b").eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad(), activated(block, {"b.kernels": (3, 7), "b.k7.width": 4}):
        found = block(x)
        hidden, groups = [], [group for group in block.groups.values() if isinstance(group, Group)]
        for group, width in ((groups[0], 8), (groups[2], 4)):
            y = F.relu(group.expand_norm(group.expand_conv(x)))
            hidden.append(F.relu(group.depth_norm(group.depth_conv(y))))
            assert hidden[-1].shape[1] == width
        weights = [groups[0].project_conv.weight, groups[2].project_conv.weight[:, :4]]
        expected = x + block.norm(F.conv2d(torch.cat(hidden, 1), torch.cat(weights, 1)))
    assert distance(found, expected) <= 1e-5


def test_a_block_can_do_without_groups() -> None:
    block = MixedResidual(4, 4, 1, "b").eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad(), activated(block, {"b.kernels": ()}):
        assert torch.equal(block(x), x)
        assert torch.equal(extract(block, {})(x), x)
        assert not list(extract(block, {}).parameters())


def test_the_widest_block_expands_sixfold() -> None:
    net = MixedKernels(10, 1, (8, 8))
    space = search_space(net)
    block: Any = extract(net, space.largest()).get_submodule("stages.1.0")
    assert sum(group.width for group in block.groups.values()) == 6 * 8
    assert space.size == ((1 + len(KERNELS) * 4 + 3 * 16 + 64) ** 5) and len(SUBSETS) == 8


def test_every_group_names_its_channels() -> None:
    net = MixedKernels(10, 1, (8, 8))
    found = channels_of(extract(net, search_space(net).largest()))
    assert len(found) == 15 and all(len(one) == one.holder.width for one in found.values())
    assert {name.rsplit(".", 1)[1] for name in named_choices(net)} == {"kernels", "width"}
