# SPDX-License-Identifier: Apache-2.0
"""An entangled macro space: three convolutions whose kernels and widths are slices of the largest ones.

Sukthanker, Krishnakumar, Safari and Hutter, "Weight-Entanglement Meets Gradient-Based Neural Architecture Search",
AutoML 2024, arXiv:2312.10440 (TangleNAS), whose convolutional macro space this is a small relative of.

Each layer has kernel 3 or 5 and 4, 8 or 16 channels: 216 networks; the choices are `layer_<i>.kernel` and
`layer_<i>.channels`. With `depth=True`, the second and third layer can be left out: `depth` is 0, 1 or 2, and all
layers have one width, `channels`, since exits of several depths are summed: 3 x 3 x 8 names, 42 distinct networks.

A soft network runs one convolution a layer with a mixed kernel, saves the activations of the largest network and holds
its parameters. `superposed=True` takes the mixture as the paper does, see `sartor.nn.superposed`.

Differs from the paper: kernels are centred in the largest one, where its toy space takes the corner.
"""

from __future__ import annotations

from torch import Tensor, nn

from sartor.choice import Choice, Size
from sartor.nn import BatchNorm2d, Conv2d, Linear, Repeat
from sartor.nn.superposed import SuperposedConv2d

__all__ = ["CHANNELS", "KERNELS", "EntangledMacro", "Layer"]

KERNELS, CHANNELS = (3, 5), (4, 8, 16)


class Layer(nn.Module):
    """Convolution, batch norm, ReLU: (N, in_channels, H, W) -> (N, channels, H, W)."""

    def __init__(self, in_channels: int | Size, channels: Size, kernel: Choice, *, superposed: bool) -> None:
        super().__init__()
        kind = SuperposedConv2d if superposed else Conv2d
        self.conv = kind(in_channels, channels, kernel, padding="same", bias=False)
        self.norm = BatchNorm2d(channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class EntangledMacro(nn.Module):
    """A classifier of three entangled layers: (N, channels, H, W) normalised images -> (N, classes) logits.

    The map is halved behind the first layer, and once more in front of it for every doubling above 16 pixels.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images.
        depth: whether the second and third layer may be left out, with one width for all.
        superposed: mix as the paper does, not as `sartor.nn` does.

    Raises ValueError for images smaller than 4x4.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        size: tuple[int, int] = (8, 8),
        *,
        depth: bool = False,
        superposed: bool = False,
    ) -> None:
        super().__init__()
        if min(size) < 4:
            raise ValueError(f"images of {size[0]}x{size[1]} do not fit EntangledMacro: give at least 4 pixels a side")
        shared = Choice(CHANNELS, name="channels") if depth else None
        widths = [shared or Choice(CHANNELS, name=f"layer_{i}.channels") for i in range(3)]
        layers = []
        before: int | Size = channels
        for i, width in enumerate(widths):
            layers.append(Layer(before, width, Choice(KERNELS, name=f"layer_{i}.kernel"), superposed=superposed))
            before = width
        surplus = max(0, (min(size) // 16).bit_length() - 1)
        self.shrink = nn.Sequential(*(nn.AvgPool2d(2, ceil_mode=True) for _ in range(surplus)))
        self.first, self.pool = layers[0], nn.MaxPool2d(2, ceil_mode=True)
        more = Choice((0, 1, 2), name="depth") if depth else 2
        self.rest = Repeat(*layers[1:], depth=more)
        self.classifier = Linear(widths[-1], classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.rest(self.pool(self.first(self.shrink(x)))).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
