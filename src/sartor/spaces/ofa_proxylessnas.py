# SPDX-License-Identifier: Apache-2.0
"""Once-for-All's ProxylessNAS chain: six units, of which five have an elastic depth, without gates.

Cai, Gan, Wang, Zhang and Han, "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020,
arXiv:1908.09791; Cai, Zhu and Han, "ProxylessNAS", ICLR 2019, arXiv:1812.00332 (the chain).

Searched: as in `spaces.ofa_mobilenetv3`; the last unit is one block, whose kernel and expansion are searched. The
published network has all widths times 1.3 (`width`).

Smaller images: as in `spaces.ofa_mobilenetv3`.

Differs from the paper: weights start with the fan-out of each group of a convolution, as in the other spaces.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sartor.spaces._blocks import relu6
from sartor.spaces._chain import MOBILE, check_size, plan_for, widened
from sartor.spaces._elastic_chain import ElasticChain, kernels_for, mobile_parts, resolutions

__all__ = ["PLAN", "OFAProxylessNAS"]

PLAN = replace(MOBILE, stages=tuple(replace(stage, activation=relu6) for stage in MOBILE.stages))


class OFAProxylessNAS(ElasticChain):
    """A classifier of six units: (N, channels, H, W) normalised images -> (N, classes) logits.

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
        shorter = check_size(size, "OFAProxylessNAS")
        plan = plan_for(widened(PLAN, width), shorter)
        super().__init__(
            mobile_parts(plan, channels, kernels_for(shorter), relu6, eps=1e-3),
            plan.head,
            classes,
            dropout=dropout,
            resolution=resolutions(size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return super().forward(x)
