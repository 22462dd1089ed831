# SPDX-License-Identifier: Apache-2.0
"""The domain, against brute force: every property on generated spaces with nested gates."""

import itertools
import pickle
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.architecture import Architecture, Option
from sartor.gates import Gate
from sartor.space import NothingFound, SearchSpace

PALETTES: list[tuple[Option, ...]] = [
    (1, 2, 3),
    (True, False),
    (1, True, 1.0),
    ("a", "b"),
    ((1,), (1, 2)),
    (None, 0.25),
    (7,),
]


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    count = draw(st.integers(1, 6))
    names = draw(st.permutations([f"c{i}" for i in range(count)]))  # parents need not sort first
    choices = {name: draw(st.sampled_from(PALETTES)) for name in names}
    gates: dict[str, Gate] = {}
    for position, name in enumerate(names):
        if position and draw(st.booleans()):
            condition = st.sampled_from(names[:position]).flatmap(
                lambda other: st.tuples(
                    st.just(other),
                    st.lists(st.sampled_from(choices[other]), unique_by=repr, max_size=2).map(tuple),
                )
            )
            gates[name] = tuple(draw(st.lists(st.lists(condition, max_size=2).map(tuple), max_size=3)))
    return SearchSpace(choices, gates)


def everything(space: SearchSpace) -> set[Architecture]:
    products = itertools.product(*space.choices.values())
    return {space.canonical(dict(zip(space.choices, options, strict=True))) for options in products}


seeds = st.integers(0, 10_000).map(random.Random)


@given(spaces())
def test_size_counts_the_distinct_architectures(space: SearchSpace) -> None:
    assert space.size == len(space) == len(everything(space))


@given(spaces())
def test_canonical_is_idempotent_and_in_the_space(space: SearchSpace) -> None:
    for arch in everything(space):
        assert space.canonical(arch) == arch and arch in space
        active = {name: arch[name] for name in arch if space.is_active(name, arch)}
        assert space.canonical(active) == arch  # what is inactive need not be given


@given(spaces(), seeds)
def test_everything_drawn_is_in_the_space(space: SearchSpace, rng: random.Random) -> None:
    a, b = space.sample(rng), space.sample(rng)
    for arch in (a, b, space.crossover(a, b, rng), space.largest(), space.smallest()):
        assert arch in space
    assert all(space.crossover(a, b, rng)[name] in (a[name], b[name], space.choices[name][0]) for name in a)


@given(spaces(), seeds, st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_a_mutant_differs_and_is_a_neighbour(space: SearchSpace, rng: random.Random, rate: float | None) -> None:
    arch = space.sample(rng)
    neighbours = space.neighbours(arch)
    if not neighbours:
        with pytest.raises(NothingFound):
            space.mutate(arch, rng, rate)
        return
    mutant = space.mutate(arch, rng, rate)
    assert mutant in space and mutant != arch
    if not rate:
        assert mutant in neighbours


@given(spaces(), seeds)
def test_neighbours_are_all_one_choice_changes(space: SearchSpace, rng: random.Random) -> None:
    arch = space.sample(rng)
    expected = {
        space.canonical({**arch, name: option})
        for name, options in space.choices.items()
        if space.is_active(name, arch)
        for option in options
    } - {arch}
    found = space.neighbours(arch)
    assert set(found) == expected and len(found) == len(expected)


@given(spaces())
def test_json_pickle_and_equality(space: SearchSpace) -> None:
    for back in (SearchSpace.from_json(space.to_json()), pickle.loads(pickle.dumps(space))):
        assert back == space and hash(back) == hash(space)
    assert everything(space.restrict()) == everything(space)


@given(spaces(), st.data())
def test_restricted_space_is_a_part(space: SearchSpace, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(space.choices)))
    option = data.draw(st.sampled_from(space.choices[name]))
    part = space.restrict({name: [option]})
    inside = {
        arch
        for arch in everything(space)
        if not space.is_active(name, arch) or Architecture({"x": arch[name]}) == Architecture({"x": option})
    }
    assert {space.canonical(arch) for arch in everything(part)} == inside
    assert part.size == len(inside)


