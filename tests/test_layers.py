# SPDX-License-Identifier: Apache-2.0
"""Every elastic layer and container against the layer contract. To add a layer, add one case."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase
from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size, concat, indices, per_group
from sartor.supernet import activated, extract, named_choices

torch.set_num_threads(1)

Width = Callable[[], Choice]


def first() -> Choice:
    """A width of 6 by prefix."""
    return Choice([2, 4, 6])


def listed() -> Choice:
    """A width of 6 by index list."""
    return Choice([(0, 3), (1, 2, 4, 5), (0, 1, 2, 3, 4, 5)])


def sequence(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def linear(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Linear(5, w), nn.Tanh(), elastic.Linear(w, w, bias=False), elastic.Linear(w, 3))


def conv1d(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv1d(2, w, 3, padding=1), nn.Tanh(), elastic.Conv1d(w, 3, 2, stride=2))


def conv2d(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv2d(2, w, 3, padding=1), nn.Tanh(), elastic.Conv2d(w, 3, (3, 1), stride=(1, 2)))


def conv3d(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv3d(2, w, 3, padding="same"), nn.Tanh(), elastic.Conv3d(w, 3, 2))


def circular(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv2d(2, w, 3, padding=1, padding_mode="circular"), elastic.Conv2d(w, 3, 1))


def depthwise(width: Width) -> nn.Module:
    w = width()
    return sequence(
        elastic.Conv2d(2, w, 1),
        elastic.Conv2d(w, w, 3, padding=1, groups=w),
        nn.Tanh(),
        elastic.Conv2d(w, 3, 1),
    )


def channel_multiplier(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv1d(2, w, 1), elastic.Conv1d(w, w * 2, 3, groups=w), elastic.Conv1d(w * 2, 3, 1))


def number_of_groups(groups: Choice) -> nn.Module:
    w, v = groups * 2, groups * 3
    return sequence(elastic.Conv2d(2, w, 1), elastic.Conv2d(w, v, 3, groups=groups), elastic.Conv2d(v, 3, 1))


def width_per_group(width: Width) -> nn.Module:
    w = per_group(width(), 3)
    v = per_group(Choice([1, 2]), 3)
    return sequence(elastic.Conv2d(2, w, 1), elastic.Conv2d(w, v, 3, groups=3), nn.Tanh(), elastic.Conv2d(v, 3, 1))


def kernels(*, stride: int, dilation: int) -> nn.Module:
    kernel, other = Choice([1, 3, 5]), Choice([3, 5])
    return sequence(
        elastic.Conv2d(2, 4, kernel, stride, "same", dilation=dilation),
        nn.Tanh(),
        elastic.Conv2d(4, 4, kernel, padding="same", groups=4),
        nn.Tanh(),
        elastic.Conv2d(4, 3, other, stride, 4, dilation=(1, 2)),
    )


def even_kernels() -> nn.Module:
    kernel = Choice([2, 4])
    return sequence(elastic.Conv1d(2, 4, kernel, stride=2, padding=1), elastic.Conv1d(4, 3, kernel, padding=2))


def transposed(width: Width) -> nn.Module:
    w, kernel = width(), Choice([2, 4])
    return sequence(
        elastic.ConvTranspose2d(2, w, kernel, stride=2, padding=1, output_padding=1),
        nn.Tanh(),
        elastic.ConvTranspose2d(w, 3, 3),
    )


def transposed_groups(groups: Choice) -> nn.Module:
    w, v = groups * 2, groups * 3
    return sequence(
        elastic.Conv2d(2, w, 1),
        elastic.ConvTranspose2d(w, v, 3, stride=2, groups=groups),
        elastic.Conv2d(v, 3, 1),
    )


def transposed_per_group(width: Width) -> nn.Module:
    w, v = per_group(width(), 2), per_group(Choice([1, 3]), 2)
    return sequence(elastic.Conv2d(2, w, 1), elastic.ConvTranspose2d(w, v, 3, groups=2), elastic.Conv2d(v, 3, 1))


def batch_norm(width: Width, dimensions: int, **keywords: Any) -> nn.Module:
    w = width()
    conv = {1: elastic.Conv1d, 2: elastic.Conv2d, 3: elastic.Conv3d}[dimensions]
    norm = {1: elastic.BatchNorm1d, 2: elastic.BatchNorm2d, 3: elastic.BatchNorm3d}[dimensions]
    return sequence(conv(2, w, 3), norm(w, **keywords), nn.Tanh(), conv(w, 3, 1))


def flat_batch_norm(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Linear(5, w), elastic.BatchNorm1d(w), nn.Tanh(), elastic.Linear(w, 3))


def layer_norm(width: Width, **keywords: Any) -> nn.Module:
    w = width()
    return sequence(elastic.Linear(5, w), elastic.LayerNorm(w, **keywords), nn.Tanh(), elastic.Linear(w, 3))


def rms_norm(width: Width, **keywords: Any) -> nn.Module:
    w = width()
    return sequence(elastic.Linear(5, w), elastic.RMSNorm(w, **keywords), nn.Tanh(), elastic.Linear(w, 3))


def group_norm(width: Width, **keywords: Any) -> nn.Module:
    w = width()
    return sequence(elastic.Conv2d(2, w, 3), elastic.GroupNorm(2, w, **keywords), nn.Tanh(), elastic.Conv2d(w, 3, 1))


def elastic_group_norm(groups: Choice) -> nn.Module:
    w = groups * 2
    return sequence(elastic.Conv2d(2, w, 3), elastic.GroupNorm(groups, w), nn.Tanh(), elastic.Conv2d(w, 3, 1))


def instance_norm(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv2d(2, w, 3), elastic.GroupNorm(w, w), nn.Tanh(), elastic.Conv2d(w, 3, 1))


def embedding(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Embedding(11, w, padding_idx=0), nn.Tanh(), elastic.Linear(w, 3))


class TiedLanguageModel(nn.Module):
    """The head's weight is the embedding's."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.width = width()
        self.embedding = elastic.Embedding(11, self.width)
        self.norm = elastic.RMSNorm(self.width)
        self.head = elastic.Linear(self.width, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.norm(self.embedding(tokens))))
        return logits


