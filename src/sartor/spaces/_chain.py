# SPDX-License-Identifier: Apache-2.0
"""Chains of mobile inverted bottlenecks, of which each layer is chosen from several: what their spaces share.

Sandler et al., "MobileNetV2", CVPR 2018, arXiv:1801.04381 (the block); Zhang et al., "ShuffleNet", CVPR 2018,
arXiv:1707.01083 (group convolutions and the shuffle between them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import starmap

from torch import Tensor, nn

from sartor.nn import round_channels
from sartor.spaces._blocks import check_size, halvings, initialise, relu

__all__ = ["MOBILE", "Chain", "ConvNorm", "MBConv", "Plan", "Shuffle", "Stage", "check_size", "plan_for", "widened"]

Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class Stage:
    """Layers of one width: the first takes the stride. What else tells stages apart is for elastic chains to read.

    kernel, expand: of the layers, where they are not searched. squeeze: whether they have a squeeze-and-excitation.
    """

    width: int
    layers: int
    stride: int
    kernel: int = 3
    expand: int = 6
    squeeze: bool = False
    activation: Callable[[Tensor], Tensor] = relu


@dataclass(frozen=True)
class Plan:
    """A chain around which nothing is searched: widths of the stem, the stages and the head.

    first: width of an unsearched block behind the stem; 0 for none.
    """

    stem: int
    stem_stride: int
    first: int
    stages: tuple[Stage, ...]
    head: int

    @property
    def halvings(self) -> int:
        """How often the map is halved."""
        return (self.stem_stride == 2) + sum(stage.stride == 2 for stage in self.stages)

    def layers(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield name, input width, output width and stride of each searched layer."""
        before = self.first or self.stem
        for i, stage in enumerate(self.stages):
            for j in range(stage.layers):
                yield f"stages.{i}.blocks.{j}", before, stage.width, 1 if j else stage.stride
                before = stage.width


_MOBILE = zip((24, 40, 80, 96, 192, 320), (4, 4, 4, 4, 4, 1), (2, 2, 2, 1, 2, 1), strict=True)
MOBILE = Plan(stem=32, stem_stride=2, first=16, stages=tuple(starmap(Stage, _MOBILE)), head=1280)
"""The chain of ProxylessNAS and Single-Path NAS, for 224 pixels."""


def widened(published: Plan, width: float) -> Plan:
    """Return the plan with every width times a multiplier, to multiples of 8."""
    stages = tuple(replace(stage, width=round_channels(stage.width * width)) for stage in published.stages)
    stem, first, head = (round_channels(one * width) for one in (published.stem, published.first, published.head))
    return replace(published, stem=stem, first=first, head=head, stages=stages)


def plan_for(published: Plan, size: int) -> Plan:
    """Return the plan for images whose shorter side is `size`.

    The map is halved until it is about 4x4, 7x7 from 224 pixels, and the strides that come first are left out, as
    small images have the least to lose late. From 64 pixels widths and layers are the published ones; below, stages
    have half the width and at most two layers; below 16 pixels a quarter of the width, and three stages are left.
    """
    surplus = published.halvings - halvings(size, published.halvings)
    stem_stride, stages = published.stem_stride, list(published.stages)
    if surplus and stem_stride == 2:
        stem_stride, surplus = 1, surplus - 1
    for i, stage in enumerate(stages):
        if surplus and stage.stride == 2:
            stages[i], surplus = replace(stage, stride=1), surplus - 1
    if size >= 64:
        return replace(published, stem_stride=stem_stride, stages=tuple(stages))
    part = 2 if size >= 16 else 4
    stages = [replace(one, width=_whole(one.width / part), layers=min(one.layers, 2)) for one in stages]
    if size < 16:
        stages = _merged(stages)
    narrow = {
        "stem": _whole(published.stem / part),
        "first": _whole(published.first / part),
        "head": published.head // 8,
    }
    return Plan(stem_stride=stem_stride, stages=tuple(stages), **narrow)


def _whole(width: float) -> int:
    """A width of at least 8 in multiples of 4, so that two groups of it are even; 0 stays 0."""
    return 4 * max(2, round(width / 4)) if width else 0


def _merged(stages: Sequence[Stage]) -> list[Stage]:
    """Three stages of five layers: the first, one midway, and the one that halves the map."""
    last = next(i for i, stage in enumerate(stages) if stage.stride == 2)
    first, middle, end = stages[0], stages[last // 2], stages[last]
    return [replace(first, layers=1, stride=1), replace(middle, layers=2, stride=1), replace(end, layers=2, stride=2)]


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, and an activation if one is given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: Activation | None = None,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels), *([activation()] if activation else []))


class Shuffle(nn.Module):
    """Channels of several groups in turns, so that the groups of the next convolution see all of them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape: channel i of group g moves to place i * groups + g."""
        split = x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:])
        return split.transpose(1, 2).flatten(1, 2)


class MBConv(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1, plus the input where shapes allow: (N, C, H, W).

    groups: of both 1x1 convolutions, with a shuffle behind the first. An expansion of 1 has no first convolution,
    unless `always_expand`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        kernel: int,
        expand: int,
        *,
        activation: Activation,
        groups: int = 1,
        always_expand: bool = False,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential()
        if expand > 1 or always_expand:
            self.layers.append(ConvNorm(in_channels, hidden, 1, groups=groups, activation=activation))
        if groups > 1:
            self.layers.append(Shuffle(groups))
        self.layers.append(ConvNorm(hidden, hidden, kernel, stride, groups=hidden, activation=activation))
        self.layers.append(ConvNorm(hidden, out_channels, 1, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.layers(x)
        return out + x if self.has_shortcut else out


class Chain(nn.Module):
    """Stem, an unsearched block if the plan has one, searched layers, head, mean over the map, linear.

    published: the plan for 224 pixels, which `plan_for` fits to images of `size` (H, W).
    layer: (name, in_channels, out_channels, stride) -> the searched layer, in `stages.<i>.blocks.<j>`.

    Raises ValueError for an image size outside of 8 to 224.
    """

    def __init__(
        self,
        published: Plan,
        layer: Callable[[str, int, int, int], nn.Module],
        classes: int,
        channels: int,
        size: tuple[int, int],
        *,
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        plan = plan_for(published, check_size(size, type(self).__name__))
        self.stem = nn.Sequential(ConvNorm(channels, plan.stem, 3, plan.stem_stride, activation=activation))
        if plan.first:
            self.stem.append(MBConv(plan.stem, plan.first, 1, 3, 1, activation=activation))
        self.stages = nn.Sequential(*(nn.Sequential() for _ in plan.stages))
        for name, before, width, stride in plan.layers():
            stage = self.stages[int(name.split(".")[1])]
            assert isinstance(stage, nn.Sequential)
            stage.append(layer(name, before, width, stride))
        self.head = ConvNorm(plan.stages[-1].width, plan.head, 1, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(plan.head, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.head(self.stages(self.stem(x))).mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted: He normal by fan-out, as MobileNetV2."""
        if not self.classifier.weight.is_meta:
            initialise(self.modules())
