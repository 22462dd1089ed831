# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import operator
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest

from sartor.architecture import Architecture
from sartor.oneshot import BigNAS
from sartor.oneshot.alphanet import AlphaNet
from sartor.oneshot.attentivenas import AttentiveNAS
from sartor.oneshot.instatune import InstaTune
from sartor.oneshot.llama_nas import LLaMANAS
from sartor.oneshot.mixture_of_supernets import MixtureOfSupernets
from sartor.oneshot.ofa import OFA
from sartor.oneshot.sampling import (
    at_random_width,
    at_width,
    at_widths,
    ends,
    fair,
    ordered,
    sandwich,
    uniform,
    weighted,
)
from sartor.oneshot.slimmable import Slimmable
from sartor.oneshot.universally_slimmable import UniversallySlimmable
from sartor.space import NothingFound, SearchSpace
from sartor.supernet import search_space
from toy_group_net import GroupNet
from toy_supernet import ToyNet

SPACE = SearchSpace({"a": (1, 2, 3), "b": (4, 5, 6), "c": ("x", "y")})
CELL = SearchSpace({f"edge.{i}": ("none", "skip", "conv", "pool") for i in range(5)})


def impossible(arch: Architecture) -> bool:
    return False


def test_a_sandwich_begins_with_its_bread() -> None:
    for space in (SPACE, search_space(GroupNet())):
        found = sandwich(space, random.Random(0), 3)
        assert found[:2] == [space.largest(), space.smallest()] and len(found) == 5
        assert all(arch in space for arch in found)


def test_fair_draws_hold_each_option_equally_often() -> None:
    for seed in range(20):
        found = fair(CELL, random.Random(seed))
        assert len(found) == 4
        assert all({*Counter(arch[name] for arch in found).values()} == {1} for name in CELL.choices)


def test_a_choice_of_fewer_options_begins_another_permutation() -> None:
    total: Counter[object] = Counter()
    for seed in range(2000):
        found = fair(SPACE, random.Random(seed))
        assert len(found) == 3 and {*Counter(arch["a"] for arch in found).values()} == {1}
        assert sorted(Counter(arch["c"] for arch in found).values()) == [1, 2]
        total.update(arch["c"] for arch in found)
    assert abs(total["x"] - total["y"]) < 200


def test_fair_draws_of_choices_are_independent_and_in_random_order() -> None:
    first = Counter((fair(CELL, random.Random(seed))[0]["edge.0"]) for seed in range(2000))
    assert len(first) == 4 and max(first.values()) < 600
    pairs = Counter((one["edge.0"], one["edge.1"]) for seed in range(2000) for one in fair(CELL, random.Random(seed)))
    assert len(pairs) == 16 and max(pairs.values()) < 650


def test_fair_and_weighted_draws_meet_the_constraint_or_say_so() -> None:
    mixed = SearchSpace(SPACE.choices, constraint=lambda arch: arch["a"] != 1 or arch["c"] == "x")
    for seed in range(50):
        assert all(arch in mixed for arch in fair(mixed, random.Random(seed)))
        assert weighted(mixed, random.Random(seed), {"a": (1, 0, 0)}) in mixed
    none = SearchSpace(SPACE.choices, constraint=impossible)
    for draw in (lambda: fair(none, random.Random(0)), lambda: weighted(none, random.Random(0), {})):
        with pytest.raises(NothingFound, match="constraint of the space"):
            draw()


def test_ends_that_a_constraint_excludes_are_refused_and_widths_drawn_again() -> None:
    free = SearchSpace({"a": (2, 4, 6, 8), "b": (1, 2)})
    for excluded, which in ((free.largest(), "largest"), (free.smallest(), "smallest")):
        narrow = SearchSpace(free.choices, constraint=partial(operator.ne, excluded))
        for draw in (ends, lambda space: sandwich(space, random.Random(0))):
            with pytest.raises(ValueError, match=f"excludes the {which} sub-network, which is trained"):
                draw(narrow)
    assert ends(free) == (free.largest(), free.smallest())
    odd = SearchSpace(free.choices, constraint=lambda arch: arch["a"] != 6)
    with pytest.raises(ValueError, match=r"excludes the sub-network of width 0\.75"):
        at_width(odd, 0.75)
    for seed in range(50):
        assert (
            at_random_width(odd, random.Random(seed), 0.25) in odd and at_widths(odd, random.Random(seed), 0.25) in odd
        )
        assert at_random_width(free, random.Random(seed), 0.25) == at_width(free, random.Random(seed).uniform(0.25, 1))


ENDS = {"bignas": BigNAS, "attentivenas": AttentiveNAS, "alphanet": AlphaNet, "ofa": OFA, "slimmable": Slimmable,
        "universally_slimmable": UniversallySlimmable, "mixture_of_supernets": MixtureOfSupernets,
        "instatune": InstaTune, "llama_nas": LLaMANAS}  # fmt: skip


@pytest.mark.parametrize("kind", ENDS.values(), ids=ENDS)
def test_learners_of_the_largest_refuse_a_constraint_that_excludes_it(kind: Any) -> None:
    net = ToyNet()
    free = search_space(net)
    narrow = SearchSpace(free.choices, free.gates, lambda arch: arch != free.largest())
    with pytest.raises(ValueError, match="the constraint of the space excludes the "):
        kind(net, narrow, steps=4, batch_size=8)


def test_weights_are_the_chances_of_options() -> None:
    rng = random.Random(0)
    found = [weighted(SPACE, rng, {"a": (0.7, 0.3, 0.0), "c": (0.0, 1.0)}) for _ in range(4000)]
    shares = Counter(arch["a"] for arch in found)
    assert shares[1] / 4000 == pytest.approx(0.7, abs=0.03) and shares[3] == 0
    assert {arch["c"] for arch in found} == {"y"}
    assert all(count == pytest.approx(4000 / 3, rel=0.1) for count in Counter(arch["b"] for arch in found).values())


def test_ordered_draws_differ_in_what_is_named_alone() -> None:
    space = search_space(GroupNet())
    found = ordered(space, random.Random(1), 20, ["width", "blocks.0.hidden"])
    assert len({arch["width"] for arch in found}) == 3
    for name in space.choices:
        if name not in ("width", "blocks.0.hidden"):
            assert len({arch[name] for arch in found}) == 1, name


def test_a_width_takes_the_nearest_option_of_all_choices() -> None:
    assert at_width(SPACE, 1.0) == SPACE.largest() and at_width(SPACE, 0.0) == SPACE.smallest()
    assert at_width(SPACE, 0.5)["a"] == 2 and at_width(SPACE, 0.84)["a"] == 3
    drawn = [at_widths(SPACE, random.Random(seed), 0.6) for seed in range(50)]
    assert {arch["a"] for arch in drawn} == {2, 3} and all(arch in SPACE for arch in drawn)


def test_draws_depend_on_the_generator_alone() -> None:
    space = search_space(GroupNet())
    draws = (uniform, sandwich, lambda s, r: fair(s, r), lambda s, r: [weighted(s, r, {})])
    for draw in draws:
        assert draw(space, random.Random(7)) == draw(space, random.Random(7))
        assert any(draw(space, random.Random(7)) != draw(space, random.Random(seed)) for seed in range(3))
