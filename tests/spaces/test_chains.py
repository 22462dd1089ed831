# SPDX-License-Identifier: Apache-2.0
"""The chains of inverted bottlenecks: the space contract, published counts, and superkernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts import space_contract as law
from contracts.layer_contract import distance
from contracts.space_contract import SpaceCase
from sartor.nn import OneOf
from sartor.spaces import fbnet, proxylessnas
from sartor.spaces._chain import MBConv, Shuffle
from sartor.spaces.fbnet import FBNet
from sartor.spaces.proxylessnas import ProxylessNAS
from sartor.spaces.single_path import EXPANSIONS, SinglePath, Skippable, SuperMBConv
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import Workload, macs, parameters, trace

torch.set_num_threads(1)

SPACES: dict[str, Any] = {"proxylessnas": ProxylessNAS, "fbnet": FBNet, "single_path": SinglePath}
FULL, SMALL, TINY = zip(*(law.of_sizes(name, space) for name, space in SPACES.items()), strict=True)
every = pytest.mark.parametrize("case", [*FULL, *SMALL, *TINY], ids=lambda case: case.name)
every_tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def write_golden() -> None:
    for case in (*FULL, *SMALL, *TINY):
        law.write(case)


@every
def test_names_are_golden(case: SpaceCase) -> None:
    law.names_are_golden(case)


@every_tiny
@pytest.mark.parametrize("holds", law.LAWS, ids=lambda holds: holds.__name__)
def test_laws(case: SpaceCase, holds: Callable[[SpaceCase], None]) -> None:
    holds(case)


@every_space
def test_other_sizes_are_refused(space: Any) -> None:
    law.other_sizes_are_refused(space)


@every_space
@pytest.mark.parametrize(("size", "side"), law.SIDES)
def test_maps_end_at_four_pixels_or_seven(space: Any, size: int, side: int) -> None:
    law.maps_end_at_four_pixels_or_seven(space, size, side)


# ---- published sizes and counts -----------------------------------------------------------------------------


def test_spaces_have_the_published_sizes() -> None:
    proxyless, single = (search_space(FULL[i].ghost()) for i in (0, 2))
    assert search_space(FULL[1].ghost()).size == 9**22
    assert proxyless.size == 6**6 * 7**15  # the first layer of a stage changes the width and cannot be left out
    assert single.size == 4**6 * 5**15
    assert list(proxyless.choices["stages.2.blocks.1"]) == [*proxylessnas.CANDIDATES, "zero"]
    assert list(search_space(FULL[1].ghost()).choices["stages.6.blocks.0"]) == [*fbnet.CANDIDATES, "skip"]


# The networks that the paper found; layers in order.
FBNETS = {
    "A": "skip k3_e3 k3_e1 skip skip k5_e6 k3_e3 k5_e1 k3_e3 k5_e6 k5_e3 k5_e1_g2 k5_e6 k3_e6 k5_e1_g2 k5_e3 k3_e1_g2 "
    "k5_e6 k5_e6 k5_e3 k5_e6 k5_e6",
    "B": "k3_e1 k3_e6 k5_e1 k3_e1 k3_e1 k5_e6 k5_e3 k3_e6 k5_e6 k5_e6 k5_e6 skip k5_e3 k5_e6 k3_e1 k5_e1 k5_e3 k5_e6 "
    "k5_e1 k5_e6 k5_e6 k3_e6",
    "C": "k3_e1 k3_e6 skip k3_e1 k3_e1 k5_e6 k5_e3 k5_e6 k3_e6 k5_e6 k5_e3 k5_e6 k5_e6 k5_e6 k5_e6 k5_e6 k5_e3 k5_e6 "
    "k5_e6 k5_e6 k5_e6 k3_e6",
}


@pytest.mark.parametrize(
    ("name", "published", "ours", "weights"),
    [("A", 249e6, 258_680_888, 4_971_384), ("B", 295e6, 306_210_888, 4_863_288), ("C", 375e6, 384_960_160, 5_572_200)],
)
def test_fbnets_count_as_published(name: str, published: float, ours: int, weights: int) -> None:
    ghost = FULL[1].ghost()
    arch = dict(zip(named_choices(ghost), FBNETS[name].split(), strict=True))
    workload = trace(extract(ghost, arch), torch.empty(1, 3, 224, 224))
    assert macs(workload) == ours and parameters(workload) == weights
    assert macs(workload) == pytest.approx(published, rel=0.04)  # A's own head is narrower by 9 million


def test_a_proxyless_chain_counts_by_formula() -> None:
    """All layers of one kind: 1x1, depthwise and 1x1 convolutions at their resolutions, by hand."""
    ghost = FULL[0].ghost()
    space = search_space(ghost)
    arch = dict.fromkeys(space.choices, "mb3_k5")
    side, before = 112, 16
    expected = 112**2 * (27 * 32 + 9 * 32 + 32 * 16)  # stem, and the depthwise block behind it
    weights = 27 * 32 + 64 + (9 * 32 + 64) + (32 * 16 + 32)
    for width, layers, stride in zip((24, 40, 80, 96, 192, 320), (4, 4, 4, 4, 4, 1), (2, 2, 2, 1, 2, 1), strict=True):
        for layer in range(layers):
            after, hidden = side // stride if layer == 0 else side, 3 * before
            expected += side**2 * before * hidden + after**2 * (25 * hidden + hidden * width)
            weights += before * hidden + 25 * hidden + hidden * width + 4 * hidden + 2 * width
            side, before = after, width
    expected += 49 * 320 * 1280 + 1280 * 1000
    weights += 320 * 1280 + 2 * 1280 + 1281 * 1000
    workload = trace(extract(ghost, arch), torch.empty(1, 3, 224, 224))
    assert (macs(workload), parameters(workload)) == (expected, weights)


# ---- blocks -------------------------------------------------------------------------------------------------


def test_a_shuffle_takes_groups_in_turns() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_groups_see_each_other_through_the_shuffle() -> None:
    block = MBConv(8, 8, 1, 3, 1, activation=nn.ReLU, groups=2, always_expand=True).eval()
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    (block(x) - x)[:, 0].sum().backward()
    assert x.grad is not None and (x.grad.abs().sum((0, 2, 3)) > 0).sum() > 4


def test_a_mixture_of_blocks_is_the_shortcut_and_the_mixture_of_branches() -> None:
    torch.manual_seed(0)
    network: Any = ProxylessNAS(10, 1, (8, 8)).double().eval()
    layer = network.stages[1][1]
    assert isinstance(layer, OneOf)
    blocks: Any = layer
    x, weights = torch.randn(2, 20, 8, 8, dtype=torch.float64), torch.rand(7, dtype=torch.float64).softmax(0)
    branches = sum(w * blocks[key].layers(x) for w, key in zip(weights, [*blocks][:-1], strict=False))
    with activated(network, {"stages.1.blocks.1": weights}):
        assert distance(layer(x), x + branches) <= 1e-12


# ---- superkernels -------------------------------------------------------------------------------------------


def indicators() -> tuple[Tensor, Tensor, Tensor]:
    d55, d50, d100 = (torch.tensor(d, dtype=torch.float64, requires_grad=True) for d in (0.3, 0.8, 0.45))
    return d55, d50, d100


def off_and_on(d: Tensor) -> Tensor:
    return torch.stack((1 - d, d))


def test_superkernels_are_sums_of_their_parts() -> None:
    """The depthwise kernel is d50 (W_50 + d100 W_100) with W = W33 + d55 W55, but for what lies between it and 1x1."""
    torch.manual_seed(0)
    block = SuperMBConv(4, 4, 1, "layer").double()
    for one in ("expand_norm", "depth_norm", "project_norm", "activation"):
        setattr(block, one, nn.Identity())  # in front of the norm the paper's scale and ours agree
    net = Skippable(block, name="layer.skip")
    weight: Tensor = block.depth_conv.weight
    x, (d55, d50, d100) = torch.randn(2, 4, 7, 7, dtype=torch.float64), indicators()
    ring = torch.ones(5, 5, dtype=torch.float64)
    ring[1:4, 1:4] = 0
    w33, w55 = weight * (1 - ring), weight * ring
    kernel = w33 + d55 * w55
    half = weight.shape[0] * EXPANSIONS[0] // EXPANSIONS[1]
    first = (torch.arange(24) < half).double().view(-1, 1, 1, 1)
    kernel = d50 * (kernel * first + d100 * kernel * (1 - first))
    expanded = F.conv2d(x, block.expand_conv.weight)
    expected = x + F.conv2d(F.conv2d(expanded, kernel, padding=2, groups=24), block.project_conv.weight)
    given = {"layer.kernel": off_and_on(d55), "layer.expand": off_and_on(d100), "layer.skip": off_and_on(d50)}
    with activated(net, given):
        found = net(x)
    assert distance(found, expected) <= 1e-10
    for d in (d55, d50, d100):
        (wanted,) = torch.autograd.grad(expected.square().sum(), d, retain_graph=True)
        (got,) = torch.autograd.grad(found.square().sum(), d, retain_graph=True)
        assert distance(got, wanted) <= 1e-10


def test_a_skipped_block_still_tells_its_indicator() -> None:
    network, name = SinglePath(10, 1, (8, 8)).double(), "stages.1.blocks.1.skip"
    d50 = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    with activated(network, {name: off_and_on(d50)}):
        soft = network(x)
    soft.square().sum().backward()
    assert d50.grad is not None and d50.grad.abs() > 0
    with activated(network, {name: "skip"}):
        assert distance(soft, network(x)) <= 1e-12


def test_the_supernet_is_as_large_as_its_largest_network() -> None:
    ghost = FULL[2].ghost()
    largest = extract(ghost, search_space(ghost).largest())
    assert sum(p.numel() for p in ghost.parameters()) == sum(p.numel() for p in largest.parameters())
    several = FULL[0].ghost()
    assert sum(p.numel() for p in several.parameters()) > 3 * sum(p.numel() for p in largest.parameters())


def workload_of(space: Any) -> Workload:
    with torch.device("meta"):
        ghost = space(10, 1, (8, 8))
    return trace(extract(ghost, search_space(ghost).largest()), torch.empty(1, 1, 8, 8))


def test_superkernels_and_candidates_are_the_same_networks() -> None:
    """Expansion 6 and kernel 5 everywhere is one network in both spaces."""
    with torch.device("meta"):
        ghost = ProxylessNAS(10, 1, (8, 8))
    x = torch.empty(1, 1, 8, 8)
    several = trace(extract(ghost, dict.fromkeys(search_space(ghost).choices, "mb6_k5")), x)
    assert macs(several) == macs(workload_of(SinglePath)) and parameters(several) == parameters(workload_of(SinglePath))
