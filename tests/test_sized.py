# SPDX-License-Identifier: Apache-2.0
"""Layers that are made elastic where they stand: those of torch, and those of classes that nothing is known of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase
from layer_cases import Width, first, listed
from sartor.choice import Choice, Derived, PerSample, Size
from sartor.nn.adopted import Role, adopt, is_searched, length
from sartor.nn.sized import Axis, Sized, sized
from sartor.sizes import blocks
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)


class Transposed(nn.Module):
    """A linear layer that holds its weight as (in, out), as GPT-2 does."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.5)
        nn.init.normal_(self.bias)

    def __repr__(self) -> str:
        return "Transposed({nf}, {nx})".format(**self.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class RootMean(nn.Module):
    """A norm of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Places(nn.Embedding):
    """A table of places, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class Heads(nn.Module):
    """Means of heads, whose number it keeps."""

    def __init__(self, heads: int, scaled: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(1, heads, 1)) if scaled else None

    def reset_parameters(self) -> None:
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        means = x.view(*x.shape[:-1], self.heads, 2).mean(-1, keepdim=True)
        return torch.flatten(means if self.scale is None else means * self.scale, -2)


def adopted(width: Width, build: Callable[[], list[nn.Module]], *roles: tuple[int, Role]) -> nn.Module:
    """A chain of layers of which some follow a width: the place of the layer, and what it does with it."""
    layers, w = build(), width()
    for place, role in roles:
        adopt(layers[place], role, w)
    return nn.Sequential(*layers)


def both(name: str, build: Callable[[], list[nn.Module]], example: Callable[[], Tensor], *roles: tuple[int, Role]):  # type: ignore[no-untyped-def]
    """Two cases: by prefix, and by index list."""
    return [
        LayerCase(f"{name}{suffix}", partial(adopted, width, build, *roles), example)
        for width, suffix in ((first, ""), (listed, "-listed"))
    ]


def rows() -> Tensor:
    return torch.randn(4, 3, 5)


def image() -> Tensor:
    return torch.randn(3, 2, 5, 4)


def line() -> Tensor:
    return torch.randn(3, 2, 7)


def tokens() -> Tensor:
    return torch.randint(0, 9, (3, 4))


def heads(counts: Width, scaled: bool) -> nn.Module:
    count = counts()
    make, mid, read = nn.Linear(5, 12), Heads(6, scaled), nn.Linear(6, 3)
    adopt(make, "makes", Derived(blocks, count, 2))
    sized(mid, [Axis("scale", 1, count, "makes")] if scaled else [], {"heads": count})
    adopt(read, "reads", count)
    return nn.Sequential(make, mid, read)


SOFT = [
    *both("linear", lambda: [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)], rows, (0, "makes"), (2, "reads")),
    *both("transposed", lambda: [Transposed(6, 5), nn.Tanh(), Transposed(3, 6)], rows, (0, "makes"), (2, "reads")),
    *both(
        "places", lambda: [nn.Linear(5, 6), Places(9, 6), nn.Linear(6, 3)], rows,
        (0, "makes"), (1, "makes"), (2, "reads"),
    ),
    *both("embedding", lambda: [nn.Embedding(9, 6), nn.Linear(6, 3)], tokens, (0, "makes"), (1, "reads")),
    *both(
        "layernorm", lambda: [nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)], rows,
        (0, "makes"), (1, "follows"), (2, "reads"),
    ),
    *both(
        "rmsnorm", lambda: [nn.Linear(5, 6), nn.RMSNorm(6, eps=1e-6), nn.Linear(6, 3)], rows,
        (0, "makes"), (1, "follows"), (2, "reads"),
    ),
    *both(
        "conv", lambda: [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 3, 1)], image,
        (0, "makes"), (1, "follows"), (3, "reads"),
    ),
    *both(
        "depthwise", lambda: [nn.Conv1d(2, 6, 1), nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 3, 1)], line,
        (0, "makes"), (1, "follows"), (2, "reads"),
    ),
    LayerCase("counted", lambda: heads(first, True), rows),
    LayerCase("counted-listed", lambda: heads(listed, True), rows),
]  # fmt: skip
HARD = [
    *both(
        "own-norm", lambda: [nn.Linear(5, 6), RootMean(6), nn.Linear(6, 3)], rows,
        (0, "makes"), (1, "follows"), (2, "reads"),
    ),
    LayerCase("numbers", lambda: heads(first, False), rows),
    LayerCase("numbers-listed", lambda: heads(listed, False), rows),
]  # fmt: skip