MIXED = SearchSpace(
    {
        "depth": (1, 2, 3),
        "op": ("conv", "pool"),
        "kernel": (3, 5),
        "se": (False, True),
        "exits": ((1,), (1, 2)),
    }
)


def test_extremes() -> None:
    assert dict(MIXED.largest()) == {"depth": 3, "exits": (1, 2), "kernel": 5, "op": "pool", "se": True}
    assert dict(MIXED.smallest()) == {"depth": 1, "exits": (1,), "kernel": 3, "op": "conv", "se": False}
    assert dict(SearchSpace({"a": (8, 2), "b": (None, 4, 2)}).largest()) == {"a": 8, "b": 2}


def test_true_is_not_one() -> None:
    space = SearchSpace({"a": (1, True), "b": (0, 1)}, {"b": ((("a", (True,)),),)})
    assert space.size == 3
    assert not space.is_active("b", {"a": 1, "b": 0}) and space.is_active("b", {"a": True, "b": 0})
    with pytest.raises(ValueError, match="True is no option of 'b'"):
        space.canonical({"a": True, "b": True})
    assert Architecture({"a": 1.0, "b": 0}) not in space


def test_an_inactive_parent_gates_off() -> None:
    space = SearchSpace({"a": (0, 1), "b": (0, 1), "c": (0, 1)}, {"b": ((("a", (1,)),),), "c": ((("b", (0,)),),)})
    assert not space.is_active("c", {"a": 0, "b": 0, "c": 1})  # b holds its first option, but is not there
    assert space.size == 4


def test_size_of_large_spaces_is_exact_and_quick() -> None:
    stages = range(12)
    choices: dict[str, tuple[Option, ...]] = {f"s{s}.depth": (1, 2, 3, 4) for s in stages}
    choices |= {f"s{s}.{block}.{what}": (3, 5, 7) for s in stages for block in range(4) for what in "ke"}
    gates = {
        f"s{s}.{block}.{what}": (((f"s{s}.depth", tuple(range(block + 1, 5))),),)
        for s in stages for block in range(4) for what in "ke"
    }  # fmt: skip
    space = SearchSpace(choices, gates)
    assert space.size == (9 + 9**2 + 9**3 + 9**4) ** 12
    with pytest.raises(OverflowError, match="too large for len"):
        len(space)
    assert space.size > sys.maxsize and bool(space)


def test_a_shared_choice_behind_many_alternatives() -> None:
    choices: dict[str, tuple[Option, ...]] = {f"op{i:02}": ("conv", "pool", "skip") for i in range(30)}
    space = SearchSpace({**choices, "width": (8, 16)}, {"width": tuple(((name, ("conv",)),) for name in choices)})
    assert space.size == 2 * (3**30 - 2**30) + 2**30


def test_sampling_is_uniform_per_choice() -> None:
    rng = random.Random(0)
    counts = Counter(MIXED.sample(rng)["depth"] for _ in range(6000))
    assert sum((count - 2000) ** 2 / 2000 for count in counts.values()) < 13.8  # chi-square, 2 degrees, p = 0.001


def test_mutation_by_rate_is_independent_given_one_change() -> None:
    space, rng, rate = SearchSpace({f"c{i}": (0, 1) for i in range(4)}), random.Random(0), 0.25
    zero = space.smallest()
    counts = Counter(tuple(space.mutate(zero, rng, rate).values()) for _ in range(20_000))
    none = (1 - rate) ** 4
    for bits in itertools.product((0, 1), repeat=4):
        ones = sum(bits)
        expected = 20_000 * rate**ones * (1 - rate) ** (4 - ones) / (1 - none) if ones else 0
        assert abs(counts[bits] - expected) <= 4 * expected**0.5


# ---- constraints ----------------------------------------------------------------------------------


def small(arch: Architecture) -> bool:
    return arch["depth"] * arch["kernel"] <= 6  # type: ignore[operator]


