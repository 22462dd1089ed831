# SPDX-License-Identifier: Apache-2.0
"""Channel-level bypass: the layer contract, depth as a width of 0, what is extracted, and the widths it hands on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase, assert_plain
from sartor.choice import Choice, Derived, Size
from sartor.nn import Bypass, Filters, Widest
from sartor.supernet import activated, extract, search_space

torch.set_num_threads(1)

F64 = torch.float64


def layer(before: int | Size, options: tuple[int, ...], name: str, stride: int = 1) -> Bypass:
    filters, kernel = Filters(options, name=f"{name}.width"), Choice([1, 3], name=f"{name}.kernel")
    conv = elastic.Conv2d(before, filters, kernel, stride, "same")
    return Bypass(nn.Sequential(conv, elastic.BatchNorm2d(filters), nn.Tanh()), before, filters, stride)


def fixed() -> nn.Module:
    """One layer on a fixed number of channels, which it may narrow or widen."""
    one = layer(4, (0, 2, 4, 6), "a")
    return nn.Sequential(one, elastic.Conv2d(one.width, 3, 1))


def chain() -> nn.Module:
    """Each layer's input is as wide as those before it leave it, and one halves the map."""
    stem = Choice([2, 5], name="stem")
    one = layer(stem, (0, 3, 6), "a")
    two = layer(one.width, (0, 2, 7), "b", stride=2)
    return nn.Sequential(elastic.Conv2d(2, stem, 1), one, two, nn.Tanh(), elastic.Conv2d(two.width, 3, 1))


def never_left_out() -> nn.Module:
    one = layer(4, (2, 6), "a", stride=2)
    return nn.Sequential(one, elastic.Conv2d(one.width, 3, 1))


def images(channels: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, 5, 5)


CASES = [
    LayerCase("fixed", fixed, images(4)),
    LayerCase("chain", chain, images(2)),
    LayerCase("always", never_left_out, images(4)),
]
LAWS: list[Callable[[LayerCase], None]] = [
    law.extraction_trains_like_activation,
    law.one_hot_equals_hard,
    law.meta_build_takes_no_memory,
    law.copies_are_independent,
    law.extraction_shares_nothing,
    law.state_dict_round_trip,
    law.exports,
    law.prints,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("check", LAWS, ids=lambda check: check.__name__)
def test_law(check: Callable[[LayerCase], None], case: LayerCase) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_extraction_equals_activation(case: LayerCase) -> None:
    law.extraction_equals_activation(case, F64)
    law.largest_is_exact(case, torch.float32)
    law.gradients_reach_every_choice(case, training=False)


def networks(case: LayerCase) -> nn.Module:
    return case.network().eval()


def test_without_filters_the_layer_is_the_identity() -> None:
    one, x = layer(4, (0, 2, 4), "a"), torch.randn(2, 4, 5, 5)
    with activated(one, {"a.width": 0}):
        assert torch.equal(one(x), x)
    assert isinstance(extract(one, {"a.width": 0, "a.kernel": 1}), nn.Identity)


def test_strided_and_without_filters_it_is_the_average_pool() -> None:
    one, x = layer(4, (0, 2, 4), "a", stride=2), torch.randn(2, 4, 5, 5)
    with activated(one, {"a.width": 0}):
        y = one(x)
    assert y.shape == (2, 4, 3, 3)
    torch.testing.assert_close(y[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    torch.testing.assert_close(y[:, :, 2, 2], x[:, :, 4, 4])  # the last window is cut off, and no zero is counted


@pytest.mark.parametrize(("filters", "width"), [(2, 4), (4, 4), (6, 6)])
def test_channels_behind_the_filters_are_the_input(filters: int, width: int) -> None:
    one, x = layer(4, (0, 2, 4, 6), "a").eval(), torch.randn(2, 4, 5, 5)
    with activated(one, {"a.width": filters}):
        y = one(x)
        assert int(one.width) == width == y.shape[1]
        assert torch.equal(y[:, :filters], one.branch(x)) and torch.equal(y[:, filters:], x[:, filters:])
    small: Any = extract(one, {"a.width": filters, "a.kernel": 3})
    assert_plain(small)
    assert torch.equal(small(x), y)
    held = sum(p.numel() for p in small.parameters())
    assert held == filters * (4 * 9 + 1 + 2)  # the filters that are there, and nothing else


def test_the_kernel_matters_where_there_are_filters() -> None:
    space = search_space(fixed())
    assert dict(space.gates) == {"a.kernel": ((("a.width", (2, 4, 6)),),)}
    assert space.size == 1 + 3 * 2
    assert not search_space(never_left_out()).gates


# ---- the widest of several widths -----------------------------------------------------------------------------


def widths() -> tuple[Choice, Filters, Widest]:
    a, b = Choice([2, 5], name="a"), Filters([0, 3, 6], name="b")
    return a, b, Widest(a, 3, b)


def test_the_widest_is_the_largest() -> None:
    a, b, widest = widths()
    assert widest.options == (3, 5, 6) and widest.extent == 6 and set(widest.roots) == {a, b}
    for x, y in itertools.product((2, 5), (0, 3, 6)):
        a.set(x)
        b.set(y)
        assert int(widest) == max(x, 3, y) == widest.evaluate(lambda choice: choice.value)


def test_weights_of_the_widest_are_those_of_a_table() -> None:
    a, b, widest = widths()
    table = Derived(largest, a, b)
    a.set(torch.tensor([0.3, 0.7], dtype=F64))
    b.set(torch.tensor([0.2, 0.5, 0.3], dtype=F64))
    found, expected = widest.weights, table.weights
    assert found is not None and expected is not None
    by_value = dict(zip(table.options, expected.tolist(), strict=True))
    assert found.tolist() == pytest.approx([by_value[option] for option in widest.options])
    b.set(6)
    assert widest.weights is not None and widest.weights.tolist() == pytest.approx([0, 0, 1])


def largest(a: int, b: int) -> int:
    return max(a, b, 3)


def test_what_cannot_be_a_width() -> None:
    a = Choice([2, 4])
    with pytest.raises(ValueError, match="share a choice"):
        Widest(a, a)
    with pytest.raises(ValueError, match="not all ints"):
        Widest(3, Choice([(0, 2), (0, 1, 2)]))
    with pytest.raises(ValueError, match="must be ints from 0 on"):
        Filters([-1, 2])
    with pytest.raises(ValueError, match="not 0 alone"):
        Filters([0])
    with pytest.raises(ValueError, match="size 0 keeps nothing"):
        elastic.Linear(4, Choice([0, 4]))