every_layer = pytest.mark.parametrize("case", [*SOFT, *HARD], ids=lambda case: case.name)
every_soft_layer = pytest.mark.parametrize("case", SOFT, ids=lambda case: case.name)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extraction_equals_activation(case: LayerCase, dtype: torch.dtype) -> None:
    law.extraction_equals_activation(case, dtype)
    law.largest_is_exact(case, dtype)


@every_layer
def test_extraction_trains_and_loads_like_activation(case: LayerCase) -> None:
    law.extraction_trains_like_activation(case)
    law.state_dict_round_trip(case)


@every_layer
def test_nothing_is_shared_and_all_can_be_shown(case: LayerCase) -> None:
    law.copies_are_independent(case)
    law.extraction_shares_nothing(case)
    law.prints(case)


@every_layer
def test_meta_build_takes_no_memory(case: LayerCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_layer
def test_extractions_export(case: LayerCase) -> None:
    law.exports(case)


@every_soft_layer
def test_one_hot_equals_hard(case: LayerCase) -> None:
    law.one_hot_equals_hard(case)


@every_soft_layer
def test_gradients_reach_every_choice(case: LayerCase) -> None:
    law.gradients_reach_every_choice(case, training=False)


def test_the_same_layer_and_parameters_in_place() -> None:
    layer, width = nn.Linear(5, 6), first()
    weight, keys = layer.weight, list(layer.state_dict())
    assert adopt(layer, "makes", width) is layer
    assert isinstance(layer, elastic.Linear)
    assert layer.weight is weight and list(layer.state_dict()) == keys
    own = Transposed(6, 5)
    weight = own.weight
    assert adopt(own, "makes", width) is own
    assert isinstance(own, Sized) and isinstance(own, Transposed)
    assert type(own).__name__ == "Transposed" and own.nf == 6
    assert own._parameters["weight"] is weight and own.whole("weight") is weight


@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_what_has_no_expectation_is_refused_in_one_line(case: LayerCase) -> None:
    network = case.network()
    weights = {name: value.softmax(0) for name, value in law.relaxed(network).items()}
    with activated(network, weights), pytest.raises(ValueError, match=r"which is soft: give it an option") as error:
        network(case.inputs())
    assert "\n" not in str(error.value)


def test_an_option_per_sample_is_refused_where_the_input_cannot_be_masked() -> None:
    network = SOFT[2].network()
    (name,) = named_choices(network)
    some = {name: PerSample(torch.tensor([0, 1, 2, 0]))}
    with activated(network, some), pytest.raises(ValueError, match=r"a Transposed reads .* an option for each sample"):
        network(SOFT[2].inputs())
    plain = SOFT[0].network()  # of torch's own layers the input can
    (name,) = named_choices(plain)
    with activated(plain, {name: some.popitem()[1]}):
        assert plain(SOFT[0].inputs()).shape == (4, 3, 3)


def test_sizes_can_be_added_to_a_layer_one_by_one() -> None:
    layer, width, other = Transposed(6, 6), first(), first()
    adopt(layer, "makes", width)
    assert is_searched(layer, "makes") and not is_searched(layer, "reads")
    adopt(layer, "reads", other)
    network = nn.Sequential(layer)
    assert len(search_space(network).choices) == 2
    small: Any = extract(network, {"0.axes.0.2": 2, "0.axes.2.2": 4})[0]  # type: ignore[index]
    assert type(small) is Transposed and (small.nf, small.nx) == (2, 4) and small.weight.shape == (4, 2)


def test_hooks_and_other_attributes_follow_a_foreign_layer() -> None:
    layer = Transposed(6, 5)
    seen: list[int] = []
    layer.register_forward_hook(lambda module, inputs, made: seen.append(made.shape[-1]))
    adopt(layer, "makes", Choice([2, 6], name="width"))
    network = nn.Sequential(layer)
    network(torch.zeros(1, 5))
    extract(network, {"width": 2})(torch.zeros(1, 5))
    assert seen == [6, 2]


def test_pickles_know_their_class() -> None:
    layer = sized(Heads(6), numbers={"heads": Choice([2, 6], name="heads")})
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer) and twin.heads == 6
        with activated(twin, {"heads": 2}):
            assert twin.heads == 2 and layer.heads == 6