@settings(max_examples=25)
@given(seeds)
def test_a_constraint_holds_for_all_that_is_drawn(rng: random.Random) -> None:
    space = SearchSpace(MIXED.choices, {}, small)
    a, b = space.sample(rng), space.sample(rng)
    drawn = [
        a,
        space.mutate(a, rng),
        space.mutate(a, rng, 0.5),
        space.crossover(a, b, rng),
        *space.neighbours(a),
    ]
    assert all(small(arch) and arch in space for arch in drawn)
    assert space.largest() not in space and Architecture(space.largest()) in MIXED


def never(arch: Architecture) -> bool:
    return False


def test_an_impossible_constraint_is_said() -> None:
    space, rng = SearchSpace({"a": (1, 2, 3)}, {}, never), random.Random(0)
    arch = Architecture({"a": 1})
    draws: list[Callable[[], Architecture]] = [
        lambda: space.sample(rng),
        lambda: space.mutate(arch, rng, 0.5),
        lambda: space.crossover(arch, arch, rng),
    ]
    for draw in draws:
        with pytest.raises(NothingFound, match="the constraint refused"):
            draw()
    with pytest.raises(NothingFound, match="one change away"):
        space.mutate(arch, rng)
    assert space.neighbours(arch) == []


# ---- what a user gets wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "gates", "message"),
    [
        ({}, {}, "at least one choice"),
        ({"a": ()}, {}, "the options of 'a' must be a tuple of at least one"),
        ({"a": "xy"}, {}, "the options of 'a' must be a tuple"),
        ({"a": (1, 1)}, {}, "the options of 'a' repeat"),
        ({"a": (float("nan"),)}, {}, "cannot be an option"),
        ({"": (1,)}, {}, "no string, or empty"),
        ({"a": (1,)}, {"b": ((),)}, "a gate is set for 'b'"),
        ({"a": (1,)}, {"a": ((("b", (1,)),),)}, "asks for 'b', but no choice"),
        ({"a": (1,), "b": (1,)}, {"a": ((("b", (True,)),),)}, "asks for True, which is no option of 'b'"),
        ({"a": (1,), "b": (1,)}, {"a": (1, 2)}, "must be alternatives"),
        ({"a": (1,), "b": (1,)}, {"a": ((("b", (1,)),),), "b": ((("a", (1,)),),)}, "a, b depend on"),
        ({"a": (1,)}, {"a": ((("a", (1,)),),)}, "depend on each other"),
    ],
)  # fmt: skip
def test_wrong_spaces(choices: dict[str, tuple[Option, ...]], gates: dict[str, Gate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace(choices, gates)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 9}, r"9 is no option of 'depth': its options are 1, 2, 3"),
        ({"dept": 1}, r"no choice is named 'dept': the names are 'depth', 'exits'"),
        ({"depth": 1}, r"the choice '\w+' is missing: its options are"),
        ({"depth": [1]}, r"\(1,\) is no option of 'depth'"),
    ],
)
def test_wrong_values(values: dict[str, Option], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIXED.canonical(values)
    assert values not in MIXED and Architecture(values) not in MIXED


def test_wrong_restrictions_rates_and_json() -> None:
    assert MIXED.restrict(depth=[3, 2], kernel=5, exits=[(1, 2)], op="conv").size == 2 * 2
    wrong: dict[str, Any]
    for wrong in ({"dept": 1}, {"depth": [1, 9]}, {"depth": []}, {"se": [1]}):
        with pytest.raises(ValueError, match=r"no choice is named|are not all options"):
            MIXED.restrict(wrong)
    with pytest.raises(ValueError, match="it is a probability"):
        MIXED.mutate(MIXED.smallest(), random.Random(0), 1.5)
    with pytest.raises(ValueError, match="no choice is named 'x'"):
        MIXED.neighbours(Architecture({"x": 1}))
    for text in ("", "[]", "{}", '{"format": 2}', '{"format": 1, "choices": 3, "gates": {}}', "[" * 100_000):
        with pytest.raises(ValueError):
            SearchSpace.from_json(text)


def test_a_space_does_not_change() -> None:
    with pytest.raises(TypeError):
        MIXED.choices["depth"] = (1,)  # type: ignore[index]
    assert MIXED != SearchSpace({"a": (1,)}) and MIXED != 3
    assert SearchSpace({"a": (1,)}) != SearchSpace({"a": (True,)})
