# SPDX-License-Identifier: Apache-2.0
"""Once-for-All's three networks and EfficientNet-B0: the space contract, and the counts of the published networks."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contracts import space_contract as law
from contracts.layer_contract import distance
from contracts.space_contract import SpaceCase
from sartor.nn import SqueezeExcite, TransformedConv2d, at_resolution, resized
from sartor.spaces._blocks import ConvNorm, InvertedResidual, relu
from sartor.spaces._elastic_chain import ElasticChain
from sartor.spaces.efficientnet_b0 import EfficientNetB0
from sartor.spaces.ofa_mobilenetv3 import OFAMobileNetV3
from sartor.spaces.ofa_proxylessnas import OFAProxylessNAS
from sartor.spaces.ofa_resnet50 import OFAResNet50
from sartor.supernet import activated, extract, search_space
from sartor.workload import macs, parameters, trace

torch.set_num_threads(1)

SPACES: dict[str, Any] = {
    "ofa_mobilenetv3": OFAMobileNetV3,
    "ofa_proxylessnas": OFAProxylessNAS,
    "ofa_resnet50": OFAResNet50,
    "efficientnet_b0": EfficientNetB0,
}
FULL, SMALL, TINY = zip(*(law.of_sizes(name, space) for name, space in SPACES.items()), strict=True)
every = pytest.mark.parametrize("case", [*FULL, *SMALL, *TINY], ids=lambda case: case.name)
every_tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def write_golden() -> None:
    for case in (*FULL, *SMALL, *TINY):
        law.write(case)


def counts(network: nn.Module, side: int = 224) -> tuple[int, int]:
    """Parameters and multiply-accumulates for colour images."""
    workload = trace(network, torch.empty(1, 3, side, side))
    return int(parameters(workload)), int(macs(workload))


def ghost_of(space: Any, **keywords: Any) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = space(**keywords)
    return network


# ---- the contract -------------------------------------------------------------------------------------------


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_tiny
@pytest.mark.parametrize("holds", law.LAWS, ids=lambda holds: holds.__name__)
def test_laws(case: SpaceCase, holds: Callable[[SpaceCase], None]) -> None:
    holds(case)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_extraction_equals_activation_at_its_resolution(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float32, count=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=lambda case: case.name)
def test_large_extraction_equals_activation(case: SpaceCase) -> None:
    law.extraction_equals_activation(case, torch.float32, count=3)


@every_space
def test_other_sizes_are_refused(space: Any) -> None:
    law.other_sizes_are_refused(space)


@every_space
@pytest.mark.parametrize(("size", "side"), law.SIDES)
def test_maps_end_at_four_pixels_or_seven(space: Any, size: int, side: int) -> None:
    law.maps_end_at_four_pixels_or_seven(space, size, side)


@every_space
def test_oblong_images_have_no_resolution(space: Any) -> None:
    network = space(10, 1, (28, 20)).eval()
    assert "resolution" not in search_space(network).choices and not hasattr(network, "resolution")
    with torch.no_grad():
        assert network(torch.randn(1, 1, 28, 20)).shape == (1, 10)


# ---- Once-for-All's dimensions ------------------------------------------------------------------------------


def test_mobilenetv3_has_the_published_dimensions() -> None:
    space = search_space(FULL[0].ghost())
    assert {name: space.choices[f"stages.0.{name}"] for name in ("depth", "0.kernel", "3.expand")} == {
        "depth": (2, 3, 4),
        "0.kernel": (3, 5, 7),
        "3.expand": (3, 4, 6),
    }
    assert space.choices["resolution"] == tuple(range(128, 225, 4))
    unit = 9**2 + 9**3 + 9**4  # kernels and expansions of two, three or four blocks
    assert space.size == 25 * unit**5 and unit**5 == pytest.approx(2e19, rel=0.1)


def test_proxylessnas_has_one_more_unit_of_one_block() -> None:
    space = search_space(FULL[1].ghost())
    assert "stages.5.depth" not in space.choices and "stages.5.0.kernel" in space.choices
    assert space.size == 25 * 9 * (9**2 + 9**3 + 9**4) ** 5


def test_resnet50_has_the_published_dimensions() -> None:
    space = search_space(FULL[2].ghost())
    assert [space.choices[f"stages.{i}.depth"] for i in range(4)] == [(2, 3, 4), (2, 3, 4), (4, 5, 6), (2, 3, 4)]
    assert space.choices["stages.0.width"] == (168, 208, 256) and space.choices["stages.3.0.expand"] == (
        0.2,
        0.25,
        0.35,
    )
    assert space.choices["stem.width"] == (40, 48, 64) and space.choices["stem.inner.width"] == (24, 32)
    assert space.choices["stem.depth"] == (0, 1)


with open(law.GOLDEN / "ofa.json") as file:
    PACKAGE = json.load(file)


@pytest.mark.parametrize("kept", PACKAGE, ids=lambda kept: f"{kept['network']}-{kept['width']}-{kept['macs']}")
def test_sub_networks_count_as_the_package_says(kept: dict[str, Any]) -> None:
    """`benchmarks/bench_ofa_step.py` asks the `ofa` package for them."""
    more = {} if kept["width"] is None else {"width": kept["width"]}
    ghost = ghost_of(SPACES[kept["network"]], **more)
    assert counts(extract(ghost, kept["arch"])) == (kept["parameters"], kept["macs"])


@pytest.mark.parametrize("index", [0, 1], ids=["ofa_mobilenetv3", "ofa_proxylessnas"])
def test_every_searched_kernel_is_transformed(index: int) -> None:
    network = TINY[index].network()
    blocks = [block for stage in network.stages.children() for block in stage.children()]
    assert len(blocks) == 5
    for block in blocks:
        assert isinstance(block, InvertedResidual) and isinstance(block.depth_conv, TransformedConv2d)
        assert torch.equal(block.depth_conv.transforms["to3"], torch.eye(9))


def test_initial_weights_are_the_same_elastic_and_extracted() -> None:
    """Both start at the identity transform, whatever was learned before."""
    network: Any = TINY[0].network()
    for module in network.modules():
        if isinstance(module, TransformedConv2d):
            nn.init.normal_(module.transforms["to3"])
    network.reset_parameters()
    x, smallest = TINY[0].inputs(), search_space(network).smallest()
    block = network.stages[0]._modules["0"]
    with activated(network, smallest):
        assert torch.equal(block.depth_conv.active()[0], block.depth_conv.weight[:24, :, 1:4, 1:4])
        assert network(x).isfinite().all()


def test_depth_keeps_the_first_blocks() -> None:
    """A unit of depth 1 is its first block, alone."""
    network: Any = TINY[0].network().eval()
    arch = search_space(network).largest().replace({"stages.1.depth": 1})
    with activated(network, arch), torch.no_grad():
        x = network.stages[0](network.stem(TINY[0].inputs()))
        assert torch.equal(network.stages[1](x), network.stages[1]._modules["0"](x))


# ---- published networks -------------------------------------------------------------------------------------


def test_efficientnets_have_the_published_parameters() -> None:
    b0 = ghost_of(EfficientNetB0)
    assert counts(extract(b0, {"phi": 0})) == (5_288_548, 385_814_752)
    b4 = ghost_of(EfficientNetB0, width=1.4, depth=1.8)
    assert counts(extract(b4, {"phi": 0}))[0] == 19_341_616


def test_compound_scaling_divides_macs_by_about_two() -> None:
    """Depth times width^2 times resolution^2 is 1.92 a step, but for what rounding to blocks and 8 channels does."""
    ghost = ghost_of(EfficientNetB0)
    assert search_space(ghost).choices == {"phi": (-3, -2, -1, 0)}
    smalls: list[Any] = [extract(ghost, {"phi": phi}) for phi in (0, -1, -2, -3)]
    assert [small.resolution for small in smalls] == [224, 196, 168, 148]
    found = [counts(small, small.resolution)[1] for small in smalls]
    assert all(1.5 < more / less < 2 for more, less in itertools.pairwise(found))


def test_the_coefficient_decides_the_resolution() -> None:
    network = EfficientNetB0(10, 1, (28, 28)).eval()
    images = torch.randn(2, 1, 28, 28)
    for phi, side in ((0, 28), (-1, 24), (-2, 20)):
        with activated(network, {"phi": phi}), torch.no_grad():
            assert resized(images, network).shape[2:] == (side, side)
            alone = extract(network, {"phi": phi})
            assert distance(at_resolution(network, images), at_resolution(alone, images)) < 1e-5


V3_LARGE: list[
    tuple[int, int, int, bool, Any, int]
] = [  # kernel, inner and outer width, gate, activation, stride (MobileNetV3, table 1)
    (3, 64, 24, False, relu, 2),
    (3, 72, 24, False, relu, 1),
    (5, 72, 40, True, relu, 2),
    (5, 120, 40, True, relu, 1),
    (5, 120, 40, True, relu, 1),
    (3, 240, 80, False, F.hardswish, 2),
    (3, 200, 80, False, F.hardswish, 1),
    (3, 184, 80, False, F.hardswish, 1),
    (3, 184, 80, False, F.hardswish, 1),
    (3, 480, 112, True, F.hardswish, 1),
    (3, 672, 112, True, F.hardswish, 1),
    (5, 672, 160, True, F.hardswish, 2),
    (5, 960, 160, True, F.hardswish, 1),
    (5, 960, 160, True, F.hardswish, 1),
]


def test_mobilenetv3_large_is_made_of_the_same_blocks() -> None:
    blocks: list[nn.Module] = [InvertedResidual(16, 16, 1, (3,), (1,), skip=nn.Identity())]
    before = 16
    for kernel, inner, width, gate, activation, stride in V3_LARGE:
        skip = nn.Identity() if stride == 1 and before == width else None
        made = partial(InvertedResidual, activation=activation, gate=SqueezeExcite if gate else None, skip=skip)
        blocks.append(made(before, width, stride, (kernel,), (inner / before,)))
        before = width
    stem, head = ConvNorm(3, 16, 3, 2, activation=F.hardswish), ConvNorm(160, 960, 1, activation=F.hardswish)
    mix = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish())
    network = ElasticChain((stem, nn.Sequential(*blocks), head), 1280, 1000, mix=mix, dropout=0.2)
    large = extract(network, {})
    assert counts(large)[0] == 5_483_032
    assert counts(large)[1] == pytest.approx(219e6, rel=0.02)


def test_a_random_sub_network_trains() -> None:
    network = TINY[2].network().train()
    with activated(network, search_space(network).sample(random.Random(0))):
        network(TINY[2].inputs()).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