def both_follow() -> nn.Module:
    return adopt(nn.Linear(5, 6), "makes", first())


WRONG: list[tuple[Callable[[], nn.Module], Role, str | None, str]] = [
    (lambda: nn.Linear(5, 7), "makes", None, r"what Linear makes is 7 long, the size 6"),
    (lambda: nn.LayerNorm(6), "makes", None, r"what LayerNorm makes is none"),
    (lambda: nn.Conv2d(6, 6, 1, groups=2), "makes", None, r"a convolution of 2 groups keeps its channels"),
    (lambda: nn.Conv2d(6, 6, 1), "follows", None, r"not depthwise mixes channels: it makes or reads"),
    (lambda: nn.Tanh(), "makes", None, r"a Tanh has no weight: name the parameters that follow"),
    (lambda: RootMean(6), "makes", None, r"a RootMean .*cannot be said how it makes a width"),
    (lambda: RootMean(6), "makes", "bias", r"a RootMean has no parameter 'bias'"),
    (lambda: RootMean(5), "makes", "weight", r"no dimension of weight, \(5,\), is 6 long"),
    (both_follow, "makes", None, r"Linear.out_features follows a size already: one rule for each side"),
]


@pytest.mark.parametrize(("build", "role", "tensor", "said"), WRONG)
def test_what_cannot_follow_is_refused(
    build: Callable[[], nn.Module], role: Role, tensor: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        adopt(build(), role, first(), tensor)
    assert "\n" not in str(error.value)


def test_names_and_numbers_that_are_not_there_are_refused() -> None:
    size: Size = first()
    with pytest.raises(ValueError, match=r"Heads has no parameter or buffer 'weight' to slice; it has scale, heads"):
        sized(Heads(6), [Axis("weight", 0, size, "makes")])
    with pytest.raises(ValueError, match=r"Heads has no int 'count'; it has scale, heads"):
        sized(Heads(6), numbers={"count": size})
    with pytest.raises(ValueError, match=r"Heads.scale is 1 long in dimension 0, the size 6"):
        sized(Heads(6), [Axis("scale", 0, size, "makes")])
    layer = sized(Heads(6), [Axis("scale", 1, size, "makes")], {"heads": size})
    with pytest.raises(ValueError, match=r"dimension -2 of Heads.scale follows a size already"):
        sized(layer, [Axis("scale", -2, size, "makes")])
    with pytest.raises(ValueError, match=r"Heads.heads follows a size already"):
        sized(layer, numbers={"heads": size})


def test_lengths() -> None:
    assert length(nn.Linear(5, 6), "reads") == 5
    assert length(Transposed(6, 5), "makes") == 6
    assert length(Places(9, 4), "makes") == 4
    assert length(adopt(Transposed(6, 5), "makes", first()), "makes") == 6
    assert length(both_follow(), "makes") == 6
