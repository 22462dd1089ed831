# SPDX-License-Identifier: Apache-2.0
"""Sub-networks: extraction from a network with choices, and batch-norm re-calibration."""

from __future__ import annotations

import collections
import dataclasses
import gc
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts.layer_contract import assert_nothing_shared, assert_plain
from elastic_networks import Bare, Net
from sartor.choice import Choice, Derived, Size
from sartor.supernet import extract, named_choices, recalibrate_batchnorm, search_space

torch.set_num_threads(1)


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
    assert list(named_choices(model)) == ["double"]
    assert vars(extract(model, {"double": 2}))["double"] == 3
