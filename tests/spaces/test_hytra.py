# SPDX-License-Identifier: Apache-2.0
"""HyTra: the space contract, legal paths, hand-made counts, and what its containers promise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from contracts import space_contract as law
from contracts.space_contract import SpaceCase
from sartor.spaces.hytra import Attention, Body, HyTra, Residual
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import macs, parameters, trace

torch.set_num_threads(1)

FULL, SMALL, TINY = law.of_sizes("hytra", HyTra)
every = pytest.mark.parametrize("case", [FULL, SMALL, TINY], ids=lambda case: case.name)
every_small = pytest.mark.parametrize("case", [SMALL, TINY], ids=lambda case: case.name)


def write_golden() -> None:
    for case in (FULL, SMALL, TINY):
        law.write(case)


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_small
@pytest.mark.parametrize("holds", law.LAWS, ids=lambda holds: holds.__name__)
def test_laws(case: SpaceCase, holds: Callable[[SpaceCase], None]) -> None:
    holds(case)


def test_searching_stays_in_the_published_space() -> None:
    law.searching_stays_in_the_space(FULL)


def test_other_sizes_are_refused() -> None:
    law.other_sizes_are_refused(HyTra)


# ---- the published space ------------------------------------------------------------------------------------------


def test_it_has_16_layers_in_4_blocks_and_attention_at_7_and_14_alone() -> None:
    network: Any = FULL.ghost()
    assert [len(list(block.children())) for block in network.blocks] == [4, 4, 4, 4]
    options = {option for choice in named_choices(network).values() for option in choice.options}
    assert options == {"conv_4", "conv_8", "conv_16", "conv_32", "attention_16", "attention_32"}
    outputs = {name: body[-1].num_features for name, body in _bodies(network.blocks[0])}
    assert outputs["3.conv_4.body"] == 256 and outputs["3.conv_8.body"] == 512
    assert outputs["3.conv_16.body"] == 1024 and outputs["3.attention_32.body"] == 2048


def _bodies(block: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in block.named_modules() if isinstance(module, Body)]


def legal(entering: int, scales: int, layers: int) -> int:
    """Count the paths of one block by hand: no step up, one step down at most; two operations on the smaller two."""
    count = 0
    for path in itertools.product(range(scales), repeat=layers):
        steps = zip((entering, *path), path, strict=False)
        if all(before - after in (0, 1) for before, after in steps):
            count += 2 ** sum(scale < 2 for scale in path)
    return count


def test_a_block_has_as_many_paths_as_were_published() -> None:
    assert [legal(entering, 4, 4) for entering in (3, 2, 1, 0)] == [51, 99, 80, 16]
    space = search_space(FULL.ghost())
    ends = [name for name in space.choices if name.startswith("blocks.0.")]
    block = space.restrict({name: options[:1] for name, options in space.choices.items() if name not in ends})
    assert block.size == legal(3, 4, 4)


def test_the_size_of_the_space_is_that_of_all_legal_sequences() -> None:
    ways = {3: 1}  # scale of the map -> sequences that lead there
    for layer in range(16):
        largest = max(1, 3 - layer // 4)
        after: dict[int, int] = {}
        for scale, count in ways.items():
            for reached in {scale, scale - 1} & set(range(largest + 1)):
                after[reached] = after.get(reached, 0) + count * (2 if reached < 2 else 1)
        ways = after
    assert search_space(FULL.ghost()).size == sum(ways.values())


@every_small
def test_every_sample_shrinks_one_step_at_a_time_and_ends_on_the_smallest_map(case: SpaceCase) -> None:
    network: Any = case.ghost()
    space, rng = search_space(network), random.Random(0)
    for _ in range(30):
        arch = space.sample(rng)
        active = [name for name in space.choices if space.is_active(name, arch)]
        strides = [int(str(arch[name]).rpartition("_")[2]) for name in sorted(active, key=_place)]
        assert all(after in (before, 2 * before) for before, after in itertools.pairwise(strides))
        with activated(network, arch):
            assert network.blocks[-1].stride == strides[-1]
    small: Any = extract(network, space.smallest())
    assert isinstance(small.tail, nn.Identity)


def _place(name: str) -> tuple[int, int]:
    _, b, j, _ = name.split(".")
    return int(b), int(j)


def test_a_convolution_has_the_counts_of_its_parts() -> None:
    """At stride 4, from 256 channels: 1x1 to 64, depthwise 3x3 with bias, 3x3, 1x1, and four norms."""
    network: Any = FULL.ghost()
    layer = network.blocks[0].get_submodule("1.conv_4").residual(4)
    workload = trace(layer, torch.empty(1, 256, 56, 56))
    assert parameters(workload) == 256 * 64 + (9 * 64 + 64) + 9 * 64 * 64 + 64 * 256 + 2 * (64 + 64 + 256)
    assert macs(workload) == 56 * 56 * (256 * 64 + 9 * 64 + 9 * 64 * 64 + 64 * 256)


def test_attention_has_the_counts_of_its_parts() -> None:
    """At stride 32, from 1024 channels at stride 16: 3x3 shortcut, 1x1 to 512, depthwise, qkv, 49 x 49 twice, 1x1."""
    network: Any = FULL.ghost()
    layer = network.blocks[3].get_submodule("0.attention_32").residual(16)
    workload = trace(layer, torch.empty(1, 1024, 14, 14))
    shortcut, entrance = 9 * 1024 * 2048, 1024 * 512
    body = 3 * 512 * 512 + 512 * 2048
    norms = 2 * (2048 + 512 + 512 + 2048)
    assert parameters(workload) == shortcut + entrance + 10 * 512 + body + norms
    pixels = 7 * 7
    assert macs(workload) == 14 * 14 * entrance + pixels * (shortcut + 9 * 512 + body) + 2 * pixels * pixels * 512


# ---- what the containers promise ----------------------------------------------------------------------------------


def test_attention_is_a_mean_of_values() -> None:
    layer = Attention(4, 2).double()
    nn.init.zeros_(layer.to_qkv.weight)
    with torch.no_grad():
        layer.to_qkv.weight[8:, :, 0, 0] = torch.eye(4)  # equal scores; values are the input
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert torch.allclose(layer(x), x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-12)


def test_a_layer_starts_as_its_shortcut() -> None:
    network: Any = TINY.build()
    small: Any = extract(network, search_space(network).sample(random.Random(1)))
    for layer in (module for module in small.modules() if isinstance(module, Residual)):
        entrance: Any = layer.entrance
        x = torch.rand(2, entrance.reduce.in_channels, 4, 4)
        assert torch.equal(layer.eval()(x), entrance(x)[1].relu())


def test_a_mixture_of_equal_layers_is_the_layer() -> None:
    """Equal operations everywhere: the mixture is that operation whatever the weights."""
    network: Any = TINY.network(torch.float64).eval()
    for _, body in _bodies(network):
        nn.init.zeros_(body[-1].weight)
        nn.init.zeros_(body[-1].bias)
    space, x = search_space(network), TINY.inputs(torch.float64)
    last = {name: torch.tensor([0.3, 0.7], dtype=torch.float64) for name in space.choices if "from_2" in name}
    stays = {name: "conv_1" for name in space.choices if "from_1" in name} | {"blocks.0.1.from_1": "conv_2"}
    hard = {**space.largest(), **stays, **{name: "conv_2" for name in last}}
    soft = {**hard, **last}
    with torch.no_grad():
        with activated(network, hard):
            expected = network(x)
        with activated(network, soft):
            assert torch.allclose(network(x), expected, atol=1e-12)
        with activated(network, {**soft, "blocks.1.0.from_2": torch.zeros(2)}), pytest.raises(ValueError, match="zero"):
            network(x)
