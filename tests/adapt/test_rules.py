# SPDX-License-Identifier: Apache-2.0
"""Rules of a user's own over any network, what is refused, and that a refusal leaves the network as it was."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sartor.adapt import Depth, Rule, Width, elastic, family_of
from sartor.adapt.paths import equal, fits
from sartor.nn import Elastic
from sartor.permutation import channel_groups
from sartor.supernet import activated, extract, named_choices, search_space


class Attention(nn.Module):
    """Heads of three features; their number is an int that the forward reads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(8, 9 * heads)
        self.out = nn.Linear(3 * heads, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (one.unflatten(-1, (self.heads, 3)).transpose(1, 2) for one in (q, k, v))
        mixed: Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined


class Block(nn.Module):
    def __init__(self, heads: int, units: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(heads), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, units), nn.Linear(units, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        down: Tensor = self.down(self.up(x).relu())
        return x + down


class Net(nn.Module):
    def __init__(self, heads: Sequence[int] = (4, 4, 4), units: Sequence[int] = (12, 12, 12)) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(map(Block, heads, units))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


HEADS = Width(
    "heads", "blocks.*", makes=("attention.qkv",), reads=("attention.out",), count="attention.heads", fused=3,
    numbers=("attention.heads",),
)  # fmt: skip
MLP = Width("mlp", "blocks.*", makes=("up",), reads=("down",))
HIDDEN = Width(
    "hidden", "", makes=("shift", "attention.out", "down"), reads=("attention.qkv", "up", "head"), follows=("norm",),
    complete=True,
)  # fmt: skip
RULES: tuple[Rule, ...] = (Depth("depth", "blocks"), HEADS, MLP)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def inputs() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def test_own_rules_make_any_network_elastic() -> None:
    network = seeded(Net)
    before, keys = network(inputs()), list(network.state_dict())
    elastic(network, RULES, heads=[2], mlp=[0.5], depth=[(0, 2)])
    assert torch.equal(network(inputs()), before)
    assert list(network.state_dict()) == keys
    choices = named_choices(network)
    assert choices["blocks.0.heads"].options == (2, 4)
    assert choices["blocks.2.mlp"].options == (6, 12)
    assert choices["blocks.depth"].options == ((0, 2), (0, 1, 2))
    small = search_space(network).smallest()
    with activated(network, small):
        assert torch.equal(network(inputs()), extract(network, small)(inputs()))


def test_fused_makers_keep_the_first_heads_of_each_stretch() -> None:
    network, original = seeded(Net), seeded(Net)
    elastic(network, RULES, heads=[2])
    for block in original.blocks:  # type: ignore[union-attr]
        with torch.no_grad():
            block.attention.out.weight[:, 6:] = 0.0
    with activated(network, search_space(network).smallest()):
        assert torch.allclose(network(inputs()), original(inputs()), atol=1e-6)


def test_the_residual_stream_is_one_choice() -> None:
    network = elastic(seeded(Net), [HIDDEN], hidden=[4, 6])
    assert list(named_choices(network)) == ["hidden"]
    for width in (4, 6, 8):
        with activated(network, {"hidden": width}):
            x = inputs()
            assert network.shift.shape == (1, 1, width)
            extracted = extract(network, {"hidden": width})
            assert torch.equal(network(x[..., :width]), extracted(x[..., :width]))


def test_shared_roles_have_one_choice_but_units_of_their_own() -> None:
    network = elastic(seeded(Net), RULES, shared=("heads", "mlp"), heads=[2], mlp=[6])
    assert list(named_choices(network)) == ["heads", "mlp"]
    assert len(channel_groups(network)) == 6
    with pytest.raises(ValueError, match=r"mlp has other sizes at blocks.1: it cannot be one choice for all"):
        elastic(seeded(lambda: Net(units=(12, 10, 12))), RULES, shared=("mlp",), mlp=[6])
    with pytest.raises(ValueError, match="'experts' cannot be the same in all blocks: what can be searched: "):
        elastic(seeded(Net), RULES, shared=("experts",), mlp=[6])


def test_without_options_the_defaults_are_searched() -> None:
    network = elastic(seeded(Net), RULES)
    assert {name.rpartition(".")[2] for name in named_choices(network)} == {"heads", "mlp", "depth"}
    assert named_choices(network)["blocks.0.mlp"].options == (3, 6, 9, 12)


def test_roles_can_be_adopted_one_after_the_other_but_each_once() -> None:
    network = elastic(elastic(seeded(Net), RULES, depth=[1]), RULES, mlp=[6])
    assert len(named_choices(network)) == 4
    with pytest.raises(ValueError, match=r"blocks.0.up follows a size already"):
        elastic(network, RULES, mlp=[6])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"heads": [5]}, r"blocks.0.heads cannot be 5: the network has 4; give counts up to it, or fractions"),
    ({"heads": [0]}, r"blocks.0.heads cannot be 0"),
    ({"heads": [1.5]}, r"blocks.0.heads cannot be 1.5"),
    ({"heads": [True]}, r"blocks.0.heads cannot be True"),
    ({"heads": []}, r"blocks.0.heads cannot have the options \[\]"),
    ({"heads": 2}, r"blocks.0.heads cannot have the options 2: list counts"),
    ({"heads": [(0, 1)]}, r"blocks.0.heads cannot be \(0, 1\): a depth alone is a list"),
    ({"depth": [(0, 3)]}, r"blocks.depth cannot be \(0, 3\): .* increasing numbers below 3"),
    ({"depth": [(1, 0)]}, r"blocks.depth cannot be \(1, 0\)"),
    ({"depth": [()]}, r"blocks.depth cannot be \(\)"),
    ({"width": [2]}, r"Net has no 'width' that a rule finds; what can be searched: depth, heads, mlp"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_options_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    network = seeded(Net)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=said) as error:
        elastic(network, RULES, mlp=[6], **options)
    assert "\n" not in str(error.value)
    assert not any(isinstance(module, Elastic) for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_heads_that_do_not_divide_are_refused() -> None:
    network = seeded(Net)
    for block in network.blocks:  # type: ignore[union-attr]
        block.attention.heads = 5
    with pytest.raises(ValueError, match=r"blocks.0.attention.qkv: its 36 entries do not divide into 3 times 5 equal"):
        elastic(network, RULES, heads=[2])
    grouped = Width(
        "heads", "blocks.*", makes=("attention.qkv",), reads=("attention.out",), count="attention.heads", fused=3,
        together="group",
    )  # fmt: skip
    network = seeded(Net)
    for block in network.blocks:  # type: ignore[union-attr]
        block.group = 2
    with pytest.raises(ValueError, match=r"cannot be 3: 2 come and go together, so give multiples of 2"):
        elastic(network, [grouped], heads=[3])
    for block in network.blocks:  # type: ignore[union-attr]
        block.group = 3
    with pytest.raises(ValueError, match=r"blocks.0: 4 heads do not divide into groups of 3"):
        elastic(network, [grouped], heads=[3])


def test_a_rule_that_fits_in_part_says_what_is_missing() -> None:
    half = Width("mlp", "blocks.*", makes=("up",), reads=("sideways",))
    with pytest.raises(ValueError, match=r"the rule of 'mlp' finds no 'sideways' in blocks.0"):
        elastic(seeded(Net), [half], mlp=[6])


def test_a_layer_that_no_rule_names_is_refused_where_all_must_be_named() -> None:
    network = seeded(Net)
    network.extra = nn.Linear(8, 3)
    with pytest.raises(ValueError, match=r"'hidden' cannot be searched: no rule says what extra, a Linear, does"):
        elastic(network, [HIDDEN], hidden=[4])


def test_a_network_that_no_rule_fits_says_which_layers_it_has() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"no rule.* Sequential.*Conv2d \(as 0\), BatchNorm2d \(as 1\)"):
        elastic(network, RULES)
    with pytest.raises(ValueError, match=r"Sequential has no 'mlp' .*no up in blocks.\*.*can be searched: none"):
        elastic(network, RULES, mlp=[2])


