# SPDX-License-Identifier: Apache-2.0
"""Mixed-kernel inverted residuals: each block has groups of channels with kernels 3, 5 and 7, of searched widths.

Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", BMVC 2019, arXiv:1907.09595 (kernels within one layer);
You, Li, Sun, Ouyang, Lin, "SuperTickets", ECCV 2022, arXiv:2207.03677, which shrinks such groups channel by channel.

A block is skip(x) + norm(sum over its groups of project(depthwise(expand(x)))): projecting each group by itself and
adding is the 1x1 convolution of all channels together. Choices: `stages.<i>.blocks.<j>.kernels`, which groups there
are, none included, and `stages.<i>.blocks.<j>.k<kernel>.width` of each, in quarters of twice the block's input; the
widest block expands sixfold. Every block has a skip, so that it can do without any group: the identity, an average
pool for a stride, a 1x1 convolution for another width. Stages, strides and small images are those of `_chain.MOBILE`.

The depthwise norm of a group scales its channels one by one, and `channels` names the layers that hold them: what
SuperTickets penalises and takes out.

Differs from SuperTickets: one resolution and no transformer, where the paper searches in HR-NAS's branches of several.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Conv2d, Elastic
from sartor.nn.channels import Channels
from sartor.spaces._blocks import relu, shortcut
from sartor.spaces._chain import MOBILE, Chain

__all__ = ["KERNELS", "Group", "MixedBlock", "MixedKernels", "MixedResidual"]

KERNELS = (3, 5, 7)
EXPANSION = 2  # of each group; three of them make six
SUBSETS = tuple(kept for count in range(4) for kept in itertools.combinations(KERNELS, count))


class Group(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1, over `width` channels and without the last norm: (N, C, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernel: int, width: int | Size) -> None:
        super().__init__()
        self.width = width
        self.expand_conv, self.expand_norm = Conv2d(in_channels, width, 1, bias=False), BatchNorm2d(width)
        self.depth_conv = Conv2d(width, width, kernel, stride, "same", groups=width, bias=False)
        self.depth_norm = BatchNorm2d(width)
        self.project_conv = Conv2d(width, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = relu(self.expand_norm(self.expand_conv(x)))
        y = relu(self.depth_norm(self.depth_conv(y)))
        out: Tensor = self.project_conv(y)
        return out

    def channels(self) -> Channels:
        """The hidden channels, once extracted."""
        return Channels(
            scale=self.depth_norm,
            made_by=(self.expand_conv,),
            norms=(self.expand_norm, self.depth_norm),
            alone=(self.depth_conv,),
            read_by=(self.project_conv,),
            holder=self,
        )


class MixedBlock(nn.Module):
    """What a `MixedResidual` is once extracted: skip(x) + norm(sum of groups(x)), groups without channels left out."""

    def __init__(self, groups: dict[str, nn.Module], norm: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.groups, self.norm, self.skip = nn.ModuleDict(groups), norm, skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        parts = [group(x) for group in self.groups.values() if int(group.width)]  # type: ignore[arg-type]
        out: Tensor = self.skip(x) + self.norm(_sum(parts)) if parts else self.skip(x)
        return out


class MixedResidual(Elastic):
    """A block whose kernels, and their channels, are searched; soft, each group is weighted by its chance."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, name: str) -> None:
        super().__init__()
        self.kernels = Choice(SUBSETS, name=f"{name}.kernels")
        most = EXPANSION * in_channels
        widths = [Choice([most * n // 4 for n in (1, 2, 3, 4)], name=f"{name}.k{kernel}.width") for kernel in KERNELS]
        self.groups = nn.ModuleDict(
            {
                f"k{kernel}": Group(in_channels, out_channels, stride, kernel, width)
                for kernel, width in zip(KERNELS, widths, strict=True)
            }
        )
        self.norm, self.skip = BatchNorm2d(out_channels), shortcut(in_channels, out_channels, stride)

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Each group is there where its kernel is, and the norm where any is."""
        of_groups = [
            (f"groups.k{kernel}", self.kernels, tuple(kept for kept in SUBSETS if kernel in kept)) for kernel in KERNELS
        ]
        return [*of_groups, ("norm", self.kernels, tuple(kept for kept in SUBSETS if kept))]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        weights = self.kernels.weights
        out: Tensor = self.skip(x)
        if weights is None:
            parts = [group(x) for group in self._present().values()]
            return out + self.norm(_sum(parts)) if parts else out
        having = [[i for i, kept in enumerate(SUBSETS) if kernel in kept] for kernel in KERNELS]
        chances = [weights[places].sum() for places in having]
        pairs = zip(chances, self.groups.values(), strict=True)
        parts = [chance * group(x) for chance, group in pairs if float(chance.detach())]
        return out + weights[1:].sum() * self.norm(_sum(parts)) if parts else out

    def _present(self) -> dict[str, nn.Module]:
        kept = self.kernels.value
        assert isinstance(kept, tuple)
        return {f"k{kernel}": self.groups[f"k{kernel}"] for kernel in kept}

    def extract(self) -> nn.Module:
        """The groups in force, or the skip alone."""
        present = self._present()
        return MixedBlock(present, self.norm, self.skip) if present else self.skip


class MixedKernels(Chain):
    """A classifier of mixed-kernel blocks: (N, channels, H, W) normalised images -> (N, classes) logits.

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
        super().__init__(MOBILE, _layer, classes, channels, size, activation=nn.ReLU, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _layer(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return MixedResidual(in_channels, out_channels, stride, name)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
