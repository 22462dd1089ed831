# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks as torchvision and timm write them: found by structure, and the laws of adopted networks."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt import convnets
from adapt.convnets import Basic, Bottleneck, TvResNet, filled
from sartor.adapt import Depth, Width, elastic, family_of, sort_by_importance
from sartor.adapt.convolutional import blocks_of, rules_of
from sartor.choice import Size
from sartor.permutation import channel_groups
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)

NAMES = tuple(convnets.ALL)


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adopted(name: str) -> nn.Module:
    """All that can be searched, at once."""
    net = filled(name)
    inner: dict[str, Any] = {"mlp" if "convnext" in name else "width": [0.5]}
    return elastic(net, depth=[1, 0.5], hidden=[0.5], **inner)


@pytest.mark.parametrize("name", NAMES)
def test_in_full_it_computes_what_it_did(name: str) -> None:
    net = filled(name)
    before, keys = net(images()), [*net.state_dict()]
    parameters = {id(one) for one in net.parameters()}
    assert family_of(net) == "convolutional"
    net = adopted(name)
    assert torch.equal(net(images()), before)
    assert [*net.state_dict()] == keys and len(parameters) == len(list(net.parameters()))
    roles = {one.rpartition(".")[2] for one in search_space(net).choices}
    assert roles == {"depth", "hidden", "mlp" if "convnext" in name else "width"}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_networks_own_and_a_state_dict_loads(name: str) -> None:
    net = filled(name)
    parameters, state = list(net.parameters()), copy.deepcopy(filled(name).state_dict())
    elastic(net)
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    net.load_state_dict(state)
    assert torch.equal(net(images()), filled(name)(images()))