def test_a_network_without_a_family_says_so() -> None:
    class Unknown(nn.Module):
        pass

    with pytest.raises(ValueError, match=r"no rules are known for Unknown"):
        family_of(Unknown())


def test_patterns() -> None:
    assert fits("bert.encoder.layer.3", "layer.*") and fits("layer.3", "layer.*")
    assert not fits("encoder.layer.3.output", "layer.*") and not fits("encoder.player.3", "layer.*")
    assert equal("a.0.b", "a.*.b") and not equal("x.a.0.b", "a.*.b")


@settings(max_examples=40, deadline=None)
@given(
    heads=st.lists(st.one_of(st.integers(1, 4), st.floats(0.01, 1.0)), min_size=1, max_size=4),
    units=st.lists(st.one_of(st.integers(1, 12), st.floats(0.01, 1.0)), min_size=1, max_size=4),
    depth=st.lists(
        st.one_of(
            st.integers(1, 3),
            st.floats(0.01, 1.0),
            st.sampled_from([c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_options_that_fit_keep_the_laws(
    heads: list[int | float], units: list[int | float], depth: list[int | float | tuple[int, ...]]
) -> None:
    network = seeded(Net)
    before = network(inputs())
    elastic(network, RULES, heads=heads, mlp=units, depth=depth)
    assert torch.equal(network(inputs()), before)
    space = search_space(network)
    for name, options in space.choices.items():
        full = {"heads": 4, "mlp": 12, "depth": 3}[name.rpartition(".")[2]]
        assert options[-1] in (full, tuple(range(full)))
        sizes = [len(one) if isinstance(one, tuple) else int(str(one)) for one in options]
        assert sizes == sorted(sizes)
    small = space.smallest()
    with activated(network, small):
        assert torch.equal(network(inputs()), extract(network, small)(inputs()))
