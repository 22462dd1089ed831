# SPDX-License-Identifier: Apache-2.0
"""Mixed-kernel inverted residuals: the space contract, and what a block computes."""

from __future__ import annotations

from collections.abc import Callable
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

CASES = law.of_sizes("mixed_kernels", MixedKernels)
TINY = CASES[-1]


def write_golden() -> None:
    for case in CASES:
        law.write(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@pytest.mark.parametrize("holds", law.LAWS, ids=lambda holds: holds.__name__)
def test_laws(holds: Callable[[SpaceCase], None]) -> None:
    holds(TINY)


def test_other_sizes_are_refused() -> None:
    law.other_sizes_are_refused(MixedKernels)


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
