# SPDX-License-Identifier: Apache-2.0
"""The FBNet chain: 22 layers, each one of eight inverted bottlenecks or skipped.

Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search", CVPR 2019,
arXiv:1812.03443.

A bottleneck has kernel 3 or 5 and expansion 1, 3 or 6, or expansion 1 with 1x1 convolutions of two groups and a channel
shuffle between them (`k3_e1_g2`). `skip` is the identity, or a 1x1 convolution where shapes change. The choices are
named `stages.<i>.blocks.<j>`. At 64 pixels and above stages have the published widths (16, 24, 32, 64, 112, 184, 352),
layers (1, 4, 4, 4, 4, 4, 1) and, at 224, strides (1, 2, 2, 2, 1, 2, 1); see `_chain.plan_for` for smaller images.

Differs from the paper: nothing at 224 pixels but the head, which is 1984 wide as in FBNet-B and C; A has 1504.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from sartor.nn import OneOf
from sartor.spaces._chain import Chain, ConvNorm, MBConv, Plan, Stage

__all__ = ["CANDIDATES", "PLAN", "FBNet"]

_FORMS = {"e1": (1, 1), "e1_g2": (1, 2), "e3": (3, 1), "e6": (6, 1)}
CANDIDATES = {
    f"k{kernel}_{form}": (kernel, *sizes) for kernel, (form, sizes) in itertools.product((3, 5), _FORMS.items())
}
"""Name to kernel, expansion and groups."""

_STAGES = zip((16, 24, 32, 64, 112, 184, 352), (1, 4, 4, 4, 4, 4, 1), (1, 2, 2, 2, 1, 2, 1), strict=True)
PLAN = Plan(stem=16, stem_stride=2, first=0, stages=tuple(itertools.starmap(Stage, _STAGES)), head=1984)


class FBNet(Chain):
    """A classifier of the chain: (N, channels, H, W) normalised images -> (N, classes) logits.

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
        super().__init__(PLAN, _layer, classes, channels, size, activation=nn.ReLU, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)


def _layer(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    blocks: dict[str, nn.Module] = {
        candidate: MBConv(
            in_channels, out_channels, stride, kernel, expand, groups=groups, activation=nn.ReLU, always_expand=True
        )
        for candidate, (kernel, expand, groups) in CANDIDATES.items()
    }
    same = stride == 1 and in_channels == out_channels
    blocks["skip"] = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride, activation=nn.ReLU)
    return OneOf(blocks, name=name)
