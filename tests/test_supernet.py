# SPDX-License-Identifier: Apache-2.0
"""Networks with choices: the names of these, the space that they span, and activation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import sartor.nn as elastic
from elastic_networks import Bare, Net
from sartor.choice import Choice
from sartor.supernet import activated, named_choices, search_space

torch.set_num_threads(1)


def names(model: nn.Module) -> list[str]:
    return list(named_choices(model))


# ---- names: they are the file format -------------------------------------------------------------------------


def test_names_are_paths_and_the_first_owner_wins() -> None:
    assert names(Net()) == [
        "width",
        "stack.depth",
        "stack.0.choice",
        "stack.0.conv.kernel_size",
        "stack.1.choice",
        "stack.1.conv.kernel_size",
        "stack.2.choice",
        "stack.2.conv.kernel_size",
    ]


def test_layers_name_by_torch_attributes() -> None:
    model = nn.Sequential(elastic.Linear(2, Choice([2, 4])), elastic.Conv2d(2, Choice([2]), Choice([1, 3]), 1, "same"))
    assert names(model) == ["0.out_features", "1.out_channels", "1.kernel_size"]


def test_own_name_wins_over_the_path() -> None:
    width = Choice([2, 4], name="stages.0.width")
    model = nn.Sequential(elastic.Linear(2, width), elastic.Linear(width, 1))
    assert names(model) == ["stages.0.width"]


def test_collections_add_their_position_or_key() -> None:
    model = Bare(
        widths=[Choice([1]), (Choice([2]), 3)], of={"a": Choice([3]), "b": {"c": Choice([4])}}, last=Choice([5])
    )
    assert names(model) == ["widths.0", "widths.1.0", "of.a", "of.b.c", "last"]


def test_a_choice_known_only_through_a_derived_size_is_named_there() -> None:
    assert names(nn.Sequential(elastic.Linear(Choice([1, 2]) * 4, 3))) == ["0.in_features"]


def test_two_choices_of_one_name_raise() -> None:
    with pytest.raises(ValueError, match=r"two choices are named 'w'.*at 1.out_features.*give one of them name"):
        names(nn.Sequential(*[elastic.Linear(2, Choice([2, 4], name="w")) for _ in range(2)]))
    with pytest.raises(ValueError, match=r"two choices are named '0.in_features'"):
        names(nn.Sequential(elastic.Linear(Choice([1, 2]) * Choice([1, 3]), 3)))


def test_shared_modules_name_once() -> None:
    block: Any = elastic.Linear(4, 4)
    block.extra = Choice([1, 2])
    model = nn.Sequential(block, block)
    assert names(model) == ["0.extra"]


def test_plain_networks_have_no_choices() -> None:
    assert names(nn.Linear(1, 1)) == []
    with activated(nn.Linear(1, 1), {}):
        pass


# ---- the space: options and gates ----------------------------------------------------------------------------


def test_gates_follow_the_containers() -> None:
    space = search_space(Net())
    assert space.choices["stack.2.choice"] == ("conv", "none")
    assert dict(space.gates) == {
        "stack.0.conv.kernel_size": ((("stack.0.choice", ("conv",)),),),
        "stack.1.choice": ((("stack.depth", (2, 3)),),),
        "stack.1.conv.kernel_size": ((("stack.depth", (2, 3)), ("stack.1.choice", ("conv",))),),
        "stack.2.choice": ((("stack.depth", (3,)),),),
        "stack.2.conv.kernel_size": ((("stack.depth", (3,)), ("stack.2.choice", ("conv",))),),
    }
    assert space.size == 3 * (3 + 3 * 3 + 3 * 3 * 3)


def test_a_choice_with_two_owners_has_two_alternatives() -> None:
    shared = Choice([2, 4], name="shared")
    model = elastic.OneOf({"a": Bare(x=shared), "b": Bare(x=shared), "c": Bare()})
    assert search_space(model).gates["shared"] == ((("choice", ("a",)),), (("choice", ("b",)),))


def test_a_choice_that_is_also_used_outside_is_always_active() -> None:
    width = Choice([2, 4], name="w")
    assert "w" not in search_space(nn.Sequential(elastic.OneOf({"a": Bare(x=width), "b": Bare()}), Bare(x=width))).gates


def test_a_shared_module_is_active_at_either_place() -> None:
    block = Bare(x=Choice([2, 4], name="w"))
    model = nn.Sequential(elastic.OneOf({"a": block, "b": Bare()}, name="1st"),
                          elastic.OneOf({"a": block, "b": Bare()}, name="2nd"))  # fmt: skip
    assert search_space(model).gates["w"] == ((("1st", ("a",)),), (("2nd", ("a",)),))


def test_a_depth_may_be_derived_from_one_choice() -> None:
    blocks = [Bare(x=Choice([1, 2])) for _ in range(4)]
    model = elastic.Repeat(*blocks, depth=Choice([1, 2], name="pairs") * 2)
    assert search_space(model).gates == {"2.x": ((("pairs", (2,)),),), "3.x": ((("pairs", (2,)),),)}
    both = elastic.Repeat(*blocks, depth=Choice([1, 2], name="a") * Choice([1, 2], name="b"))
    with pytest.raises(ValueError, match="a depth must follow from one"):
        search_space(both)


def test_blocks_that_never_run_leave_a_readable_space() -> None:
    blocks = [Bare(x=Choice([1, 2])) for _ in range(3)]
    space = search_space(elastic.Repeat(*blocks, depth=Choice([1, 2])))
    assert space.size == 2 + 2 * 2 and not space.is_active("2.x", space.largest())


# ---- activation ----------------------------------------------------------------------------------------------


def test_activation_restores_what_was() -> None:
    model = Net()
    choices = named_choices(model)
    with activated(model, {"width": 2, "stack.depth": 1}) as same:
        assert same is model and choices["width"].value == 2
        with activated(model, {"width": torch.ones(3) / 3}):
            assert choices["width"].is_soft and choices["stack.depth"].value == 1
            with activated(model, {"width": 4}):
                assert choices["width"].value == 4
            assert choices["width"].is_soft
        assert choices["width"].value == 2
    assert choices["width"].value == 6 and choices["stack.depth"].value == 3


def test_activation_restores_after_an_exception() -> None:
    model = Net()
    with pytest.raises(RuntimeError, match="inside"), activated(model, {"width": 2}):
        raise RuntimeError("inside")
    assert named_choices(model)["width"].value == 6


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ({"width": 2, "depht": 1}, "no choice 'depht'; its choices are: width, stack.depth"),
        ({"width": 2, "stack.depth": 9}, r"choice 'stack.depth': 9 is not one of the options \(1, 2, 3\)"),
        ({"width": 2, "stack.depth": torch.ones(2)}, r"choice 'stack.depth': .*weights of shape \(3,\)"),
    ],
)
def test_what_is_unknown_raises_and_changes_nothing(assignment: dict[str, Any], message: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=message), activated(model, assignment):
        pytest.fail("entered")
    assert named_choices(model)["width"].value == 6


def test_the_cache_notices_replaced_modules_and_sizes() -> None:
    model: Any = nn.Sequential(elastic.Linear(2, Choice([2, 4])), nn.Identity())
    with activated(model, {"0.out_features": 2}):
        pass
    model[1] = elastic.Linear(2, Choice([1, 3]))
    with activated(model, {"1.out_features": 1}):
        pass
    model[0] = elastic.Linear(2, Choice([5, 6]))
    with activated(model, {"0.out_features": 5}):
        assert named_choices(model)["0.out_features"].value == 5
    model[0].out_features = Choice([1, 6])
    with activated(model, {"0.out_features": 1}):
        assert named_choices(model)["0.out_features"].value == 1
    model[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"no choice '0.out_features'"), activated(model, {"0.out_features": 1}):
        pass


def test_the_cache_notices_replaced_sizes_in_collections() -> None:
    model: Any = Bare(widths=[Choice([1, 2]), Choice([1, 2])])
    with activated(model, {"widths.1": 1}):
        pass
    model.widths[1] = Choice([3, 4])
    with activated(model, {"widths.1": 3}):
        assert int(model.widths[1]) == 3


def test_copies_leave_the_cache_behind() -> None:
    model = Net()
    with activated(model, {"width": 2}):
        pass
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with activated(twin, {"width": 2}):
            assert named_choices(twin)["width"].value == 2
            assert named_choices(model)["width"].value == 6


def test_two_models_never_share_state() -> None:
    a, b = Net(), Net()
    with activated(a, {"width": 2}):
        assert named_choices(b)["width"].value == 6
    assert not set(map(id, named_choices(a).values())) & set(map(id, named_choices(b).values()))
