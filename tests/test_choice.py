# SPDX-License-Identifier: Apache-2.0
"""Choices and sizes: what is kept, with which chance, and what is refused."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sartor.nn as elastic
from sartor.architecture import Option
from sartor.choice import Choice, Derived, Kept, Size, concat, extent, indices, keep, per_group, take
from sartor.supernet import activated, extract

torch.set_num_threads(1)


def add(a: int, b: int) -> int:
    return a + b


def len_of(value: tuple[int, ...]) -> int:
    return len(value)


def weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LIKE = torch.empty(0, dtype=torch.float64)


# ---- choices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ([1, 3, 2], 3),
        ([0.5, 2], 2),
        (["a", "b"], "b"),
        ([False, True], True),
        ([None, 4], 4),
        ([(0, 2), (0, 1, 2), (1,)], (0, 1, 2)),
        ([(0, 1), (0, 2)], (0, 2)),
    ],
)
def test_a_new_choice_holds_its_largest_option(options: list[Option], largest: Option) -> None:
    choice = Choice(options)
    assert choice.value == largest and choice.hard == largest
    assert choice.weights is None and not choice.is_soft


def test_lists_become_tuples() -> None:
    assert Choice([[0, 2], [1]]).options == ((0, 2), (1,))  # type: ignore[list-item]


def test_options_of_different_types_are_different() -> None:
    choice = Choice([1, 1.0, True])
    for option in choice.options:
        choice.set(option)
        assert type(choice.value) is type(option)


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "at least one option"), ([2, 2], "repeat"), ([float("nan")], "finite"), ([{1}], "cannot be an option")],
)
def test_bad_options_raise(options: list[Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(options, name="width")


def test_set_takes_an_option_or_weights() -> None:
    choice = Choice([2, 4])
    choice.set(2)
    assert choice.value == 2
    choice.set(weights(0.25, 0.75))
    assert choice.is_soft and choice.hard is None and choice.weights is not None
    with pytest.raises(ValueError, match="is soft: it has weights, no single value"):
        _ = choice.value
    choice.set(4)
    assert choice.value == 4 and choice.weights is None


@pytest.mark.parametrize("wrong", [3, 2.0, True, "2", (2,), None])
def test_set_refuses_what_is_no_option(wrong: Option) -> None:
    choice = Choice([1, 2])
    with pytest.raises(ValueError, match="is not one of the options"):
        choice.set(wrong)
    assert choice.value == 2


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_set_refuses_weights_of_another_shape(shape: tuple[int, ...]) -> None:
    choice = Choice([1, 2])
    with pytest.raises(ValueError, match=r"needs weights of shape \(2,\)"):
        choice.set(torch.ones(shape))


def test_reads_like_what_it_stands_for() -> None:
    assert int(Choice([2, 4])) == 4 and range(Choice([3])) == range(3)
    assert str(Choice(["relu"])) == "relu"
    assert bool(Choice([False])) is False
    assert list(Choice([(1, 3)])) == [1, 3] and int(Choice([(1, 3)])) == 2
    with pytest.raises(ValueError, match="no number"):
        int(Choice(["relu"]))
    assert repr(Choice([2, "a"], name="width")) == "Choice(width: 2 | 'a')"


# ---- derived sizes -------------------------------------------------------------------------------------------


def test_products_and_quotients() -> None:
    width, expand = Choice([8, 16]), Choice([1, 4])
    hidden = width * expand
    assert hidden.options == (8, 32, 16, 64) and hidden.value == 64 and hidden.extent == 64
    assert (3 * width).options == (24, 48)
    assert (width // 16).options == (1,), "never nothing"
    width.set(8)
    assert hidden.value == 32 and hidden.hard == 32


def test_index_lists_are_multiplied_by_blocks() -> None:
    heads = Choice([(1,), (0, 2)])
    assert (heads * 2).options == ((2, 3), (0, 1, 4, 5))
    assert (2 * heads).options == (heads * 2).options
    assert (heads * Choice([1, 2])).options == ((1,), (2, 3), (0, 2), (0, 1, 4, 5))


def test_a_derived_size_is_joint_over_shared_choices() -> None:
    width = Choice([2, 3])
    square = width * width
    assert square.options == (4, 9), "an outer product of the choice with itself would also hold 6"
    width.set(weights(0.25, 0.75))
    assert square.weights is not None
    assert torch.equal(square.weights, weights(0.25, 0.75))
    nested = (width * 2) * width
    assert nested.options == (8, 18) and nested.roots == (width,)


def test_weights_are_joint_over_distinct_choices() -> None:
    a, b = Choice([1, 2]), Choice([2, 4])
    product = a * b
    a.set(weights(0.25, 0.75))
    b.set(weights(0.5, 0.5))
    assert product.options == (2, 4, 8)
    assert product.weights is not None
    assert torch.allclose(product.weights, weights(0.125, 0.5, 0.375))
    b.set(4)
    assert product.weights is not None
    assert torch.allclose(product.weights, weights(0, 0.25, 0.75)), "a hard choice counts as one-hot"
    with pytest.raises(ValueError, match="is soft"):
        _ = product.value
    assert product.hard is None


def test_gradients_reach_the_roots() -> None:
    a = Choice([1, 2])
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    a.set(logits.softmax(0))
    ((a * 2).mask(LIKE) * weights(1, 2, 3, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.allclose(logits.grad, weights(-1.75, 1.75))


def test_concatenated_inputs_keep_their_places() -> None:
    a, b = Choice([1, 2]), Choice([(1,), (0, 2)])
    both = concat(a, 2, b)
    assert isinstance(both, Derived) and both.extent == 2 + 2 + 3
    assert both.options == ((0, 2, 3, 5), (0, 2, 3, 4, 6), (0, 1, 2, 3, 5), (0, 1, 2, 3, 4, 6))
    assert concat(3, 4) == 7
    twice = concat(a, a)
    assert isinstance(twice, Derived) and twice.options == ((0, 2), (0, 1, 2, 3))


def test_width_per_group_keeps_the_head_of_each() -> None:
    width = per_group(Choice([1, 3]), 2)
    assert width.options == ((0, 3), (0, 1, 2, 3, 4, 5)) and width.extent == 6
    listed = per_group(Choice([(1,), (0, 2)]), 2)
    assert listed.options == ((1, 4), (0, 2, 3, 5)) and listed.extent == 6


@pytest.mark.parametrize("fn", [lambda a: a, partial(lambda a, b: a, 1)])
def test_lambdas_are_refused(fn: object) -> None:
    with pytest.raises(ValueError, match="cannot be pickled; use a function of a module"):
        Derived(fn, Choice([1, 2]))  # type: ignore[arg-type]


def test_named_functions_and_operators_derive() -> None:
    assert Derived(add, Choice([1, 2]), 3).options == (4, 5)
    assert Derived(operator.add, Choice([1, 2]), Choice([10])).options == (11, 12)
    assert Derived(partial(add, 1), Choice([1, 2])).options == (2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice([(0, 1)]) * Choice([(1,)]), "cannot be multiplied"),
        (lambda: Choice([(0, 1)]) // 2, "cannot be multiplied or divided as a size"),
        (lambda: Choice([1.5]) * 2, "derive it by a named function"),
        (lambda: Choice(["a"]) * 2, "derive it by a named function"),
    ],
)
def test_arithmetic_that_makes_no_size_raises(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("option", [0, -1, True, 2.0, None, "a", (), (1, 0), (0, 0), (-1,), (0.5,), (True,)])
def test_what_is_no_size_raises(option: Any) -> None:
    with pytest.raises(ValueError):
        indices(option)
    with pytest.raises(ValueError):
        extent(Choice([option]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda size: pickle.loads(pickle.dumps(size))])
def test_copies_share_no_choice(duplicate: object) -> None:
    width = Choice([2, 4], name="width")
    twin = duplicate(width * width)  # type: ignore[operator]
    assert twin.roots[0] is not width and twin.parents[0] is twin.parents[1] is twin.roots[0]
    width.set(2)
    assert twin.value == 16


# ---- keep and take -------------------------------------------------------------------------------------------


def test_keep_and_take_agree_when_hard() -> None:
    tensor = torch.arange(24).view(4, 6)
    cases: list[tuple[Option, int, Tensor]] = [
        (2, 0, tensor[:2]),
        (3, 1, tensor[:, :3]),
        ((0, 3), 0, tensor[[0, 3]]),
        ((1, 2, 5), 1, tensor[:, [1, 2, 5]]),
    ]
    for option, dim, expected in cases:
        size = Choice([option])
        assert torch.equal(keep(tensor, size, dim), expected)
        assert torch.equal(take(tensor, size, dim), expected)
    assert keep(tensor, 4) is tensor and take(tensor, 4) is tensor
    assert keep(tensor, Choice([4])) is tensor, "nothing is cut, so nothing is copied"


def test_prefixes_are_views_of_the_shared_weight() -> None:
    tensor = torch.zeros(4, 6)
    keep(keep(tensor, Choice([2])), Choice([3]), 1).fill_(1.0)
    assert tensor.sum() == 6


def test_soft_keeps_all_and_takes_by_chance() -> None:
    tensor, size = torch.ones(3, 4, dtype=torch.float64), Choice([1, 2, 4])
    size.set(weights(0.5, 0.25, 0.25))
    assert keep(tensor, size, 1) is tensor
    assert torch.equal(take(tensor, size, 1)[0], weights(1, 0.5, 0.25, 0.25))


def test_the_mask_is_read_once() -> None:
    """A producer that masked as well would square the chance (ARCHITECTURE, soft widths)."""
    size = Choice([1, 2])
    first, second = elastic.Linear(1, size, bias=False).double(), elastic.Linear(size, 1, bias=False).double()
    with torch.no_grad():
        first.weight.fill_(1.0)
        second.weight.fill_(1.0)
    size.set(weights(0.5, 0.5))
    assert second(first(torch.ones(1, 1, dtype=torch.float64))).item() == 1.5


prefix_options = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)
index_list = st.sets(st.integers(0, 9), min_size=1).map(lambda s: tuple(sorted(s)))
listed_options = st.lists(index_list, min_size=1, max_size=4, unique=True)


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    """A choice, or a size that follows from one or two."""
    options: list[Option] = list(draw(st.one_of(prefix_options, listed_options)))
    choice = Choice(options)
    kind = draw(st.sampled_from(["choice", "blocks", "per_group", "concat", "shared"]))
    if kind == "blocks":
        return choice * draw(st.integers(1, 3))
    if kind == "per_group":
        return per_group(choice, draw(st.integers(1, 3)))
    if kind == "concat":
        both = concat(choice, draw(st.integers(1, 3)), Choice(draw(prefix_options)))
        assert isinstance(both, Size)
        return both
    if kind == "shared":
        both = concat(choice, choice * 2)
        assert isinstance(both, Size)
        return both
    return choice


def one_hot_roots(size: Size, draw: st.DataObject) -> None:
    for root in size.roots:
        position = draw.draw(st.integers(0, len(root.options) - 1))
        root.set(root.options[position])


@given(sizes(), st.data())
def test_one_hot_mask_is_the_indicator(size: Size, data: st.DataObject) -> None:
    one_hot_roots(size, data)
    indicator = torch.zeros(size.extent, dtype=torch.float64)
    indicator[list(indices(size.value))] = 1.0
    assert torch.equal(size.mask(LIKE), indicator)
    for root in size.roots:
        root.set(root.probabilities(LIKE))
    assert size.is_soft
    assert torch.equal(size.mask(LIKE), indicator)
    assert torch.equal(take(torch.ones(size.extent, dtype=torch.float64), size), indicator)


@given(sizes(), st.floats(0, 1), st.data())
def test_mask_is_linear_in_the_weights_of_each_choice(size: Size, share: float, data: st.DataObject) -> None:
    one_hot_roots(size, data)
    root = size.roots[0]
    n = len(root.options)
    a, b = (torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)), dtype=torch.float64)
            for _ in range(2))  # fmt: skip
    masks = []
    for value in (a, b, share * a + (1 - share) * b):
        root.set(value)
        masks.append(size.mask(LIKE))
    assert torch.allclose(masks[2], share * masks[0] + (1 - share) * masks[1], rtol=1e-12, atol=1e-12)


@given(sizes(), st.data())
def test_mask_is_the_expectation_over_options(size: Size, data: st.DataObject) -> None:
    for root in size.roots:
        raw = torch.tensor(data.draw(st.lists(st.floats(0.1, 1), min_size=len(root.options),
                                              max_size=len(root.options))), dtype=torch.float64)  # fmt: skip
        root.set(raw / raw.sum())
    chances = size.probabilities(LIKE)
    assert math.isclose(chances.sum().item(), 1.0)
    expected = torch.zeros(size.extent, dtype=torch.float64)
    for chance, option in zip(chances, size.options, strict=True):
        expected[list(indices(option))] += chance
    assert torch.allclose(size.mask(LIKE), expected)


# ---- weights of indices --------------------------------------------------------------------------------------


def pairs() -> Choice:
    return Choice([(0, 1), (0, 2), (1, 2)], name="pairs")


def test_kept_weighs_indices_and_no_options() -> None:
    choice, beta = pairs(), weights(0.5, 2.0, 0.0).requires_grad_()
    choice.set(Kept(beta))
    assert choice.is_soft and choice.hard is None
    assert choice.mask(LIKE) is beta
    assert take(torch.ones(3, dtype=torch.float64), choice).tolist() == [0.5, 2.0, 0.0]
    reads: list[Callable[[], object]] = [
        lambda: choice.weights,
        lambda: choice.probabilities(LIKE),
        lambda: Derived(len_of, choice).weights,
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"(?s)pairs.*under Kept: it has a weight for each index"):
            read()
    with pytest.raises(ValueError, match="soft"):
        choice.value  # noqa: B018
    choice.set((0, 2))
    assert choice.mask(LIKE).tolist() == [1.0, 0.0, 1.0]


def test_kept_must_fit() -> None:
    with pytest.raises(ValueError, match=r"needs Kept weights of shape \(3,\), got \(2,\)"):
        pairs().set(Kept(torch.ones(2)))
    with pytest.raises(ValueError, match="no index lists"):
        Choice([1, 2]).set(Kept(torch.ones(2)))


def test_kept_is_in_force_for_a_block_only() -> None:
    node = elastic.Inputs({str(i): torch.nn.Linear(2, 2) for i in range(3)}, pairs())
    with activated(node, {"pairs": Kept(torch.ones(3))}):
        assert node.kept.is_soft
        with pytest.raises(ValueError, match="is soft"):
            extract(node, {})
    assert node.kept.value == (1, 2)
