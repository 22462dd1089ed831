# SPDX-License-Identifier: Apache-2.0
"""The cells of NASNet: blocks that read two earlier states each, stacked, and trained with ScheduledDropPath.

Zoph, Vasudevan, Shlens & Le, "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
arXiv:1707.07012. A cell has two inputs, the outputs of the two cells before it. Each of its blocks picks two states,
of the inputs and the blocks before, an operation of thirteen for each, and whether to add or to concatenate the
results. What no block reads is concatenated and is the cell's output. A normal cell keeps the sides and a reduction
cell halves them; their number and width are set after the search.

`normal_input_2a` is the first state that block 2 picks, `normal_op_2a` its operation, `normal_combine_2` how it ends;
`b` is the second, and the reduction cell has the same under `reduce_`.

Differs from the paper:
- The output has the blocks that no other reads. An input that no block reads is left out.
- A block that reads a concatenation brings it to the width of the cell by a 1x1 convolution first.
- Without a stem for large images: what is here is the network for CIFAR.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sartor import nn as elastic
from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn import OneOf
from sartor.spaces.cell_operations import (
    OPERATIONS,
    DilatedConv,
    DropPath,
    FactorizedReduce,
    Operation,
    Pool,
    ReLUConvBN,
    SeparableConv,
    set_progress,
)

__all__ = ["NASNET_OPERATIONS", "Block", "NASNet", "NASNetCell", "Unread"]

KINDS = ("normal", "reduce")
INPUTS = ("before", "last")
Pair = tuple[Tensor, Tensor]


class Unread(Size):
    """The channels of a cell's output, of two halves for each block: those of blocks that no other block reads.

    The first half of a block is there where the block is, the second where it concatenates.
    """

    def __init__(self, inputs: tuple[tuple[Choice, Choice], ...], combines: tuple[Choice, ...], width: int) -> None:
        self.inputs, self.combines, self.width = inputs, combines, width
        self.roots = tuple(dict.fromkeys((*itertools.chain(*inputs), *combines)))
        self._extent = 2 * width * len(combines)

    @property
    def hard(self) -> Option:
        """Indices of the channels, None when soft."""
        return None if self.is_soft else self.evaluate(lambda choice: choice.value)

    @property
    def value(self) -> Option:
        """Indices of the channels. Raises ValueError when soft."""
        return self.evaluate(lambda choice: choice.value)

    @property
    def weights(self) -> Tensor | None:
        """None when hard. Raises ValueError when soft: there are too many outputs to weigh; read `mask`."""
        if self.is_soft:
            raise ValueError("an output of unread blocks has a weight for each channel, not for each set: read mask")
        return None

    def mask(self, like: Tensor) -> Tensor:
        """(extent,) chance that each channel is there, for independent choices."""
        halves = []
        for block, combine in enumerate(self.combines):
            chance = like.new_ones(())
            for choice in itertools.chain(*self.inputs[block + 1 :]):
                chance = chance * (1 - choice.probabilities(like)[choice.options.index(_state(block))])
            halves += [chance, chance * combine.probabilities(like)[1]]
        return torch.stack(halves).repeat_interleave(self.width)

    def evaluate(self, lookup: Callable[[Choice], Option]) -> Option:
        """The indices that follow from options of the choices."""
        read = {lookup(choice) for choice in itertools.chain(*self.inputs)}
        kept = []
        for block, combine in enumerate(self.combines):
            if _state(block) not in read:
                kept += [2 * block] if lookup(combine) == "add" else [2 * block, 2 * block + 1]
        return tuple(self.width * half + i for half in kept for i in range(self.width))

    def __repr__(self) -> str:
        return f"Unread({len(self.combines)} blocks of {self.width})"


class Read(nn.Module):
    """One of the states: an input as it is, a block's pair joined."""

    def __init__(self, position: int, join: nn.Module | None = None) -> None:
        super().__init__()
        self.position, self.join = position, join

    def forward(self, *states: Tensor | Pair) -> Tensor:
        """The states -> (N, width, H, W)."""
        state = states[self.position]
        if isinstance(state, Tensor):
            return state
        assert self.join is not None
        out: Tensor = self.join(*state)
        return out


class Sum(nn.Module):
    """Two results added."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, C, H, W) twice -> the same."""
        return a + b


class Narrowed(nn.Module):
    """Two results side by side, brought back to the width of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = ReLUConvBN(2 * width, width, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, C, H, W) twice -> the same."""
        out: Tensor = self.project(torch.cat((a, b), 1))
        return out