def attention(heads: Choice, *, queries: int = 1, causal: bool = False) -> nn.Module:
    w = Choice([4, 6, 8])
    block = elastic.MultiheadAttention(w, heads, 3, queries_per_head=queries, causal=causal)
    return sequence(elastic.Linear(5, w), block, elastic.Linear(w, 3))


def squeeze_excite(width: Width) -> nn.Module:
    w = width()
    return sequence(elastic.Conv2d(2, w, 3), elastic.SqueezeExcite(w, 0.5, 2), elastic.Conv2d(w, 3, 1))


def one_of(width: Width) -> nn.Module:
    w = width()
    operations = {
        "deep": sequence(elastic.Linear(w, w), nn.Tanh(), elastic.Linear(w, w)),
        "linear": elastic.Linear(w, w),
        "none": nn.Identity(),
    }
    return sequence(elastic.Linear(5, w), elastic.OneOf(operations), elastic.Linear(w, 3))


def repeat(depth: Choice) -> nn.Module:
    w = Choice([2, 4])
    blocks = [sequence(elastic.Linear(w, w), nn.Tanh()) for _ in range(3)]
    return sequence(elastic.Linear(5, w), elastic.Repeat(*blocks, depth=depth), elastic.Linear(w, 3))


class Iterated(nn.Module):
    """A model that loops over its layers itself, as language models do (hard depths only)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = elastic.Repeat(*[elastic.Linear(5, 5) for _ in range(3)], depth=Choice([1, 2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.layers[-1](x) / len(self.layers)  # type: ignore[no-any-return]


def nested() -> nn.Module:
    w = Choice([3, 5])
    blocks = [
        elastic.OneOf({
            "wide": sequence(elastic.Linear(w, (h := Choice([4, 6]))), nn.Tanh(), elastic.Linear(h, w)),
            "stack": elastic.Repeat(elastic.Linear(w, w), nn.Tanh(), depth=Choice([1, 2])),
            "none": nn.Identity(),
        })
        for _ in range(2)
    ]  # fmt: skip
    return sequence(elastic.Linear(5, w), elastic.Repeat(*blocks, depth=Choice([1, 2])), elastic.Linear(w, 3))


class Concatenated(nn.Module):
    """Two elastic branches and the input, read together."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.left_width, self.right_width = width(), Choice([1, 3])
        self.left, self.right = elastic.Conv2d(2, self.left_width, 1), elastic.Conv2d(2, self.right_width, 1)
        self.both = elastic.Conv2d((self.left_width, 2, self.right_width), 4, 1)
        self.norm = elastic.BatchNorm2d(concat(self.right_width, self.left_width))
        self.again = elastic.Conv2d((self.right_width, self.left_width), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        both: Tensor = self.both(torch.cat((left, x, right), 1))
        return both + self.again(torch.tanh(self.norm(torch.cat((right, left), 1))))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """Channels become blocks of features."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.width = width()
        self.conv = elastic.Conv2d(2, self.width, 1)
        self.linear = elastic.Linear(self.width * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.tanh(self.conv(x)).flatten(1))
        return out


class Resized(nn.Module):
    """A searched input resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.resolution = Choice([5, 7, 9])
        self.conv = elastic.Conv2d(2, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.conv(x)).mean((2, 3))
        return out


def rows() -> Tensor:
    return torch.randn(4, 5)


def sequences() -> Tensor:
    return torch.randn(2, 4, 5)


def tokens() -> Tensor:
    return torch.randint(11, (2, 4))


def volume(dimensions: int, side: int = 5) -> Tensor:
    return torch.randn(2, 2, *[side] * dimensions)


line, image, solid = partial(volume, 1, 8), partial(volume, 2), partial(volume, 3, 4)


def both_widths(name: str, build: Callable[[Width], nn.Module], example: Callable[[], Tensor]) -> list[LayerCase]:
    """The case by prefix and by index list."""
    return [LayerCase(f"{name}-{w.__name__}", partial(build, w), example) for w in (first, listed)]


def groups_of(build: Callable[[Choice], nn.Module], options: list[Option]) -> Callable[[], nn.Module]:
    return lambda: build(Choice(options))


CASES = [
    *both_widths("linear", linear, rows),
    *both_widths("conv1d", conv1d, line),
    *both_widths("conv2d", conv2d, image),
    *both_widths("conv3d", conv3d, solid),
    *both_widths("conv2d-circular", circular, image),
    *both_widths("depthwise", depthwise, image),
    *both_widths("channel-multiplier", channel_multiplier, line),
    LayerCase("groups", groups_of(number_of_groups, [1, 2, 4]), image),
    LayerCase("groups-listed", groups_of(number_of_groups, [(1,), (0, 3), (0, 1, 2, 3)]), image),
    *both_widths("width-per-group", width_per_group, image),
    LayerCase("kernel", partial(kernels, stride=1, dilation=1), partial(volume, 2, 9)),
    LayerCase("kernel-strided", partial(kernels, stride=2, dilation=1), partial(volume, 2, 9)),
    LayerCase("kernel-dilated", partial(kernels, stride=2, dilation=2), partial(volume, 2, 9)),
    LayerCase("kernel-even", even_kernels, line),
    *both_widths("transposed", transposed, image),
    LayerCase("transposed-groups", groups_of(transposed_groups, [1, 2, 4]), image),
    LayerCase("transposed-groups-listed", groups_of(transposed_groups, [(1,), (0, 3), (0, 1, 2, 3)]), image),
    *both_widths("transposed-per-group", transposed_per_group, image),
    *both_widths("batchnorm-flat", flat_batch_norm, rows),
    *both_widths("batchnorm1d", partial(batch_norm, dimensions=1), line),
    *both_widths("batchnorm2d", partial(batch_norm, dimensions=2), image),
    *both_widths("batchnorm3d", partial(batch_norm, dimensions=3), solid),
    *both_widths("batchnorm-cumulative", partial(batch_norm, dimensions=2, momentum=None), image),
    *both_widths("batchnorm-bare", partial(batch_norm, dimensions=2, affine=False, track_running_stats=False), image),
    *both_widths("layernorm", layer_norm, sequences),
    *both_widths("layernorm-bare", partial(layer_norm, elementwise_affine=False), sequences),
    *both_widths("rmsnorm", rms_norm, sequences),
    *both_widths("rmsnorm-bare", partial(rms_norm, elementwise_affine=False), sequences),
    *both_widths("groupnorm", group_norm, image),
    *both_widths("groupnorm-bare", partial(group_norm, affine=False), image),
    LayerCase("groupnorm-groups", groups_of(elastic_group_norm, [1, 2, 4]), image),
    LayerCase("groupnorm-groups-listed", groups_of(elastic_group_norm, [(1,), (0, 3), (0, 1, 2, 3)]), image),
    *both_widths("instancenorm", instance_norm, image),
    *both_widths("embedding", embedding, tokens),
    *both_widths("embedding-tied", TiedLanguageModel, tokens),
    LayerCase("attention", lambda: attention(Choice([1, 2, 4])), sequences),
    LayerCase("attention-listed", lambda: attention(Choice([(2,), (0, 3), (0, 1, 2, 3)])), sequences),
    LayerCase("attention-grouped", lambda: attention(Choice([1, 2]), queries=3, causal=True), sequences),
    LayerCase("attention-grouped-listed", lambda: attention(Choice([(1,), (0, 1)]), queries=2), sequences),
    *both_widths("squeeze-excite", squeeze_excite, image),
    *both_widths("one-of", one_of, rows),
    LayerCase("repeat", lambda: repeat(Choice([1, 2, 3])), rows),
    LayerCase("repeat-or-none", lambda: repeat(Choice([0, 1, 3])), rows),
    LayerCase("repeat-listed", lambda: repeat(Choice([(2,), (0, 2), (0, 1, 2)])), rows),
    LayerCase("nested", nested, rows),
    *both_widths("concatenated", Concatenated, image),
    *both_widths("flattened", Flattened, image),
    LayerCase("resolution", Resized, partial(volume, 2, 9)),
]
ITERATED = LayerCase("repeat-iterated", Iterated, rows)  # a list that a model loops over cannot be mixed
BATCH_NORMS = [case for case in CASES if "batchnorm" in case.name]

every_layer = pytest.mark.parametrize("case", [*CASES, ITERATED], ids=lambda case: case.name)
every_mixed_layer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extraction_equals_activation(case: LayerCase, dtype: torch.dtype) -> None:
    law.extraction_equals_activation(case, dtype)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_largest_is_exact(case: LayerCase, dtype: torch.dtype) -> None:
    law.largest_is_exact(case, dtype)


@every_layer
def test_extraction_trains_like_activation(case: LayerCase) -> None:
    law.extraction_trains_like_activation(case)


@every_mixed_layer
def test_one_hot_equals_hard(case: LayerCase) -> None:
    law.one_hot_equals_hard(case)


@every_mixed_layer
def test_gradients_reach_every_choice(case: LayerCase) -> None:
    law.gradients_reach_every_choice(case, training=False)


@pytest.mark.parametrize("case", BATCH_NORMS, ids=lambda case: case.name)
def test_gradients_through_batch_statistics(case: LayerCase) -> None:
    law.gradients_reach_every_choice(case, training=True)


@every_layer
def test_meta_build_takes_no_memory(case: LayerCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_layer
def test_copies_are_independent(case: LayerCase) -> None:
    law.copies_are_independent(case)


@every_layer
def test_extraction_shares_nothing(case: LayerCase) -> None:
    law.extraction_shares_nothing(case)


@every_layer
def test_state_dict_round_trip(case: LayerCase) -> None:
    law.state_dict_round_trip(case)


@every_layer
def test_prints(case: LayerCase) -> None:
    law.prints(case)


@every_layer
def test_exports(case: LayerCase) -> None:
    law.exports(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["depthwise-first", "attention-grouped", "nested"])
@pytest.mark.filterwarnings("ignore")
def test_compiles(name: str) -> None:
    law.compiles(next(case for case in CASES if case.name == name))


# ---- what a single layer produces under soft widths ----------------------------------------------------------


@pytest.mark.parametrize("width", [first, listed])
@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (lambda w: elastic.Conv2d(2, w, 3), 2),
        (lambda w: elastic.ConvTranspose2d(2, w, 3), 2),
        (lambda w: elastic.Conv2d(w, w, 3, groups=w), 6),
        (lambda w: elastic.BatchNorm2d(w), 6),
        (lambda w: elastic.GroupNorm(w, w), 6),
    ],
    ids=["conv", "transposed", "depthwise", "batchnorm", "instancenorm"],
)
def test_one_hot_keeps_what_hard_keeps(layer: Callable[[Size], nn.Module], channels: int, width: Width) -> None:
    """Soft, a producer gives everything; among it the entries of the hard layer, as they are."""
    choice = width()
    module = layer(choice).double().eval()
    x = torch.randn(2, channels, 5, 5, dtype=torch.float64)
    (name,) = named_choices(module)
    for option, weights in zip(choice.options, torch.eye(3, dtype=torch.float64), strict=True):
        kept = torch.tensor(indices(option))
        with activated(module, {name: option}):
            hard = module(x if channels == 2 else x.index_select(1, kept))
        with activated(module, {name: weights}):
            soft = module(x)
        assert soft.shape[1] == 6
        assert law.distance(soft.index_select(1, kept), hard) <= 1e-12


