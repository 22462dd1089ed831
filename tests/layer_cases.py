# SPDX-License-Identifier: Apache-2.0
"""Every elastic layer and container, in a small network. To add a layer, add one case."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts.layer_contract import LayerCase
from sartor.architecture import Option
from sartor.choice import Choice, concat, per_group

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


def transformed(width: Width, *, stride: int, dilation: int) -> nn.Module:
    w, kernel, other = width(), Choice([1, 3, 5]), Choice([5, 1])
    return sequence(
        elastic.TransformedConv2d(2, w, kernel, stride, "same", dilation=dilation),
        nn.Tanh(),
        elastic.TransformedConv2d(w, w, kernel, padding="same", groups=w, bias=False),
        nn.Tanh(),
        elastic.TransformedConv2d(w, 3, other, padding="same"),
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


def stages() -> nn.Module:
    """A flat list: one block, two of a searched depth, one that always runs, and two again, which are lists."""
    w, depths = Choice([2, 4]), (Choice([1, 2], name="first_depth"), Choice([(1,), (0, 1)], name="second_depth"))
    blocks = [sequence(elastic.Linear(w, w), nn.Tanh()) for _ in range(6)]
    flat = elastic.Stages(*blocks, stages=[(4, 6, depths[1]), (1, 3, depths[0])])
    return sequence(elastic.Linear(5, w), flat, elastic.Linear(w, 3))


class Node(nn.Module):
    """Three edges, of which one or two are kept; one edge is itself a choice."""

    def __init__(self) -> None:
        super().__init__()
        edges = {"a": nn.Linear(5, 3), "b": one_of(first), "c": sequence(elastic.Linear(5, 3), nn.Tanh())}
        self.node = elastic.Inputs(edges, Choice([(2,), (0, 1), (0, 2), (1, 2)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x, torch.tanh(x), x * x)  # type: ignore[no-any-return]


def superposed(width: Width) -> nn.Module:
    w, v, kernel = width(), Choice([2, 4]), Choice([1, 3])
    return sequence(
        elastic.SuperposedConv2d(2, w, kernel, padding="same"),
        nn.Tanh(),
        elastic.SuperposedConv2d(w, v, kernel, padding="same", bias=False),
        nn.Tanh(),
        elastic.Conv2d(v, 3, 1),
    )


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
    *both_widths("transformed", partial(transformed, stride=1, dilation=1), partial(volume, 2, 7)),
    LayerCase("transformed-strided", partial(transformed, first, stride=2, dilation=2), partial(volume, 2, 9)),
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
    LayerCase("stages", stages, rows),
    LayerCase("repeat-listed", lambda: repeat(Choice([(2,), (0, 2), (0, 1, 2)])), rows),
    LayerCase("nested", nested, rows),
    LayerCase("inputs", Node, rows),
    *both_widths("superposed", superposed, image),
    LayerCase("quantize", lambda: sequence(elastic.Quantize(Choice([1, 2, 5, 32])), elastic.Linear(5, 3)), rows),
    *both_widths("concatenated", Concatenated, image),
    *both_widths("flattened", Flattened, image),
    LayerCase("resolution", Resized, partial(volume, 2, 9)),
]
ITERATED = LayerCase("repeat-iterated", Iterated, rows)  # a list that a model loops over cannot be mixed
BATCH_NORMS = [case for case in CASES if "batchnorm" in case.name]
