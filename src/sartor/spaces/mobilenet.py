"""Elastic MobileNet: one convolutional network from 8x8 grey to 224x224 colour images.

Sandler et al., "MobileNetV2", CVPR 2018, arXiv:1801.04381 (inverted residual); Howard et al., "Searching for
MobileNetV3", ICCV 2019, arXiv:1905.02244 (squeeze-and-excitation); Yu et al., "BigNAS", ECCV 2020,
arXiv:2003.11142 (every block has a skip, whose branch starts at zero).

The image size decides how often the network halves it, down to about 4x4 (7x7 from 224), and so the number of
stages. Searched: kernel, expansion and squeeze-and-excitation of each block; width and depth of each stage;
the width of the head; and the input resolution where images have at least 24 pixels. The first stage, whose maps are
the largest, has the small kernel and expansions that it has in the papers' networks. Below 16 pixels, where calling an
operator costs more than its arithmetic, a stage that halves the map may do so without a block.

Differs from the papers:
- ReLU everywhere: runtimes fuse it into the convolution, and it quantises well.
- The squeeze gate follows MobileNetV3 (ratio 1/4 of the expanded width, hard sigmoid).
- Stage widths and the small-image forms are ours; the papers start at 128 pixels. Their first stage has expansion 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Conv2d, Linear, OneOf, Repeat, SqueezeExcite
from sartor.spaces._blocks import (
    InvertedResidual,
    check_size,
    halvings,
    has_resolutions,
    initialise,
    shortcut,
)

__all__ = ["InvertedResidual", "MobileNet"]


@dataclass(frozen=True)
class Form:
    """What is searched at an image size: each stage's widths, and its blocks, their expansions and kernels.

    may_pool: a stage that halves the map may do so without any block.
    """

    widths: tuple[tuple[int, ...], ...]
    blocks: int
    expansions: tuple[int, ...]
    kernels: tuple[int, ...]
    may_pool: bool = False


FIRST_KERNELS, FIRST_EXPANSIONS = (3,), (1, 2, 3)  # of the first stage
WIDTHS = ((8, 16, 24), (16, 24, 40), (24, 40, 64), (48, 80, 112), (96, 144, 192))
TINY = Form(((4, 8, 16), (8, 16, 32)), 2, expansions=(2, 3, 4), kernels=(3, 5), may_pool=True)  # below 16 pixels
SMALL = Form(WIDTHS, blocks=3, expansions=(2, 3, 4), kernels=(3, 5))  # below 64 pixels
FULL = Form(WIDTHS, blocks=4, expansions=(3, 4, 6), kernels=(3, 5, 7))


def _block(
    in_channels: int | Size, out_channels: Size, stride: int, kernels: tuple[int, ...], expansions: tuple[int, ...]
) -> InvertedResidual:
    """A block with a searched gate, and a skip in any case."""
    skip = shortcut(in_channels, out_channels, stride)
    return InvertedResidual(in_channels, out_channels, stride, kernels, expansions, gate=_gate, skip=skip)


def _gate(width: int | Size) -> nn.Module:
    return OneOf({"none": nn.Identity(), "se": SqueezeExcite(width)})


class MobileNet(nn.Module):
    """An elastic classifier: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 224.
        dropout: before the classifier (BigNAS section 3.2).

    Raises ValueError for an image size outside of 8 to 224.
    """

    def __init__(
        self, classes: int, channels: int = 3, size: tuple[int, int] = (224, 224), *, dropout: float = 0.2
    ) -> None:
        super().__init__()
        shorter = check_size(size, "MobileNet")
        if has_resolutions(size):
            self.resolution = Choice(_resolutions(shorter))
        form = TINY if shorter < 16 else SMALL if shorter < 64 else FULL
        stem_stride, strides = _strides(shorter)
        widths = [Choice(form.widths[i], name=f"stages.{i}.width") for i in range(len(strides))]
        before, side = widths[0], math.ceil(shorter / stem_stride)
        self.stem_conv = Conv2d(channels, before, 3, stem_stride, 1, bias=False)
        self.stem_norm = BatchNorm2d(before)
        self.stages = nn.Sequential()
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            side = math.ceil(side / stride)
            kernels = form.kernels if i and side >= 7 else FIRST_KERNELS  # a small map shows a large kernel little
            expansions = form.expansions if i else FIRST_EXPANSIONS
            first = _block(before, width, stride, kernels, expansions)
            more: list[nn.Module] = [_block(width, width, 1, kernels, expansions) for _ in range(form.blocks - 1)]
            depths: list[int | tuple[int, ...]] = [*range(i > 0, form.blocks + 1)]
            if i and form.may_pool:  # block number `blocks`, instead of the others
                more.append(shortcut(before, width, stride))
                depths.insert(0, (form.blocks,))
            # The first stage keeps size and width, so that the network can do without it.
            self.stages.append(Repeat(first, *more, depth=Choice(depths)))
            before = width
        last = before.extent
        self.head_width = Choice([last, 2 * last, 4 * last])
        self.head_conv = Conv2d(before, self.head_width, 1, bias=False)
        self.head_norm = BatchNorm2d(self.head_width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = Linear(self.head_width, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.stages(F.relu(self.stem_norm(self.stem_conv(x)), inplace=True))
        x = F.relu(self.head_norm(self.head_conv(x)), inplace=True).mean((2, 3))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted: He normal by fan-out, residual branches starting at zero."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        initialise(self.modules())
        for module in self.modules():
            if isinstance(module, InvertedResidual):  # the block starts as its skip (BigNAS, section 3.2)
                nn.init.zeros_(module.project_norm.weight)


def _strides(size: int) -> tuple[int, tuple[int, ...]]:
    """The stem's stride and each stage's: halved until the feature map is about 4x4, 7x7 from 224 pixels."""
    stem = 2 if size > 16 else 1
    return stem, (1,) + (2,) * (halvings(size) - (stem == 2))


def _resolutions(size: int) -> tuple[int, ...]:
    """Five, six and seven sevenths of the image size, in multiples of 4: 224 gives 160, 192, 224."""
    return tuple(sorted({round(size * sevenths / 7 / 4) * 4 for sevenths in (5, 6)} | {size}))
