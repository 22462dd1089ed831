# SPDX-License-Identifier: Apache-2.0
"""Once-for-All's ResNet-50: bottlenecks of elastic width, expansion and number.

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
arXiv:1908.09791; He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.

Searched: the width of each stage and of the stem, .65, .8 or 1 times ResNet-50's (`stages.<i>.width`, `stem.width`,
`stem.inner.width`); two blocks less than ResNet-50 has and two more, (2, 2, 4, 2) to (4, 4, 6, 4) of the four stages
(`stages.<i>.depth`); the ratio of a block's inner width to its outer one, .2, .25 or .35 (`stages.<i>.<j>.expand`);
whether the stem has its second convolution (`stem.depth`); the input resolution, every fourth from 128 to 224. A block
that halves the map does so in its 3x3 convolution, and its skip by an average pool.

Smaller images: strides that come first are left out, that of the stem before the pool's, until maps end at 4x4. Below
64 pixels widths are half and stages have one or two blocks; below 16 a quarter, and there are three stages.

Differs from the paper: two of the three widths inside the stem are equal (24, 24, 32), and are one option here. Weights
start as in the other spaces.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Conv2d, Repeat, round_channels
from sartor.spaces._blocks import ConvNorm, Residual, relu, scaled, searched, shortcut
from sartor.spaces._chain import Plan, Stage, check_size, plan_for
from sartor.spaces._elastic_chain import ElasticChain, depths, elastic_stages, resolutions

__all__ = ["EXPANSIONS", "PLAN", "WIDTHS", "Bottleneck", "OFAResNet50"]

EXPANSIONS, WIDTHS = (0.2, 0.25, 0.35), (0.65, 0.8, 1.0)

# The pool in front of the first stage counts as its stride.
PLAN = Plan(
    stem=64,
    stem_stride=2,
    first=0,
    stages=(Stage(256, 4, 2), Stage(512, 4, 2), Stage(1024, 6, 2), Stage(2048, 4, 2)),
    head=0,
)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, plus a skip, then ReLU: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int | Size, out_channels: int | Size, stride: int) -> None:
        super().__init__()
        self.expand = Choice(EXPANSIONS)
        inner = scaled(out_channels, self.expand)
        self.reduce = ConvNorm(in_channels, inner, 1, activation=relu)
        self.conv = ConvNorm(inner, inner, 3, stride, activation=relu)
        self.project_conv = Conv2d(inner, out_channels, 1, bias=False)
        self.project_norm = BatchNorm2d(out_channels)
        self.skip = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return relu(self.project_norm(self.project_conv(self.conv(self.reduce(x)))) + self.skip(x))


class OFAResNet50(ElasticChain):
    """A classifier of four stages: (N, channels, H, W) normalised images -> (N, classes) logits.

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
        plan = plan_for(PLAN, check_size(size, "OFAResNet50"))
        width = _widths(plan.stem, "stem.width")
        stages = [
            (replace(stage, stride=stage.stride if i else 1), _widths(stage.width, f"stages.{i}.width"))
            for i, stage in enumerate(plan.stages)
        ]
        body = elastic_stages(width, [(one, wide, depths(one.layers)) for one, wide in stages], _block)
        parts = _stem(plan, channels, width), body, nn.Identity()
        super().__init__(parts, stages[-1][1], classes, dropout=dropout, resolution=resolutions(size))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _stem(plan: Plan, channels: int, width: int | Size) -> nn.Sequential:
    """Three convolutions, of which the second can be left out, and the pool."""
    inner = _widths(plan.stem // 2, "stem.inner.width")
    layers: list[nn.Module] = [
        ConvNorm(channels, inner, 3, plan.stem_stride, activation=relu),
        Repeat(Residual(ConvNorm(inner, inner, 3, activation=relu)), depth=Choice([0, 1], name="stem.depth")),
        ConvNorm(inner, width, 3, activation=relu),
    ]
    if plan.stages[0].stride == 2:
        layers.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*layers)


def _block(stage: Stage, in_channels: int | Size, out_channels: int | Size, stride: int) -> nn.Module:
    return Bottleneck(in_channels, out_channels, stride)


def _widths(width: int, name: str) -> int | Size:
    """The widths that the multipliers give, each once; the width itself where they give no other."""
    return searched(list(dict.fromkeys(round_channels(width * factor) for factor in WIDTHS)), name)
