# SPDX-License-Identifier: Apache-2.0
"""Every network of `sartor.spaces` against the space contract. To add a space, add one case."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import sartor.nn as elastic
from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.spaces.mobilenet import InvertedResidual, MobileNet
from sartor.supernet import activated, extract, search_space

torch.set_num_threads(1)

CASES = [
    SpaceCase("mobilenet-8-grey", partial(MobileNet, 10, 1, (8, 8)), (2, 1, 8, 8)),
    SpaceCase("mobilenet-28-grey", partial(MobileNet, 10, 1, (28, 28)), (2, 1, 28, 28)),
    SpaceCase("mobilenet-32-colour", partial(MobileNet, 10, 3, (32, 32)), (2, 3, 32, 32)),
    SpaceCase("mobilenet-20x28-grey", partial(MobileNet, 4, 1, (20, 28)), (2, 1, 20, 28)),
    SpaceCase("mobilenet-224-colour", partial(MobileNet, 1000, 3, (224, 224)), (1, 3, 224, 224)),
]
SMALL = CASES[:-1]  # those that run in milliseconds

every_space = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_small_space = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


def write_golden() -> None:
    law.GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        law.write(case)


@every_space
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_space
def test_searching_stays_in_the_space(case: SpaceCase) -> None:
    law.searching_stays_in_the_space(case)


@every_small_space
def test_equal_networks_are_equal_keys(case: SpaceCase) -> None:
    law.equal_networks_are_equal_keys(case)


@every_small_space
def test_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float32)


@every_small_space
def test_extraction_equals_activation_in_float64(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float64, count=5)


@pytest.mark.slow
def test_large_extraction_equals_activation() -> None:
    law.extraction_equals_activation(CASES[-1], torch.float32, count=30)


@every_small_space
def test_one_hot_equals_hard(case: SpaceCase) -> None:
    law.one_hot_equals_hard(case)


@pytest.mark.parametrize("case", [SMALL[0], SMALL[1]], ids=lambda case: case.name)
def test_gradients_reach_every_choice(case: SpaceCase) -> None:
    law.gradients_reach_every_choice(case)


@every_small_space
def test_meta_build_takes_no_memory(case: SpaceCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_small_space
def test_copies_are_independent(case: SpaceCase) -> None:
    law.copies_are_independent(case)


@pytest.mark.parametrize("case", [SMALL[0], SMALL[3]], ids=lambda case: case.name)
def test_exports(case: SpaceCase) -> None:
    law.exports(case)


# ---- MobileNet's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (15, 16), (28, 28), (30, 21), (33, 33), (48, 64), (57, 31)])
def test_odd_sizes_halve_upwards(size: tuple[int, int]) -> None:
    network = MobileNet(5, 2, size).eval()
    height, width = size
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        assert network(x).shape == (1, 5)
        x = network.stem_conv(x)
        stem = network.stem_conv.stride[0]
        height, width = -(-height // stem), -(-width // stem)
        assert x.shape[2:] == (height, width)
        for stage in network.stages:
            blocks: Any = stage
            step = blocks[0].depth_conv.stride[0]
            height, width = -(-height // step), -(-width // step)
            x = blocks(x)
            assert x.shape[2:] == (height, width)
    assert min(height, width) <= 8


def test_28_pixels_become_14_7_and_4() -> None:
    network, sides = MobileNet(10, 1, (28, 28)).eval(), []
    x = network.stem_conv(torch.randn(1, 1, 28, 28))
    for stage in network.stages:
        sides.append(x.shape[-1])
        x = stage(x)
    assert [*sides, x.shape[-1]] == [14, 14, 7, 4]


@pytest.mark.parametrize("size", [(7, 8), (8, 225), (0, 0), (300, 300)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"images of {size[0]}x{size[1]} do not fit MobileNet.*8 to 224 pixels a side"):
        MobileNet(10, 3, size)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 64)])
def test_every_block_starts_as_its_skip(size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        network = MobileNet(10, 1, size).eval()
    rng = random.Random(0)
    arch = search_space(network).sample(rng)
    small: Any = extract(network, arch)
    small.reset_parameters()
    for model in (network, small):
        blocks = [module for module in model.modules() if isinstance(module, InvertedResidual)]
        assert blocks
        with activated(network, arch), torch.no_grad():
            for block in blocks:
                assert block.expand_conv is not None and block.skip is not None
                channels = block.expand_conv.in_channels
                x = torch.randn(2, int(channels), 6, 6)
                assert torch.equal(block(x), block.skip(x))


def test_initial_weights_keep_the_variance_by_fan_out() -> None:
    torch.manual_seed(0)
    network = MobileNet(10, 1, (64, 64))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 200:
            taps, filters = module.weight[0, 0].numel(), module.weight.shape[0] // int(module.groups)
            spread = float(module.weight.detach().std()) / (2.0 / (taps * filters)) ** 0.5
            assert 0.8 < spread < 1.25, name


def test_resolutions_are_for_square_images_that_can_shrink() -> None:
    assert search_space(MobileNet(10, 3, (224, 224))).choices["resolution"] == (160, 192, 224)
    assert search_space(MobileNet(10, 1, (28, 28))).choices["resolution"] == (20, 24, 28)
    for size in ((8, 8), (23, 23), (28, 32)):
        assert "resolution" not in search_space(MobileNet(10, 1, size)).choices
    small: Any = extract(MobileNet(10, 1, (28, 28)), {"resolution": 20})
    assert elastic.resized(torch.zeros(1, 1, 28, 28), small).shape[2:] == (20, 20)


def test_dropout_is_the_users() -> None:
    assert MobileNet(10, 1, (8, 8), dropout=0.5).dropout.p == 0.5
