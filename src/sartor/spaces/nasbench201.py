# SPDX-License-Identifier: Apache-2.0
"""The network of NAS-Bench-201: one searched cell, repeated 15 times in three stages.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020,
arXiv:2001.00326. The choices are those of `nasbench201_cell`, and so of the table `sartor.tables` ships: an
architecture of one is an architecture of the other.

    arch = from_string("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|")
    network = extract(NASBench201(), arch)  # plain torch.nn layers
    network.architecture() == arch

A gradient-based search trains the mixture of all operations: `NASBench201(affine=False, track_running_stats=False)`, as
its authors did. The choices are the same.

Differs from the published code:
- A sum leaves the zero operation out instead of adding zeros; the values are the same.
- In the search form, convolutions before a batch norm without shifts have no biases, which it would subtract again.
- Where a side is odd, the residual blocks round it up, so that images of any size from 4x4 fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import Choice
from sartor.nn import OneOf, Zero, channels_last, read_together
from sartor.nn.mixing import summed
from sartor.spaces.cell_operations import Pool, ReLUConvBN
from sartor.spaces.nasbench201_cell import EDGES, OPERATIONS, choice_name
from sartor.workload import Op, Workload, macs

__all__ = ["Cell", "NASBench201", "published_flops"]


class Cell(nn.Module):
    """The searched cell, whose edges hold one of five operations: (N, C, H, W) -> the same shape."""

    def __init__(
        self,
        width: int,
        choices: Mapping[str, Choice],
        affine: bool = True,
        track_running_stats: bool = True,
        mixed: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.edges = nn.ModuleDict()

        def make(width: int) -> dict[str, nn.Module]:
            return {one: _operation(one, width, affine, track_running_stats) for one in OPERATIONS}

        for name, choice in choices.items():
            edge: Any = OneOf(make(width)) if mixed is None else mixed(make, width, 1)
            edge.choice = choice  # one decision for all cells
            self.edges[name] = edge

    def forward(self, x: Tensor) -> Tensor:
        """The output node: each node is the sum of its incoming edges."""
        nodes = [x]
        terms: list[list[Tensor]] = [[], [], []]
        for source in (0, 1, 2):
            targets = [n for n in (1, 2, 3)[source:] if not _is_zero(self.edges[choice_name((source, n))])]
            edges = [(self.edges[choice_name((source, node))], None) for node in targets]
            for node, output in zip(targets, read_together(edges, nodes[source]), strict=True):
                terms[node - 1].append(output)
            nodes.append(summed(terms[source]) if terms[source] else torch.zeros_like(x))
        return nodes[-1]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions that halve the sides and change the width, beside a pooled 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, 3, 2)
        self.conv_b = ReLUConvBN(out_channels, out_channels, 3)
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.downsample = nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        out: Tensor = self.downsample(x) + self.conv_b(self.conv_a(x))
        return out


class NASBench201(nn.Module):
    """A classifier of one searched cell: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images; the benchmark's are 32x32, and 16x16 for ImageNet16-120.
        width: of the first stage; the others have twice and four times as many channels.
        cells: in each of the three stages.
        affine: whether the cells' batch norms have scales and shifts; a search goes without.
        track_running_stats: whether the cells' batch norms keep statistics, or use each batch's own, as in a search.
        mixed: makes an edge, `mixed(make, width, 1)` with `make(width)` the operations by name, and has a `choice`; a
            `OneOf` of them if None.

    Raises ValueError for images smaller than 4x4.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        *,
        width: int = 16,
        cells: int = 5,
        affine: bool = True,
        track_running_stats: bool = True,
        mixed: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if min(size) < 4:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit NASBench201: give at least 4 pixels a side")
        self.searching = not affine
        choices = {name: Choice(OPERATIONS, name=name) for name in map(choice_name, EDGES)}
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.layers = nn.Sequential()
        for stage in range(3):
            if stage:
                self.layers.append(ResidualBlock(width, 2 * width))
                width *= 2
            for _ in range(cells):
                self.layers.append(Cell(width, choices, affine, track_running_stats, mixed))
        self.last_norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        if self.searching and x.device.type == "cpu":
            x = channels_last(x)  # in which pools are several times as fast
        x = F.relu(self.last_norm(self.layers(self.stem(x)))).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults, as the benchmark did."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()

    def architecture(self) -> Architecture:
        """Return the architecture, read from the modules of an extracted network (the choices in force, before).

        Raises ValueError where a choice is soft, an edge holds another operation or cells differ.
        """
        cells = [module for module in self.layers if isinstance(module, Cell)]
        found = [Architecture({name: _option(edge) for name, edge in cell.edges.items()}) for cell in cells]
        if len(set(found)) != 1:
            raise ValueError(f"the network has {len(set(found))} different cells: NAS-Bench-201 repeats a single one")
        return found[0]


def published_flops(workload: Workload) -> float:
    """Count FLOPs as NASLib did for the table's `flops_m` column, from the trace of an extracted network.

    That is one for a multiply-accumulate, two for each output of a batch norm, one for each of a ReLU, and k*k
    for each of a k x k pool; the global pool of H x W pixels counts (H + 1) * (W + 1) a channel. Sums, biases
    and zeros count nothing. The NAS-Bench-201 API's own numbers follow another rule.
    """
    return macs(workload) + sum(map(_beside_macs, workload))


def _beside_macs(op: Op) -> int:
    numbers = math.prod(op.output)
    if op.kind == "batch_norm":
        return 2 * numbers
    if op.kind == "relu":
        return numbers
    if op.kind == "avg_pool2d":  # 3x3 in a cell, which keeps the shape; 2x2 in a residual block, which does not
        return numbers * (9 if op.inputs[0] == op.output else 4)
    if op.kind == "mean":
        return math.prod(op.inputs[0][:2]) * math.prod(side + 1 for side in op.inputs[0][2:])
    return 0


def _operation(name: str, width: int, affine: bool, track_running_stats: bool) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return Pool("avg", 3, width)
    kernel = 3 if name == "nor_conv_3x3" else 1
    return ReLUConvBN(width, width, kernel, 1, affine, track_running_stats)


def _option(edge: nn.Module) -> Option:
    if isinstance(edge, OneOf):
        return edge.choice.value
    if isinstance(edge, ReLUConvBN) and isinstance(edge[1], nn.Conv2d):
        side = edge[1].kernel_size[0]
        return f"nor_conv_{side}x{side}"
    for kind, name in ((Zero, "none"), (nn.Identity, "skip_connect"), (Pool, "avg_pool_3x3")):
        if isinstance(edge, kind):
            return name
    raise ValueError(f"{edge} is no operation of NAS-Bench-201: these are {', '.join(OPERATIONS)}")


def _is_zero(edge: nn.Module) -> bool:
    return isinstance(edge, Zero) or (isinstance(edge, OneOf) and edge.choice.hard == "none")
