# SPDX-License-Identifier: Apache-2.0
"""A residual network whose poolings are searched: before which units the map is halved.

Javan, Toews and Pedersoli, "Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture", AutoML 2023,
arXiv:2306.11982; He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385 (the units).

Units follow each other, and in front of some a 2x2 max pool halves the map. Which ones is a single choice, `pooling`,
whose options are the units' numbers: with 10 units (ResNet20: a stem and nine blocks) the first is never pooled, so two
poolings have C(9, 2) = 36 layouts; 6 units have C(5, 2) = 10. A layout changes no weight.

A soft choice gives the mixture of the networks' outputs, each of a run of its own; runs that start alike are shared.

Differs from the paper: where the width doubles is fixed and ours, after equal numbers of blocks, whatever the layout;
there the shortcut is a 1x1 convolution.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Choice, indices

__all__ = ["PoolingResNet", "Unit"]


class Unit(nn.Module):
    """Two 3x3 convolutions with batch norm, beside the identity or, for another width, a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            *(nn.BatchNorm2d(out_channels), nn.ReLU()),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return F.relu(self.layers(x) + self.shortcut(x))


class PoolingResNet(nn.Module):
    """A classifier with searched poolings: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images.
        units: the stem and the residual blocks; 10 is ResNet20.
        poolings: how often the map is halved.
        width: channels at first, doubled at `poolings` places.

    Raises ValueError for images that the poolings leave nothing of, and for more poolings than blocks.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        size: tuple[int, int] = (8, 8),
        *,
        units: int = 6,
        poolings: int = 2,
        width: int = 8,
    ) -> None:
        super().__init__()
        if not 1 <= poolings < units:
            raise ValueError(f"{poolings} poolings do not fit {units} units: give 1 to {units - 1} poolings")
        if min(size) < 2**poolings:
            least = f"give at least {2**poolings} pixels a side, or fewer poolings"
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit PoolingResNet: {least}")
        self.pooling: Choice | tuple[int, ...] = Choice(
            [*itertools.combinations(range(1, units), poolings)], name="pooling"
        )
        stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.units = nn.ModuleList([stem])
        before = width
        for block in range(units - 1):
            after = width * 2 ** (block * (poolings + 1) // (units - 1))
            self.units.append(Unit(before, after))
            before = after
        self.classifier = nn.Linear(before, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        pooling = self.pooling
        if isinstance(pooling, Choice) and pooling.is_soft:
            return self._expectation(x, pooling)
        places = {*pooling}
        for i, unit in enumerate(self.units):
            x = _run(x, unit, i in places)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

    def _expectation(self, x: Tensor, pooling: Choice) -> Tensor:
        """Sum over the layouts of weight times logits; what has the same poolings so far is computed once."""
        weights = pooling.probabilities(x)
        total: Tensor | None = None
        runs: dict[tuple[bool, ...], Tensor] = {(): x}
        for weight, layout, chance in zip(weights, pooling.options, weights.tolist(), strict=True):
            if chance == 0.0:
                continue
            places = {*indices(layout)}
            pooled = tuple(i in places for i in range(len(self.units)))
            for i, unit in enumerate(self.units):
                if pooled[: i + 1] not in runs:
                    runs[pooled[: i + 1]] = _run(runs[pooled[:i]], unit, pooled[i])
            term = weight * self.classifier(runs[pooled].mean((2, 3)))
            total = term if total is None else total + term
        if total is None:
            raise ValueError(f"all weights of {pooling!r} are zero; at least one layout must run")
        return total

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


def _run(x: Tensor, unit: nn.Module, pooled: bool) -> Tensor:
    """The unit, behind a pool if it has one; odd sides are rounded up."""
    out: Tensor = unit(F.max_pool2d(x, 2, ceil_mode=True) if pooled else x)
    return out
