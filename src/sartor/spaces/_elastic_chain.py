# SPDX-License-Identifier: Apache-2.0
"""Chains whose blocks and depths are elastic, and Once-for-All's dimensions of them: what those spaces share.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020, arXiv:1908.09791.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from sartor.choice import Choice, Size
from sartor.nn import Linear, Repeat, SqueezeExcite
from sartor.spaces._blocks import ConvNorm, InvertedResidual, has_resolutions, initialise, searched
from sartor.spaces._chain import Plan, Stage

__all__ = ["EXPANSIONS", "ElasticChain", "depths", "elastic_stages", "kernels_for", "mobile_parts", "resolutions"]

EXPANSIONS = (3, 4, 6)


class ElasticChain(nn.Module):
    """Stem, stages, head, mean over the map, what mixes features if anything does, linear.

    resolution: the searched input resolution, if it is. width: of what the linear layer reads.
    """

    def __init__(
        self,
        parts: tuple[nn.Module, nn.Module, nn.Module],
        width: int | Size,
        classes: int,
        *,
        mix: nn.Module | None = None,
        dropout: float,
        resolution: Size | None = None,
    ) -> None:
        super().__init__()
        if resolution is not None:
            self.resolution = resolution
        self.stem, self.stages, self.head = parts
        self.mix = mix
        self.dropout = nn.Dropout(dropout)
        self.classifier = Linear(width, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.head(self.stages(self.stem(x))).mean((2, 3))
        if self.mix is not None:
            x = self.mix(x)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted: He normal by fan-out, as MobileNetV2."""
        if not self.classifier.weight.is_meta:
            initialise(self.modules())


def elastic_stages(
    before: int | Size,
    stages: Iterable[tuple[Stage, int | Size, int | Size]],
    block: Callable[[Stage, int | Size, int | Size, int], nn.Module],
) -> nn.Sequential:
    """Blocks in `<stage>.<i>`, the first of each stage with its stride; stages come with their widths and depths."""
    made = nn.Sequential()
    for stage, width, depth in stages:
        first = block(stage, before, width, stage.stride)
        made.append(Repeat(first, *[block(stage, width, width, 1) for _ in range(stage.layers - 1)], depth=depth))
        before = width
    return made


def mobile_parts(
    plan: Plan, channels: int, kernels: Sequence[int], activation: Callable[[Tensor], Tensor], eps: float = 1e-5
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Stem, stages and head of a mobile network in Once-for-All's dimensions; activation: of stem and head."""

    def block(stage: Stage, in_channels: int | Size, out_channels: int | Size, stride: int) -> nn.Module:
        return InvertedResidual(
            in_channels,
            out_channels,
            stride,
            kernels,
            EXPANSIONS,
            activation=stage.activation,
            gate=SqueezeExcite if stage.squeeze else None,
            skip=nn.Identity() if stride == 1 and in_channels == out_channels else None,
            transform=True,
            eps=eps,
        )

    skip = nn.Identity() if plan.stem == plan.first else None
    of_first = plan.stages[0].activation
    first = InvertedResidual(plan.stem, plan.first, 1, (3,), (1,), activation=of_first, skip=skip, eps=eps)
    stem = ConvNorm(channels, plan.stem, 3, plan.stem_stride, activation=activation, eps=eps)
    searched_stages = [(stage, stage.width, depths(stage.layers)) for stage in plan.stages]
    stages = elastic_stages(plan.first, searched_stages, block)
    head = ConvNorm(plan.stages[-1].width, plan.head, 1, activation=activation, eps=eps)
    return nn.Sequential(stem, first), stages, head


def depths(most: int) -> int | Choice:
    """How many blocks of a stage run: all, one or two less, and no less than one."""
    return searched(range(max(1, most - 2), most + 1))


def kernels_for(size: int) -> tuple[int, ...]:
    """The kernels for images of this shorter side: as published from 64 pixels on, below without the largest."""
    return (3, 5, 7) if size >= 64 else (3, 5)


def resolutions(size: tuple[int, int]) -> Choice | None:
    """Every fourth resolution from four sevenths of the image on, 128 to 224 of 224; None where it is not searched."""
    if not has_resolutions(size):
        return None
    side = size[0]
    return Choice([*range(4 * math.ceil(side / 7), side, 4), side])
