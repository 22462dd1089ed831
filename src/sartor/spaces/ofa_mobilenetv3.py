# SPDX-License-Identifier: Apache-2.0
"""Once-for-All's MobileNetV3: five units of elastic depth, blocks of elastic kernel and expansion.

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
arXiv:1908.09791; Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244 (the network).

Searched: the first 2, 3 or 4 blocks of each unit (`stages.<i>.depth`); kernel 3, 5 or 7 and expansion 3, 4 or 6 of each
block (`stages.<i>.<j>.kernel`, `.expand`); the input resolution, every fourth from 128 to 224. A smaller kernel is a
learned transform of the larger one's centre. Stem, first block and head are fixed; `width` widens the whole network, as
the published ones of 1.0 and 1.2 are.

At 65 pixels and above strides are the published ones, see `_chain.plan_for` for smaller images. Below 64 pixels kernels
are 3 or 5 and a unit has one or two blocks; below 16 pixels there are three units, the first of one block.

Differs from the paper: weights start with the fan-out of each group of a convolution, as in the other spaces.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.nn import round_channels
from sartor.spaces._chain import Plan, Stage, check_size, plan_for, widened
from sartor.spaces._elastic_chain import ElasticChain, kernels_for, mobile_parts, resolutions

__all__ = ["PLAN", "OFAMobileNetV3"]

_UNITS = (
    Stage(24, 4, 2),
    Stage(40, 4, 2, squeeze=True),
    Stage(80, 4, 2, activation=F.hardswish),
    Stage(112, 4, 1, squeeze=True, activation=F.hardswish),
    Stage(160, 4, 2, squeeze=True, activation=F.hardswish),
)
PLAN = Plan(stem=16, stem_stride=2, first=16, stages=_UNITS, head=960)


class OFAMobileNetV3(ElasticChain):
    """A classifier of five units: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, each 8 to 224.
        width: multiplier of all widths.
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
        dropout: float = 0.1,
    ) -> None:
        shorter = check_size(size, "OFAMobileNetV3")
        plan = plan_for(widened(PLAN, width), shorter)
        last = round_channels(plan.head * 4 / 3)  # 1280 of 960
        super().__init__(
            mobile_parts(plan, channels, kernels_for(shorter), F.hardswish),
            last,
            classes,
            mix=nn.Sequential(nn.Linear(plan.head, last, bias=False), nn.Hardswish()),
            dropout=dropout,
            resolution=resolutions(size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)
