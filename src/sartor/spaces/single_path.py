# SPDX-License-Identifier: Apache-2.0
"""Single-Path superkernels: one over-sized bottleneck a layer holds all of its candidates.

Stamoulis et al., "Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours", ECML-PKDD 2019,
arXiv:1904.02877.

A 3x3 kernel lies within the 5x5 one, and a block of expansion 3 is the first half of the channels of one of expansion
6. So a layer is one block of kernel 5 and expansion 6 with three choices, `stages.<i>.blocks.<j>.kernel`, `.expand`
and, where the shortcut is the identity, `.skip`; the supernet is as large as its largest network.

With indicators d in [0, 1] and the weights (1 - d, d) of the two options of each choice, a layer computes with W33 +
d55 * W55 in the first half of its channels, d100 times that in the second, and adds d50 times the branch to its input:
a choice of `sartor.nn` under soft weights, the centre of a kernel and the first half of the channels being part of both
options.

Differs from the paper: d100 scales the channels where they are read, behind batch norm and activation, and d50 the
branch; the paper scales the depthwise kernel in front of the batch norm, which divides by the scale again and lets the
shifts of channels through that are switched off. Where indicators are 0 and 1 ours equals the network that is read out.
"""

from __future__ import annotations

from torch import Tensor, nn

from sartor.architecture import Option
from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Conv2d, Elastic
from sartor.spaces._blocks import Residual
from sartor.spaces._chain import MOBILE, Chain

__all__ = ["EXPANSIONS", "KERNELS", "SinglePath", "Skippable", "SuperMBConv"]

KERNELS, EXPANSIONS = (3, 5), (3, 6)


class SuperMBConv(nn.Module):
    """Expand 1x1, depthwise, project 1x1, with an elastic kernel and expansion and no shortcut: (N, C, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, name: str) -> None:
        super().__init__()
        self.kernel = Choice(KERNELS, name=f"{name}.kernel")
        self.expand = Choice(EXPANSIONS, name=f"{name}.expand")
        hidden = in_channels * self.expand
        self.expand_conv, self.expand_norm = Conv2d(in_channels, hidden, 1, bias=False), BatchNorm2d(hidden)
        self.depth_conv = Conv2d(hidden, hidden, self.kernel, stride, "same", groups=hidden, bias=False)
        self.depth_norm = BatchNorm2d(hidden)
        self.project_conv, self.project_norm = Conv2d(hidden, out_channels, 1, bias=False), BatchNorm2d(out_channels)
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = self.activation(self.expand_norm(self.expand_conv(x)))
        y = self.activation(self.depth_norm(self.depth_conv(y)))
        out: Tensor = self.project_norm(self.project_conv(y))
        return out


class Skippable(Elastic):
    """x + branch(x), or x alone; under soft weights x + w * branch(x), with w the weight of "block".

    The branch runs even where w is 0: w is then an indicator that was switched off, and its gradient is what can
    switch it on again.
    """

    def __init__(self, branch: nn.Module, *, name: str | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.skip = Choice(("skip", "block"), name=name)

    def gates(self) -> list[tuple[str, Size, tuple[Option, ...]]]:
        """Child, choice and the options under which the child is part of the network."""
        return [("branch", self.skip, ("block",))]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        weights = self.skip.weights
        if weights is None and self.skip.hard == "skip":
            return x
        branch: Tensor = self.branch(x)
        return x + branch if weights is None else x + weights[1] * branch

    def extract(self) -> nn.Module:
        """The identity, or the branch beside it."""
        return nn.Identity() if self.skip.value == "skip" else Residual(self.branch)


class SinglePath(Chain):
    """A classifier of superkernels: (N, channels, H, W) normalised images -> (N, classes) logits.

    Stages are those of `spaces.proxylessnas`, scaled to small images in the same way.

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
        super().__init__(MOBILE, _layer, classes, channels, size, activation=nn.ReLU6, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _layer(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    branch = SuperMBConv(in_channels, out_channels, stride, name)
    if stride == 1 and in_channels == out_channels:
        return Skippable(branch, name=f"{name}.skip")
    return branch
