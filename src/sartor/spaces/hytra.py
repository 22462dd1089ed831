# SPDX-License-Identifier: Apache-2.0
"""HyTra: a hybrid of convolutions and attention, in which each layer is one of the two and may halve the map.

Li, Tang, Wang, Peng, Wang, Liang and Chang, "BossNAS: Exploring Hybrid CNN-transformers with Block-wisely
Self-supervised Neural Architecture Search", ICCV 2021, arXiv:2103.12424.

A layer is a residual bottleneck around a 3x3 convolution (`conv`), or around self-attention (`attention`) on the two
smallest maps only. A depthwise convolution leads into either; it is all that tells attention positions. A layer keeps
the map, or halves it and doubles the width, so that where the network shrinks is searched: at 224 pixels maps of 56,
28, 14 and 7 with 256, 512, 1024 and 2048 channels, in 16 layers of four blocks. Each block after the first loses its
largest map, until two are left.

The choice `blocks.<b>.<j>.from_<s>` says what layer j of block b does with a map of stride s (the side of the image
over that of the map): `conv_8` is the convolution at stride 8. Gates leave one choice of a layer active, the one for
the map that reaches it, so that every architecture is legal and no constraint is needed. A block's legal paths number
51, 99, 80 and 16 for a map of 56, 28, 14 and 7 that reaches it, if no map is ruled out.

Differs from the published code:
- The first layer reads the stem and halves once at most, too; the supernet has a strided adapter there for each map.
- Attention is normalised over the positions that it reads, as is usual.
- A block that must halve a map of 56 does so; the code has no weights for that.
- The small forms are ours: below 64 pixels four blocks of two layers and a quarter of the widths, below 16 two and an
  eighth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn import Elastic
from sartor.spaces._blocks import check_size, halvings, initialise
from sartor.spaces._chain import ConvNorm

__all__ = ["Attention", "Block", "HyTra", "Residual"]

States = dict[int, tuple[Tensor, Tensor]]
"""Under soft choices: stride -> the chance (scalar) that the map has it, and the mean of the features if it has."""


@dataclass(frozen=True)
class Form:
    """Blocks, layers in each, channels of the largest map, and channels of an attention head."""

    blocks: int
    layers: int
    width: int
    head: int


TINY = Form(2, 2, 32, 8)  # below 16 pixels
SMALL = Form(4, 2, 64, 16)  # below 64 pixels
FULL = Form(4, 4, 256, 64)


class Attention(nn.Module):
    """Self-attention over the positions of a map: (N, C, H, W) -> the same shape, in heads of `head` channels."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads = channels // head
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        qkv = self.to_qkv(x).unflatten(1, (3, self.heads, -1)).flatten(4).transpose(3, 4)  # (N, 3, heads, HW, head)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(1))
        return mixed.transpose(2, 3).reshape(x.shape)


class Entrance(nn.Module):
    """What leads into an operation: (N, in_channels, H, W) -> the narrow features and the shortcut, ceil(H / stride).

    following: the choice of the next layer for the map that this leads to.
    """

    def __init__(self, in_channels: int, narrow: int, width: int, stride: int, following: Choice | None) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, narrow, 1, bias=False)
        self.position = nn.Conv2d(narrow, narrow, 3, stride, 1, groups=narrow)
        self.norm = nn.BatchNorm2d(narrow)
        same = stride == 1 and in_channels == width
        adapted = ConvNorm(in_channels, width, 2 * stride - 1, stride, activation=nn.ReLU)  # 3x3 where it halves
        self.shortcut = nn.Identity() if same else adapted
        self.following = following

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) -> (N, narrow, ...) and (N, width, ...)."""
        return F.relu(self.norm(self.position(self.reduce(x)))), self.shortcut(x)


class Body(nn.Sequential):
    """The operation between the entrance and the sum: (N, narrow, H, W) -> (N, width, H, W)."""

    def __init__(self, kind: str, narrow: int, width: int, head: int) -> None:
        operation = Attention(narrow, head) if kind == "attention" else nn.Conv2d(narrow, narrow, 3, 1, 1, bias=False)
        last = nn.Conv2d(narrow, width, 1, bias=False), nn.BatchNorm2d(width)
        super().__init__(operation, nn.BatchNorm2d(narrow), nn.ReLU(), *last)


class Residual(nn.Module):
    """A layer of an extracted network."""

    def __init__(self, entrance: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.entrance, self.body = entrance, body

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width, ...)."""
        narrow, shortcut = self.entrance(x)
        return F.relu(self.body(narrow) + shortcut)


