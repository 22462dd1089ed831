# SPDX-License-Identifier: Apache-2.0
"""Names, activation, extraction and batch-norm re-calibration of networks with choices."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts.layer_contract import assert_nothing_shared, assert_plain
from sartor.choice import Choice, Derived, Size
from sartor.supernet import activated, extract, named_choices, recalibrate_batchnorm, search_space

torch.set_num_threads(1)


class Bare(nn.Module):
    """Holds whatever attributes it is given."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def names(model: nn.Module) -> list[str]:
    return list(named_choices(model))


class Net(nn.Module):
    """Stem, searched stack, head: (N, 2, H, W) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = Choice([2, 4, 6])
        self.stem = elastic.Conv2d(2, self.width, 3, padding=1)
        blocks = [
            elastic.OneOf({"conv": elastic.Conv2d(self.width, self.width, Choice([1, 3]), padding="same"),
                           "none": nn.Identity()})
            for _ in range(3)
        ]  # fmt: skip
        self.stack = elastic.Repeat(*blocks, depth=Choice([1, 2, 3]))
        self.norm = elastic.BatchNorm2d(self.width)
        self.head = elastic.Linear(self.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.norm(self.stack(self.stem(x)))).mean((2, 3)))
        return out


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


# ---- extraction ----------------------------------------------------------------------------------------------


def test_extraction_never_copies_the_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(nn.Module):
        """Nearly all of its memory is in one searched layer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = elastic.Linear(1000, Choice([1, 1000]))

    model, largest = Wide(), [0]
    real = Tensor.clone

    def watched(self: Tensor, **keywords: Any) -> Tensor:
        largest[0] = max(largest[0], self.numel())
        return real(self, **keywords)

    def refuse(self: nn.Module, memo: object) -> nn.Module:
        raise AssertionError(f"deepcopy of {type(self).__name__}")

    monkeypatch.setattr(Tensor, "clone", watched)
    monkeypatch.setattr(nn.Module, "__deepcopy__", refuse, raising=False)
    gc.collect()
    small = extract(model, {"layer.out_features": 1})
    assert largest[0] == 1000
    assert sum(p.numel() for p in small.parameters()) == 1001


def test_extraction_leaves_the_supernet_alone() -> None:
    model = Net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    small = extract(model, search_space(model).smallest())
    assert_plain(small)
    assert_nothing_shared(model, small)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    attributes[""].add("_elastic_names")  # the cache of names
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes


def test_soft_choices_cannot_be_extracted() -> None:
    model = Net()
    named_choices(model)["stack.2.conv.kernel_size"].set(torch.ones(2) / 2)
    with pytest.raises(ValueError, match=r"choice 'stack.2.conv.kernel_size' is soft"):
        extract(model, {"width": 2})


def test_training_mode_and_ordinary_modules_remain() -> None:
    model: Any = nn.Sequential(Net(), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    model[1].eval()
    small: Any = extract(model, {"0.width": 2})
    assert [type(small[0]), type(small[0].stack)] == [Net, nn.Sequential]
    assert [module.training for module in small.children()] == [True, False, True]
    assert torch.equal(small[2].weight, model[2].weight) and small[2].weight is not model[2].weight


def test_empty_containers_are_copied() -> None:
    """An empty Sequential is falsy."""
    model = Bare(empty=nn.Sequential(), width=Choice([1, 2]))
    assert extract(model, {}).empty is not model.empty


@dataclasses.dataclass
class Config:
    width: int | Size
    unrelated: list[int]


Pair = collections.namedtuple("Pair", "a b")


def test_attributes_become_values_wherever_they_are() -> None:
    width, kept = Choice([2, 4]), Choice([(0, 2), (0, 1, 2)])
    model: Any = Bare(
        width=width, kept=kept, double=width * 2, kind=Choice(["relu", "gelu"]), flag=Choice([False]),
        sizes=[width, (kept, 3)], of={"a": width}, pair=Pair(width, 1), config=Config(width, [1]), none=None,
    )  # fmt: skip
    small: Any = extract(model, {"width": 2, "kept": (0, 2), "kind": "relu"})
    assert_plain(small)
    assert (small.width, small.kept, small.double, small.kind, small.flag) == (2, (0, 2), 4, "relu", False)
    assert small.sizes == [2, ((0, 2), 3)] and small.of == {"a": 2} and small.pair == Pair(2, 1)
    assert small.config == Config(2, [1]) and small.config.unrelated is not model.config.unrelated
    assert named_choices(small) == {} and not model.sizes == small.sizes


def test_attributes_that_refer_to_modules_find_their_copies() -> None:
    model: Any = Bare(first=elastic.Linear(2, Choice([1, 2])))
    model.plain_list = [model.first]  # a list of modules is no ModuleList: torch does not see it
    model.later = nn.Linear(1, 1)
    model.bound = model.later.forward
    small: Any = extract(model, {"first.out_features": 1})
    assert small.plain_list[0] is small.first
    assert small.bound.__self__ is small.later


def test_shared_modules_stay_shared() -> None:
    norm = elastic.BatchNorm1d(Choice([2, 4]))
    model = nn.Sequential(norm, elastic.OneOf({"norm": norm, "none": nn.Identity()}), norm)
    small: Any = extract(model, {"1.choice": "norm", "0.num_features": 2})
    assert small[0] is small[1] is small[2]


def tied(a: Choice, b: Choice) -> nn.Module:
    model: Any = nn.Sequential(elastic.Embedding(5, a), elastic.Linear(b, 5, bias=False))
    model[1].weight = model[0].weight
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_parameters_stay_tied(device: str) -> None:
    width = Choice([2, 4])
    with torch.device(device):
        small: Any = extract(tied(width, width), {"0.embedding_dim": 2})
    assert small[0].weight is small[1].weight and small[0].weight.shape == (5, 2)
    assert len(list(small.parameters())) == 1


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_slices_of_a_tied_parameter_are_untied(device: str) -> None:
    """Even where both have one shape and, at initialisation, one content."""
    with torch.device(device):
        model: Any = tied(Choice([(0, 1), (0, 1, 2)]), Choice([(1, 2), (0, 1, 2)]))
        nn.init.zeros_(model[0].weight)
        small: Any = extract(model, {"0.embedding_dim": (0, 1), "1.in_features": (1, 2)})
    assert small[0].weight is not small[1].weight


def test_parameters_tied_to_an_ordinary_module() -> None:
    model: Any = nn.Sequential(
        nn.Embedding(5, 4), elastic.Linear(4, 5, bias=False), elastic.Linear(Choice([2, 4]), 5, False)
    )
    model[1].weight = model[2].weight = model[0].weight
    small: Any = extract(model, {"2.in_features": 4})
    assert small[0].weight is small[1].weight is small[2].weight
    small = extract(model, {"2.in_features": 2})
    assert small[0].weight is small[1].weight is not small[2].weight


def test_parameters_and_buffers_of_the_users_own_modules() -> None:
    model = Bare(scale=nn.Parameter(torch.ones(3)), width=Choice([1, 2]))
    model.register_buffer("count", torch.zeros(2), persistent=False)
    small: Any = extract(model, {})
    assert isinstance(small.scale, nn.Parameter) and small.scale is not model.scale
    assert list(small.state_dict()) == ["scale"] and torch.equal(small.count, torch.zeros(2))


def test_an_elastic_model_itself() -> None:
    small = extract(elastic.Linear(2, Choice([1, 2])), {"out_features": 1})
    assert type(small) is nn.Linear and small.out_features == 1
    assert type(extract(elastic.OneOf({"a": nn.Identity()}), {"choice": "a"})) is nn.Identity


# ---- batch-norm re-calibration -------------------------------------------------------------------------------


def batches(count: int) -> list[Tensor]:
    return [torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(i)) * 2 + 1 for i in range(count)]