# ---- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: elastic.Conv2d(4, 6, 3, groups=4), "out_channels=6 does not divide into 4 groups"),
        (lambda: elastic.Conv2d(Choice([4, 6]), 8, 3, groups=2), r"use per_group\(width, 2\)"),
        (lambda: elastic.Conv2d(8, Choice([3, 8]), 3, groups=4), r"use per_group\(width, 4\)"),
        (lambda: elastic.Conv2d(8, 8, 3, groups=Choice([2, 4])), "give in_channels=groups \\* width"),
        (lambda: elastic.Conv2d(Choice([4, 8]), 8, 3, groups=Choice([2, 4])), "in_channels holds"),
        (lambda: elastic.Conv2d(4, 4, Choice([2, 3])), "kernel 2 cannot be centred in kernel 3"),
        (lambda: elastic.Conv2d(4, 4, Choice([3, 5]), padding=0), "give padding='same'"),
        (
            lambda: elastic.Conv2d(4, 4, Choice([3, 5]), padding="same", padding_mode="circular"),
            "padding_mode",
        ),
        (lambda: elastic.Conv2d(4, 4, 4, padding="same"), "padding='same' needs an odd kernel"),
        (lambda: elastic.Conv2d(4, 4, 3, padding="full"), "padding='full' is unknown"),
        (lambda: elastic.GroupNorm(4, Choice([4, 6])), "6 channels do not divide into 4 groups"),
        (lambda: elastic.GroupNorm(Choice([2, 4]), 8), "num_channels holds 8 for 2 groups"),
        (lambda: elastic.Embedding(4, 4, max_norm=1.0), "max_norm=1.0 would rescale"),
        (lambda: elastic.Repeat(nn.Identity(), depth=Choice([1, 2])), "needs 2 blocks, got 1"),
        (lambda: elastic.OneOf({}), "at least one option"),
        (lambda: elastic.Linear(4, Choice(["wide", "narrow"])), "'wide' is no size"),
        (lambda: elastic.Linear(4, Choice([0, 4])), "size 0 keeps nothing"),
        (lambda: elastic.Linear(4, Choice([(1, 0)])), "strictly increasing"),
    ],
)
def test_impossible_sizes_raise_when_the_layer_is_made(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_zero_weights_of_all_options_raise() -> None:
    block = elastic.OneOf({"a": nn.Identity(), "b": nn.Identity()})
    with (
        pytest.raises(ValueError, match="at least one operation must run"),
        activated(block, {"choice": torch.zeros(2)}),
    ):
        block(torch.ones(1))
    stack = elastic.Repeat(nn.Identity(), nn.Identity(), depth=Choice([1, 2]))
    with (
        pytest.raises(ValueError, match="at least one depth must run"),
        activated(stack, {"depth": torch.zeros(2)}),
    ):
        stack(torch.ones(1))


def test_one_of_does_not_run_what_has_no_weight() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    block = elastic.OneOf({"ran": nn.Identity(), "refusing": Refusing()})
    with activated(block, {"choice": torch.tensor([1.0, 0.0])}):
        assert block(torch.ones(1)) == 1


def test_repeat_stands_in_for_a_list() -> None:
    blocks = [nn.Identity() for _ in range(4)]
    stack = elastic.Repeat(*blocks, depth=Choice([2, (0, 3), 4]))
    with activated(stack, {"depth": (0, 3)}):
        assert list(stack) == [blocks[0], blocks[3]] and len(stack) == 2
        assert stack[-1] is blocks[3] and stack[:1] == [blocks[0]]
    with activated(stack, {"depth": torch.ones(3) / 3}):
        assert len(stack) == 4
        with pytest.raises(ValueError, match="is soft"):
            list(stack)


def test_per_sample_gradients_of_an_active_architecture() -> None:
    """torch.func transforms see through the slices."""
    network = linear(first).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(network, parameters, (row[None],)).square().sum()  # type: ignore[no-any-return]

    with activated(network, {"0.out_features": 4}):
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        whole = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for (name, gradient), total in zip(each.items(), whole, strict=True):
        assert torch.allclose(gradient.sum(0), total), name


def test_fixed_sizes_are_torch_layers() -> None:
    layer = elastic.Conv2d((2, 2), 4, 3, padding="valid", groups=2)
    stack = elastic.Repeat(layer, nn.ReLU(), depth=1)
    assert stack.gates() == [] and not named_choices(stack)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(stack(x), nn.functional.conv2d(x, layer.weight, layer.bias, groups=2))
    assert type(extract(stack, {})) is nn.Sequential


def test_transposed_output_size() -> None:
    layer = elastic.ConvTranspose2d(2, Choice([2, 4]), 3, stride=2, padding=1)
    assert layer(torch.randn(1, 2, 5, 5), [10, 10]).shape == (1, 4, 10, 10)


def test_resized_follows_the_model() -> None:
    model = Resized()
    images = torch.randn(2, 2, 9, 12)
    assert elastic.resized(images, nn.Identity()) is images
    assert elastic.resized(images, model).shape == (2, 2, 9, 9)
    with activated(model, {"resolution": torch.ones(3) / 3}), pytest.raises(ValueError, match="is soft"):
        elastic.resized(images, model)


def test_frozen_parameters_stay_frozen() -> None:
    network = linear(first)
    next(network.parameters()).requires_grad_(False)
    assert [p.requires_grad for p in extract(network, {}).parameters()] == [False, True, True, True, True]


def test_sizes_of_a_user_function() -> None:
    half = Derived(elastic.round_channels, Choice([16, 32]))
    assert half.options == (16, 32)