class Operation(nn.Module):
    """One operation of a layer at one stride: a body, and an entrance for each stride that a map may come with."""

    def __init__(self, body: Body, entrances: Mapping[int, Entrance]) -> None:
        super().__init__()
        self.body = body
        self.entrances = nn.ModuleDict({f"from_{stride}": entrance for stride, entrance in entrances.items()})

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """A map of that stride -> (N, width, ...)."""
        narrow, shortcut = self.entrances[f"from_{stride}"](x)
        return F.relu(self.body(narrow) + shortcut)

    def residual(self, stride: int) -> Residual:
        """Return the layer for maps of that stride."""
        return Residual(self.entrances[f"from_{stride}"], self.body)


class Block(Elastic):
    """Several layers, children "0", "1", ..., of operations by name; choices of each by the stride that reaches it."""

    def __init__(
        self,
        layers: Sequence[nn.ModuleDict],
        choices: Sequence[Mapping[int, Choice | str]],
        before: Block | int,
    ) -> None:
        super().__init__()
        for j, layer in enumerate(layers):
            self.add_module(str(j), layer)
        # The choices belong to the entrances in front of them, from which their gates follow; so does `before`.
        self._elastic_choices, self._elastic_before = [dict(one) for one in choices], (before,)

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Entrance, choice and the option under which it is part of the network."""
        return [
            (f"{j}.{option}.entrances.from_{stride}", choice, (option,))
            for j, choices in enumerate(self._elastic_choices)
            for stride, choice in choices.items()
            if isinstance(choice, Choice)
            for option in choice.options
        ]

    @property
    def stride(self) -> int:
        """The stride of the map that the block gives, under hard choices."""
        stride = self._entering
        for choices in self._elastic_choices:
            stride = _stride(str(choices[stride]))
        return stride

    @property
    def _entering(self) -> int:
        (before,) = self._elastic_before
        return before if isinstance(before, int) else before.stride

    def _operations(self) -> Iterator[tuple[Operation, int]]:
        """Yield each layer's operation in force, and the stride of the map that reaches it."""
        stride = self._entering
        for j, choices in enumerate(self._elastic_choices):
            option = str(choices[stride])
            yield self._operation(j, option), stride
            stride = _stride(option)

    def _operation(self, j: int, option: str) -> Operation:
        found = self.get_submodule(f"{j}.{option}")
        assert isinstance(found, Operation)
        return found

    def forward(self, x: Tensor | States) -> Tensor | States:
        """The layers in force, one after the other; under soft choices the expectation, apart for each stride."""
        soft = any(isinstance(one, Choice) and one.is_soft for each in self._elastic_choices for one in each.values())
        if isinstance(x, dict):
            return self._expectation(x)
        if soft:
            return self._expectation({self._entering: (x.new_ones(()), x)})
        for operation, stride in self._operations():
            x = operation(x, stride)
        return x

    def _expectation(self, states: States) -> States:
        for j, choices in enumerate(self._elastic_choices):
            reached: dict[int, list[tuple[Tensor, Tensor]]] = {}
            for stride, (mass, x) in states.items():
                for option, weight in _weights(choices[stride], x):
                    features = self._operation(j, option)(x, stride)
                    reached.setdefault(_stride(option), []).append((mass * weight, features))
            states = {stride: _mean(parts) for stride, parts in reached.items()}
        return states

    def extract(self) -> nn.Module:
        """The layers in force."""
        return nn.Sequential(*(operation.residual(stride) for operation, stride in self._operations()))