def calibrated(*inputs: Tensor) -> Any:
    torch.manual_seed(0)
    small = extract(Net(), {"width": 4, "stack.depth": 1, "stack.0.choice": "none"})
    recalibrate_batchnorm(small, inputs)
    return small


def test_one_batch_gives_its_own_statistics() -> None:
    (images,) = batches(1)
    small = calibrated(images)
    seen = small.stem(images)
    assert torch.allclose(small.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert torch.allclose(small.norm.running_var, seen.var((0, 2, 3), unbiased=True), rtol=1e-5)


def test_several_batches_give_the_plain_average() -> None:
    singles = [calibrated(images).norm.running_var for images in batches(3)]
    assert torch.allclose(calibrated(*batches(3)).norm.running_var, torch.stack(singles).mean(0), rtol=1e-5)


def test_recalibration_is_idempotent_and_keeps_everything_else() -> None:
    small = calibrated(*batches(2))
    small.train()
    small.stem.eval()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    recalibrate_batchnorm(small, iter(batches(2)))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert small.training and small.norm.training and not small.stem.training
    assert small.norm.momentum == 0.1
    assert all(p.grad is None for p in small.parameters())


def test_recalibration_never_touches_the_supernet() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate_batchnorm(extract(model, {"width": 6}), batches(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_recalibration_without_a_batch_raises_and_restores() -> None:
    small: Any = extract(Net(), {}).train()
    with pytest.raises(ValueError, match="give at least one batch of training images"):
        recalibrate_batchnorm(small, [])
    assert small.norm.momentum == 0.1 and small.training


def test_recalibration_resizes_to_the_network() -> None:
    class Resized(Net):
        def __init__(self) -> None:
            super().__init__()
            self.resolution = Choice([3, 5])

    small: Any = extract(Resized(), {"resolution": 3})
    recalibrate_batchnorm(small, batches(1))
    assert torch.allclose(
        small.norm.running_mean,
        small.stack(small.stem(elastic.resized(batches(1)[0], small))).mean((0, 2, 3)), rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_two_models_never_share_state() -> None:
    a, b = Net(), Net()
    with activated(a, {"width": 2}):
        assert named_choices(b)["width"].value == 6
    assert not set(map(id, named_choices(a).values())) & set(map(id, named_choices(b).values()))


def test_random_architectures_of_one_network_are_distinct_networks() -> None:
    """Equal networks are equal keys: canonical architectures that differ give networks that differ."""
    model = Net()
    space, rng = search_space(model), random.Random(0)
    drawn = {space.sample(rng) for _ in range(3000)}
    shapes = {str([(n, tuple(p.shape)) for n, p in extract(model, arch).named_parameters()]) + str(extract(model, arch))
              for arch in drawn}  # fmt: skip
    assert len(shapes) == len(drawn) == space.size


def test_a_derived_size_alone_is_an_attribute() -> None:
    width = Choice([2, 4])
    model = Bare(double=Derived(max, width, 3))
    assert names(model) == ["double"]
    assert vars(extract(model, {"double": 2}))["double"] == 3