@pytest.mark.parametrize("name", NAMES)
def test_a_sub_network_is_its_extraction(name: str) -> None:
    net = adopted(name)
    space = search_space(net)
    for arch in [space.smallest(), *(space.sample(random.Random(seed)) for seed in range(2))]:
        with activated(net, arch):
            wanted = net(images())
            net.train()
            trained = net(images())  # also moves the statistics that the extraction must have, too
            net.eval()
        alone = extract(net, arch)
        kinds = [type(module).__name__ for module in alone.modules()]
        assert not any(kind.startswith("Sized") for kind in kinds) and not named_choices(alone)
        assert wanted.shape == trained.shape == (2, 5)
        with activated(net, arch):
            torch.testing.assert_close(alone(images()), net(images()), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in extract(net, space.smallest()).parameters()) < 0.5 * sum(
        p.numel() for p in net.parameters()
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_extraction(name: str) -> None:
    net = adopted(name)
    arch = search_space(net).smallest()
    alone = extract(net, arch)
    alone(images()).square().sum().backward()
    with activated(net, arch):
        net(images()).square().sum().backward()
    found = sorted(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None and p.grad.any())
    wanted = sorted(p.grad.abs().sum().item() for p in alone.parameters() if p.grad is not None and p.grad.any())
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_all_channels_can_be_sorted(name: str) -> None:
    net = adopted(name)
    before = net(images()).detach()
    state = copy.deepcopy(net.state_dict())
    for batches in (None, [(images(), torch.tensor([0, 3]))]):
        assert len(sort_by_importance(net, batches)) == len(channel_groups(net))
        torch.testing.assert_close(net(images()), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
    assert any(not torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_gates_read_a_width_but_do_not_make_it_important() -> None:
    net = elastic(filled("tv-mobilenet-v3"), width=[0.5])
    (group,) = (one for one in channel_groups(net) if one.name == "features.3.block.0.0")
    roles = {place.path.rpartition("block.")[2]: place.role for place in group.places}
    assert roles["2.fc1"] == "gates" and roles["2.fc2"] == "makes" and roles["3.0"] == "reads"
    with activated(net, {"features.3.width": 20}):
        squeezed = net.get_submodule("features.3.block.2.fc1")
        assert isinstance(squeezed.in_channels, Size) and int(squeezed.in_channels) == 20


def test_stages_of_a_flat_list_are_searched_one_by_one() -> None:
    net = elastic(filled("tv-mobilenet-v2"), depth=[1])
    assert search_space(net).choices == {"features.2.depth": (1, 3), "features.5.depth": (1, 2)}
    alone = extract(net, {"features.2.depth": 1, "features.5.depth": 2})
    assert len(alone.get_submodule("features")) == 6  # type: ignore[arg-type]
    with activated(net, {"features.2.depth": torch.tensor([0.25, 0.75])}):
        soft = net(images())
    assert soft.shape == (2, 5)


def test_one_hot_depths_of_a_flat_list_equal_the_hard_ones() -> None:
    net = elastic(filled("tv-mobilenet-v2"), depth=[1])
    with activated(net, {"features.2.depth": torch.tensor([1.0, 0.0])}):
        soft = net(images())
    with activated(net, {"features.2.depth": 1}):
        torch.testing.assert_close(net(images()), soft)


def test_depths_are_lists_that_keep_what_changes_the_shape() -> None:
    with pytest.raises(ValueError, match=r"layer1.depth cannot be \(1, 2\): block 0 computes what the others read"):
        elastic(filled("tv-resnet-bottleneck"), depth=[(1, 2)])
    net = elastic(filled("tv-resnet-bottleneck"), depth=[(0, 2)])
    assert search_space(net).choices["layer1.depth"] == ((0, 2), (0, 1, 2))


def test_grouped_convolutions_stay_whole_and_the_rest_is_searched() -> None:
    net = elastic(TvResNet(Bottleneck, groups=2))
    assert {name.rpartition(".")[2] for name in search_space(net).choices} == {"depth"}
    with pytest.raises(
        ValueError, match=r"no rule finds 'width' in TvResNet: layer1.0.conv2, a Conv2d, has 2 groups; .*depth"
    ):
        elastic(TvResNet(Bottleneck, groups=2), width=[0.5])


class Projected(nn.Module):
    """A block whose shortcut has a name that is not known, declared before the chain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.f = nn.Sequential(nn.Conv2d(inputs, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x) + self.f(x)
        return out


class Fused(nn.Module):
    """A block of one convolution, beside a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(Fused(8), Fused(8))
        self.second = nn.Sequential(Projected(8, 12), Projected(12, 12), Projected(12, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(self.stem(x))).mean((2, 3)))
        return out


def test_behind_what_does_not_follow_its_declarations_nothing_is_guessed() -> None:
    """Single convolutions are blocks, too; after the unknown shortcut only what is inside of a chain can be cut."""
    net = elastic(Mixed().eval(), width=[3], depth=[1])
    assert search_space(net).choices == {
        "first.depth": (1, 2), "second.1.depth": (1, 2), "second.1.width": (3, 6), "second.2.width": (3, 6)
    }  # fmt: skip
    smallest = search_space(net).smallest()
    with activated(net, smallest):
        torch.testing.assert_close(extract(net, smallest)(images()), net(images()))
    with pytest.raises(ValueError, match=r"no rule finds 'hidden' in Mixed: second.0.f.0, a Conv2d, has 8 channels"):
        elastic(Mixed(), hidden=[0.5])


class Grouped(nn.Module):
    """One block, which nothing can be cut from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.Sequential(Basic(8, 8))
        for name in ("conv1", "conv2"):
            self.blocks[0].add_module(name, nn.Conv2d(8, 8, 3, padding=1, groups=4))
        self.tail = nn.ModuleList([nn.Conv2d(8, 8, 1)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail[0](self.blocks(self.stem(x)))
        return out


def test_a_network_that_no_rule_fits_says_why() -> None:
    with pytest.raises(ValueError, match=r"no rule fits Grouped: .*blocks.0.conv1, a Conv2d, has 4 groups"):
        elastic(Grouped())
    with pytest.raises(ValueError, match="no rules are known for Sequential"):
        elastic(nn.Sequential(nn.Linear(3, 3)))


class Attention(nn.Module):
    """Four layers of one width, which are no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.o = nn.LayerNorm(4), *(nn.Linear(4, 4) for _ in range(4))


def test_layers_of_a_transformer_are_no_chain() -> None:
    net = nn.Sequential(nn.Sequential(Attention(), Attention()))
    assert blocks_of(net) == []
    with pytest.raises(ValueError, match=r"give rules= for its LayerNorm \(as 0.0.norm\), Linear \(as 0.0.q\)"):
        elastic(net)


class Own(nn.Module):
    """Two paths that are multiplied: nothing that declarations tell."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.silu(self.left(x)) * self.right(x))
        return out


def test_any_network_by_rules_of_the_users_own() -> None:
    rules = [Width("mlp", "", makes=("left", "right"), reads=("out",))]
    net, x = Own(), torch.randn(2, 4)
    before = net(x)
    elastic(net, rules, mlp=[4, 8])
    assert torch.equal(net(x), before)
    with activated(net, {"mlp": 4}):
        torch.testing.assert_close(extract(net, {"mlp": 4})(x), net(x))


def test_blocks_and_rules_are_read_off_the_modules() -> None:
    net = TvResNet(Basic)
    assert [block.path for block in blocks_of(net)] == [f"layer{i}.{j}" for i in (1, 2) for j in range(3)]
    rules = rules_of(net)
    assert [(one.blocks, one.always) for one in rules if isinstance(one, Depth)] == [("/layer1", ()), ("/layer2", (0,))]
    assert rules[-1] == Width(
        "hidden",
        "/layer2",
        makes=("/layer2.0.conv2", "/layer2.0.downsample.0", "/layer2.1.conv2", "/layer2.2.conv2"),
        reads=("/layer2.1.conv1", "/layer2.2.conv1", "/fc"),
        follows=("/layer2.0.bn2", "/layer2.0.downsample.1", "/layer2.1.bn2", "/layer2.2.bn2"),
    )


def test_a_network_is_adopted_once_with_all_its_roles() -> None:
    network = elastic(TvResNet(Basic), width=[0.5])
    with pytest.raises(ValueError, match=r"TvResNet has choices already \(.*width.*\): give all its roles at once"):
        elastic(network, depth=[1])