class Tail(Elastic):
    """The smallest map, whichever of the last two it is given: (N, C, H, W) -> (N, width, H', W')."""

    def __init__(self, last: Block, stride: int, width: int) -> None:
        super().__init__()
        self.halve = ConvNorm(width // 2, width, 3, 2, activation=nn.ReLU)
        self._elastic_last, self._elastic_stride = (last,), stride

    def forward(self, x: Tensor | States) -> Tensor:
        """Halve the map that is not the smallest; under soft choices, the expectation."""
        if isinstance(x, Tensor):
            return self._at(self._elastic_last[0].stride, x)
        return torch.stack([mass * self._at(stride, features) for stride, (mass, features) in x.items()]).sum(0)

    def _at(self, stride: int, x: Tensor) -> Tensor:
        out: Tensor = self.halve(x) if stride < self._elastic_stride else x
        return out

    def extract(self) -> nn.Module:
        """The convolution that halves, or nothing."""
        return self.halve if self._elastic_last[0].stride < self._elastic_stride else nn.Identity()


class HyTra(nn.Module):
    """A classifier of convolutions and attention: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 224.
        dropout: before the classifier.

    Raises ValueError for an image size outside of 8 to 224.
    """

    def __init__(
        self, classes: int = 1000, channels: int = 3, size: tuple[int, int] = (224, 224), *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        shorter = check_size(size, "HyTra")
        form = TINY if shorter < 16 else SMALL if shorter < 64 else FULL
        strides = _strides(shorter)
        self.stem = _stem(channels, form.width // 4, strides[0])
        choices = _choices(form, strides)
        (self.first,) = choices[0].values()
        self.blocks = nn.Sequential()
        before: Block | int = strides[0]
        for b in range(form.blocks):
            numbers = range(b * form.layers, (b + 1) * form.layers)
            layers = [_layer(i, choices, form, strides) for i in numbers]
            before = Block(layers, [choices[i] for i in numbers], before)
            self.blocks.append(before)
        width = form.width * strides[-1] // strides[0]
        assert isinstance(before, Block)
        self.tail = Tail(before, strides[-1], width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.tail(self.blocks(self.stem(x))).mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted: He normal by fan-out, the branch of each layer starting at zero."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        initialise(self.modules())
        for module in self.modules():
            if isinstance(module, Body):
                norm = module[-1]
                assert isinstance(norm, nn.BatchNorm2d)
                nn.init.zeros_(norm.weight)


def _strides(size: int) -> tuple[int, ...]:
    """Strides of the maps, of the stem's first: down to a map of about 4x4, 7x7 from 224 pixels."""
    count = halvings(size)
    stem = 2 if count == 5 else int(count >= 3)
    return tuple(2**i for i in range(stem, count + 1))


def _stem(channels: int, width: int, stride: int) -> nn.Sequential:
    """The stem of a residual network, 7x7 and a pool, where the map is quartered, else a 3x3 convolution."""
    if stride < 4:
        return nn.Sequential(ConvNorm(channels, width, 3, stride, activation=nn.ReLU))
    return nn.Sequential(ConvNorm(channels, width, 7, 2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1))


def _choices(form: Form, strides: Sequence[int]) -> list[dict[int, Choice | str]]:
    """Each layer's choice for each stride of a map that may reach it; an option where there is no other."""
    reaching, choices = {strides[0]}, list[dict[int, Choice | str]]()
    for i in range(form.blocks * form.layers):
        b, j = divmod(i, form.layers)
        allowed = strides[-max(2, len(strides) - b) :]
        options = {stride: _options(stride, allowed, strides[-2:]) for stride in sorted(reaching)}
        choices.append(
            {
                stride: Choice(one, name=f"blocks.{b}.{j}.from_{stride}") if len(one) > 1 else one[0]
                for stride, one in options.items()
            }
        )
        reaching = {_stride(option) for one in options.values() for option in one}
    return choices


def _options(stride: int, allowed: Sequence[int], small: Sequence[int]) -> tuple[str, ...]:
    """What a layer may do with a map of that stride, halving it first."""
    return tuple(
        f"{kind}_{after}"
        for after in (2 * stride, stride)
        if after in allowed
        for kind in ("attention", "conv")
        if kind == "conv" or after in small
    )


def _layer(i: int, choices: Sequence[Mapping[int, Choice | str]], form: Form, strides: Sequence[int]) -> nn.ModuleDict:
    """All operations of layer i, with their entrances."""
    entering: dict[str, list[int]] = {}
    for stride, choice in choices[i].items():
        for option in choice.options if isinstance(choice, Choice) else (choice,):
            entering.setdefault(str(option), []).append(stride)

    def width(stride: int) -> int:
        return form.width * stride // strides[0]

    operations = {}
    for option, befores in sorted(entering.items()):
        after, kind = _stride(option), option.rpartition("_")[0]
        narrow = width(after) // 4
        entrances = {}
        for before in befores:
            free = isinstance(choices[i][before], Choice)  # otherwise the entrance before this one has the choice
            read = width(before) if i else form.width // 4
            following = _following(i, after, choices) if free else None
            entrances[before] = Entrance(read, narrow, width(after), after // before, following)
        operations[option] = Operation(Body(kind, narrow, width(after), form.head), entrances)
    return nn.ModuleDict(operations)


def _following(i: int, stride: int, choices: Sequence[Mapping[int, Choice | str]]) -> Choice | None:
    """The choice that comes next for a map that leaves layer i, past layers that have none for it."""
    if i + 1 == len(choices):
        return None
    found = choices[i + 1][stride]
    return found if isinstance(found, Choice) else _following(i + 1, _stride(found), choices)


def _stride(option: str) -> int:
    return int(option.rpartition("_")[2])


def _weights(choice: Choice | str, like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the options that run and their weights; ValueError where all weights are zero."""
    if isinstance(choice, str):
        yield choice, like.new_ones(())
        return
    weights = choice.probabilities(like)
    active = [place for place, chance in enumerate(weights.tolist()) if chance != 0.0]
    if not active:
        raise ValueError(f"all weights of {choice!r} are zero; at least one operation must run")
    yield from ((str(choice.options[place]), weights[place]) for place in active)


def _mean(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The whole chance of a stride, and the mean of the features under it."""
    whole = torch.stack([mass for mass, _ in parts]).sum()
    return whole, torch.stack([mass / whole * features for mass, features in parts]).sum(0)
