# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-B0 as a baseline: fixed blocks, of which only the compound coefficient is chosen.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv:1905.11946.

One choice, `phi`, scales everything at once, as the paper does: depth by 1.2^phi, width by 1.1^phi, and the input
resolution by 1.15^phi where images are square and have 24 pixels at least. 0 is the network itself, -1 to -3 are
smaller ones, whose channels and blocks are the first of it; the larger networks of the paper are its multipliers
`width` and `depth`, such as 1.4 and 1.8 for B4. Smaller images: see `_chain.plan_for`.

Differs from the paper: it scales up, where depths are rounded up; downwards they are rounded. No stochastic depth;
batch norm's epsilon is 1e-5; weights start as in the other spaces.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size
from sartor.nn import SqueezeExcite, round_channels
from sartor.sizes import indices
from sartor.spaces._blocks import ConvNorm, InvertedResidual, has_resolutions
from sartor.spaces._chain import Plan, Stage, check_size, plan_for, widened
from sartor.spaces._elastic_chain import ElasticChain, elastic_stages

__all__ = ["ALPHA", "BETA", "COEFFICIENTS", "GAMMA", "PLAN", "EfficientNetB0"]

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15  # of depth, width and resolution
COEFFICIENTS = (-3, -2, -1, 0)

_STAGES = (
    Stage(16, 1, 1, kernel=3, expand=1),
    Stage(24, 2, 2, kernel=3, expand=6),
    Stage(40, 2, 2, kernel=5, expand=6),
    Stage(80, 3, 2, kernel=3, expand=6),
    Stage(112, 3, 1, kernel=5, expand=6),
    Stage(192, 4, 2, kernel=5, expand=6),
    Stage(320, 1, 1, kernel=3, expand=6),
)
PLAN = Plan(stem=32, stem_stride=2, first=0, stages=_STAGES, head=1280)


class EfficientNetB0(ElasticChain):
    """A classifier of seven stages: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 224.
        width, depth: multipliers of all widths, and of all stages' blocks.
        dropout: before the classifier.

    Raises ValueError for an image size outside of 8 to 224.
    """

    def __init__(
        self,
        classes: int = 1000,
        channels: int = 3,
        size: tuple[int, int] = (224, 224),
        *,
        width: float = 1.0,
        depth: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        plan = plan_for(_deepened(widened(PLAN, width), depth), check_size(size, "EfficientNetB0"))
        phi = Choice(COEFFICIENTS, name="phi")
        stem, head = (Derived(_width, wide, phi) for wide in (plan.stem, plan.head))
        stages = [(one, Derived(_width, one.width, phi), Derived(_depth, one.layers, phi)) for one in plan.stages]
        parts = (
            ConvNorm(channels, stem, 3, plan.stem_stride, activation=F.silu),
            elastic_stages(stem, stages, _block),
            ConvNorm(stages[-1][1], head, 1, activation=F.silu),
        )
        resolution = Derived(_resolution, size[0], phi) if has_resolutions(size) else None
        super().__init__(parts, head, classes, dropout=dropout, resolution=resolution)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _block(stage: Stage, in_channels: int | Size, out_channels: int | Size, stride: int) -> nn.Module:
    """A block whose gate is a quarter of the block's own input wide."""
    narrow = Derived(_quarter, in_channels) if isinstance(in_channels, Size) else _quarter(in_channels)
    gate = partial(SqueezeExcite, reduced=narrow, activation=F.silu, gate=torch.sigmoid)
    skip = nn.Identity() if stride == 1 and in_channels == out_channels else None
    sizes = (stage.kernel,), (stage.expand,)
    return InvertedResidual(in_channels, out_channels, stride, *sizes, activation=F.silu, gate=gate, skip=skip)


def _deepened(plan: Plan, depth: float) -> Plan:
    return replace(plan, stages=tuple(replace(one, layers=math.ceil(one.layers * depth)) for one in plan.stages))


def _width(width: Option, phi: Option) -> int:
    return round_channels(len(indices(width)) * BETA ** _number(phi))


def _depth(layers: Option, phi: Option) -> int:
    return max(1, round(_number(layers) * ALPHA ** _number(phi)))


def _resolution(side: Option, phi: Option) -> int:
    return 4 * round(_number(side) * GAMMA ** _number(phi) / 4) if phi else int(_number(side))


def _quarter(width: Option) -> int:
    return max(1, round(len(indices(width)) / 4))


def _number(value: Option) -> int:
    assert isinstance(value, int)
    return value