class Block(nn.Module):
    """Two states, each through an operation: the states -> a pair of (N, width, H, W)."""

    def __init__(
        self,
        kind: str,
        block: int,
        choices: Mapping[str, Choice],
        operations: Mapping[str, Operation],
        width: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.choices = [choices[f"{kind}_{what}_{block}{side}"] for what in ("input", "op") for side in "ab"]
        self.sides = nn.ModuleList()
        for side in "ab":
            states = {}
            strided = self._operations(choices[f"{kind}_op_{block}{side}"], operations, width, 1 + (kind == "reduce"))
            plain = strided
            if kind == "reduce" and block:
                plain = self._operations(choices[f"{kind}_op_{block}{side}"], operations, width, 1)
            for position, state in enumerate((*INPUTS, *map(_state, range(block)))):
                join = None
                if position > 1:
                    join = OneOf({"add": Sum(), "concat": Narrowed(width)})
                    join.choice = choices[f"{kind}_combine_{position - 2}"]
                states[state] = _Path(Read(position, join), plain if position > 1 else strided, drop_path)
            picked = OneOf(states)
            picked.choice = choices[f"{kind}_input_{block}{side}"]
            self.sides.append(picked)

    @staticmethod
    def _operations(choice: Choice, operations: Mapping[str, Operation], width: int, stride: int) -> nn.Module:
        mixed = OneOf({name: make(width, stride, False) for name, make in operations.items()})
        mixed.choice = choice
        return mixed

    def forward(self, *states: Tensor | Pair) -> Pair:
        """The states -> the two results."""
        return self.sides[0](*states), self.sides[1](*states)


class _Path(nn.Module):
    """What is read, its operation, and drop-path: an operation shares its weights between the states it may read."""

    def __init__(self, read: Read, operation: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.read, self.operation, self.drop_path = read, operation, DropPath(drop_path)

    def forward(self, *states: Tensor | Pair) -> Tensor:
        out: Tensor = self.drop_path(self.operation(self.read(*states)))
        return out


class NASNetCell(nn.Module):
    """One cell: the outputs of the two cells before -> the blocks that no other reads, along the channels.

    channels: of the two inputs. output: the channels of what comes out.
    """

    def __init__(
        self,
        kind: str,
        blocks: int,
        channels: tuple[int | Size, int | Size],
        width: int,
        choices: Mapping[str, Choice],
        operations: Mapping[str, Operation],
        *,
        after_reduction: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.preprocess = nn.ModuleList([_preprocess(channels[0], width, after_reduction)])
        self.preprocess.append(_preprocess(channels[1], width, False))
        self.blocks = nn.ModuleList(Block(kind, i, choices, operations, width, drop_path) for i in range(blocks))
        inputs = tuple((choices[f"{kind}_input_{i}a"], choices[f"{kind}_input_{i}b"]) for i in range(blocks))
        self.combines = tuple(choices[f"{kind}_combine_{i}"] for i in range(blocks))
        self.width = width
        self.output: Size | Option = Unread(inputs, self.combines, width)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """(N, C0, H0, W0), (N, C1, H, W) -> (N, output, H', W')."""
        states: list[Tensor | Pair] = [make(x) for make, x in zip(self.preprocess, (before, last), strict=True)]
        for block in self.blocks:
            states.append(block(*states))
        value = self.output.hard if isinstance(self.output, Size) else self.output
        halves: list[Tensor] = []
        for i, state in enumerate(states[2:]):
            a, b = state
            if value is None:  # all channels: their reader masks them
                add, concat = self.combines[i].probabilities(a).unbind()
                halves += [add * (a + b) + concat * a, b]
            elif 2 * i * self.width in value:  # type: ignore[operator]
                both = (2 * i + 1) * self.width in value  # type: ignore[operator]
                halves += [a, b] if both else [a + b]
        return torch.cat(halves, 1)


class NASNet(nn.Module):
    """A classifier of searched cells: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, at least 4.
        width: F, channels of an operation in the first cells; a reduction cell doubles it.
        repeats: N, normal cells between the reduction cells: N, reduction, N, reduction, N.
        blocks: B, in a cell.
        operations: by name, those among which a block chooses.
        drop_path: probability that a path is dropped in the last cell at the end of training; it grows in proportion
            to the depth of the cell and to `progress` (the paper keeps 0.6 of the paths on CIFAR).

    Raises ValueError for smaller images, and for no blocks.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        *,
        width: int = 32,
        repeats: int = 6,
        blocks: int = 5,
        operations: Mapping[str, Operation] | None = None,
        drop_path: float = 0.4,
    ) -> None:
        super().__init__()
        if min(size) < 4:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit NASNet: give at least 4 pixels a side")
        if blocks < 1 or repeats < 0:
            raise ValueError(f"{blocks} blocks, {repeats} repeats: give at least 1 block, and no fewer than 0 repeats")
        offered = NASNET_OPERATIONS if operations is None else operations
        choices = _choices(blocks, tuple(offered))
        kinds = [KINDS[i % (repeats + 1) == repeats] for i in range(3 * repeats + 2)]
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        before: int | Size = width
        last: int | Size = width
        for i, kind in enumerate(kinds):
            width *= 1 + (kind == "reduce")
            dropped = drop_path * (i + 1) / len(kinds)
            cell = NASNetCell(
                kind,
                blocks,
                (before, last),
                width,
                choices,
                offered,
                after_reduction=i > 0 and kinds[i - 1] == "reduce",
                drop_path=dropped,
            )
            self.cells.append(cell)
            assert isinstance(cell.output, Size)
            before, last = last, cell.output
        self.classifier = elastic.Linear(last, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        logits: Tensor = self.classifier(last.relu().mean((2, 3)))
        return logits

    def progress(self, share: float) -> None:
        """Set drop-path for the share of training that is done, from 0 to 1 (ScheduledDropPath)."""
        set_progress(self, share)

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


def _choices(blocks: int, operations: tuple[str, ...]) -> dict[str, Choice]:
    found = {}
    for kind, block in itertools.product(KINDS, range(blocks)):
        found[f"{kind}_combine_{block}"] = Choice(("add", "concat"), name=f"{kind}_combine_{block}")
        for side in "ab":
            name = f"{kind}_input_{block}{side}"
            found[name] = Choice((*INPUTS, *map(_state, range(block))), name=name)
            name = f"{kind}_op_{block}{side}"
            found[name] = Choice(operations, name=name)
    return found


def _state(block: int) -> str:
    return f"block_{block}"


def _preprocess(channels: int | Size, width: int, halve: bool) -> nn.Module:
    """A 1x1 convolution to the cell's width, of a tensor with twice the sides where the last cell halved them."""
    if not halve:
        conv = elastic.Conv2d(channels, width, 1, bias=False)
        return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(width))
    reduce = FactorizedReduce(2, width)
    reduce.conv_1 = elastic.Conv2d(channels, width // 2, 1, bias=False)
    reduce.conv_2 = elastic.Conv2d(channels, width - width // 2, 1, bias=False)
    return reduce


def _two_lines(length: int, width: int, stride: int, searching: bool) -> nn.Module:
    """ReLU, a 1 x length and a length x 1 convolution, batch norm."""
    half = length // 2
    across = nn.Conv2d(width, width, (1, length), (1, stride), (0, half), bias=False)
    down = nn.Conv2d(width, width, (length, 1), (stride, 1), (half, 0), bias=False)
    return nn.Sequential(nn.ReLU(), across, down, nn.BatchNorm2d(width, affine=not searching))


class EverySecond(nn.Module):
    """Every second row and column: in front of a 1x1 convolution, the same as its stride of 2."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2))."""
        return x[:, :, ::2, ::2]


def _conv(kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    if kernel == 1 and stride == 2:  # of which torch's own writes beyond its memory where channels are few
        return nn.Sequential(EverySecond(), ReLUConvBN(width, width, 1, 1, not searching))
    return ReLUConvBN(width, width, kernel, stride, not searching)


def _sep_conv(kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    return SeparableConv(width, kernel, stride, not searching)


def _dil_conv(width: int, stride: int, searching: bool) -> nn.Module:
    return DilatedConv(width, 3, stride, not searching)


def _pool(kind: str, kernel: int, width: int, stride: int, searching: bool) -> nn.Module:
    return Pool(kind, kernel, width, stride, searching)


NASNET_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "identity": OPERATIONS["skip_connect"],
        "conv_1x7_7x1": partial(_two_lines, 7),
        "conv_1x3_3x1": partial(_two_lines, 3),
        "avg_pool_3x3": partial(_pool, "avg", 3),
        "max_pool_3x3": partial(_pool, "max", 3),
        "max_pool_5x5": partial(_pool, "max", 5),
        "max_pool_7x7": partial(_pool, "max", 7),
        "conv_1x1": partial(_conv, 1),
        "conv_3x3": partial(_conv, 3),
        "dil_conv_3x3": _dil_conv,
        "sep_conv_3x3": partial(_sep_conv, 3),
        "sep_conv_5x5": partial(_sep_conv, 5),
        "sep_conv_7x7": partial(_sep_conv, 7),
    }
)
"""The thirteen operations of NASNet."""
