# SPDX-License-Identifier: Apache-2.0
"""AutoFormer: vision transformers whose blocks share the first part of every weight (weight entanglement).

Chen, Peng, Fu and Ling, "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021, arXiv:2107.00651.

The embedding's width and the depth are choices of the network; heads (of 64 channels each) and the ratio of the MLP are
those of each block. Options nest: the weights of a narrow block are the first of a wide one, so that thousands of
networks train together. Attention sees relative positions in two dimensions; the classifier reads the mean of the
patches.

Three published spaces are the forms "tiny", "small" and "base". Differs from the published code:
- Queries, keys and values are three layers, of which a block takes the first heads, instead of rows of one.
- Images below 128 pixels have smaller patches, at most eight a side, and the form "digits", which is ours.
- Stochastic depth is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size
from sartor.sizes import blocks

__all__ = ["FORMS", "AutoFormer", "Form", "RelativePositions"]


@dataclass(frozen=True)
class Form:
    """Options of a space, and the channels of a head."""

    embed: tuple[int, ...]
    heads: tuple[int, ...]
    ratio: tuple[float, ...]
    depth: tuple[int, ...]
    head: int = 64


FORMS = {
    "tiny": Form((192, 216, 240), (3, 4), (3.5, 4.0), (12, 13, 14)),
    "small": Form((320, 384, 448), (5, 6, 7), (3.0, 3.5, 4.0), (12, 13, 14)),
    "base": Form((528, 576, 624), (9, 10), (3.0, 3.5, 4.0), (14, 15, 16)),
    "digits": Form((16, 24, 32), (2, 4), (2.0, 4.0), (2, 3, 4), head=8),
}
"""The published spaces (their configuration files), and a small one."""

FARTHEST = 14  # relative positions beyond count as this far
LARGE = 128  # side from which images have patches of 16 pixels


class AutoFormer(nn.Module):
    """The supernet: (N, channels, H, W) -> (N, classes).

    Args:
        classes, channels: of the images. size: their (height, width).
        form: a name of `FORMS`; by the size, if None.

    Raises ValueError for an unknown form, and for images that no patch divides.
    """

    def __init__(
        self, classes: int = 1000, channels: int = 3, size: tuple[int, int] = (224, 224), form: str | None = None
    ) -> None:
        super().__init__()
        name = form or ("tiny" if min(size) >= LARGE else "digits")
        if name not in FORMS:
            raise ValueError(f"form {name!r} is unknown: give one of {', '.join(FORMS)}")
        patch = patch_of(size)
        grid, options = (size[0] // patch, size[1] // patch), FORMS[name]
        self.embed = Choice(options.embed)
        self.patches = elastic.Conv2d(channels, self.embed, patch, patch)
        self.summary = elastic.Embedding(1, self.embed)
        self.positions = elastic.Embedding(grid[0] * grid[1] + 1, self.embed)
        layers = [Block(self.embed, options, grid) for _ in range(max(options.depth))]
        self.blocks = elastic.Repeat(*layers, depth=Choice(options.depth))
        self.norm = elastic.LayerNorm(self.embed, eps=1e-6)
        self.head = elastic.Linear(self.embed, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as the published code does: truncated normal of deviation 0.02, biases 0."""
        for module in self.modules():
            if isinstance(module, RelativePositions):
                module.place()
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        first = self.summary(torch.zeros(len(x), 1, dtype=torch.long, device=x.device))
        x = torch.cat([first, x], 1)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device))
        x = self.norm(self.blocks(x))
        out: Tensor = self.head(x[:, 1:].mean(1))
        return out


def patch_of(size: tuple[int, int]) -> int:
    """The side of a patch: 16 pixels, or of small images so many that a side has at most eight patches.

    Raises ValueError where no such patch divides the image.
    """
    least = 16 if min(size) >= LARGE else max(2, -(-max(size) // 8))
    sides = (16,) if min(size) >= LARGE else range(least, min(size) // 2 + 1)
    found = next((side for side in sides if size[0] % side == size[1] % side == 0), None)
    if found is None:
        raise ValueError(f"images of {size[0]}x{size[1]} do not divide into patches of {least} pixels; resize them")
    return found


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and around a shortcut: (N, T, embed) -> the same shape."""

    def __init__(self, embed: Size, form: Form, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.ratio = Choice(form.heads), Choice(form.ratio)
        hidden = Derived(scaled, embed, self.ratio)
        self.attention_norm = elastic.LayerNorm(embed, eps=1e-6)
        self.attention = Attention(embed, self.heads, form.head, grid)
        self.mlp_norm = elastic.LayerNorm(embed, eps=1e-6)
        self.fc1, self.fc2 = elastic.Linear(embed, hidden), elastic.Linear(hidden, embed)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, embed) -> the same shape."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.mlp_norm(x))))
        return out


def scaled(width: Option, ratio: Option) -> int:
    """The hidden width of an MLP, rounded down."""
    assert isinstance(width, int)
    assert isinstance(ratio, float)
    return int(width * ratio)


class Attention(nn.Module):
    """Self-attention that knows how far apart positions are: (N, T, embed) -> the same shape.

    What a query sees of a key, and what it takes from it, both have a part that depends on the relative position alone.
    """

    def __init__(self, embed: Size, heads: Size, head: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        inner = Derived(blocks, heads, head)
        self.query, self.key, self.value = (elastic.Linear(embed, inner) for _ in range(3))
        self.out = elastic.Linear(inner, embed)
        self.of_keys, self.of_values = RelativePositions(head, grid), RelativePositions(head, grid)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, embed) -> the same shape."""
        layers = self.query, self.key, self.value
        q, k, v = (layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in layers)  # (N, heads, T, head)
        q = q * self.head**-0.5
        scores = q @ k.transpose(2, 3) + torch.einsum("nhtd,tsd->nhts", q, self.of_keys())
        seen = scores.softmax(-1)
        mixed = seen @ v + torch.einsum("nhts,tsd->nhtd", seen, self.of_values())
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class RelativePositions(nn.Module):
    """Embeddings (T, T, head) of where one position lies from another: a row's and a column's part, added.

    The first position, which stands for the image, lies nowhere: it has an embedding of its own.
    """

    def __init__(self, head: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, positions = grid, grid[0] * grid[1] + 1
        self.rows, self.columns = (nn.Embedding(2 * FARTHEST + 2, head) for _ in range(2))
        self.row_of, self.column_of = (
            nn.Buffer(torch.empty(positions, positions, dtype=torch.long), persistent=False) for _ in range(2)
        )
        self.place()

    def place(self) -> None:
        """Say for each pair of positions which embeddings are theirs."""
        for table, places in zip((self.row_of, self.column_of), _places(self.grid), strict=True):
            table.copy_(_distances(places))

    def forward(self) -> Tensor:
        """(T, T, head)."""
        out: Tensor = self.rows(self.row_of) + self.columns(self.column_of)
        return out


def _places(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The row and the column of each patch."""
    place = torch.arange(grid[0] * grid[1], device="cpu")
    return place // grid[1], place % grid[1]


def _distances(places: Tensor) -> Tensor:
    """(T, T) index of the embedding for each pair of positions, 0 where one of them is the first."""
    apart = (places[None, :] - places[:, None]).clamp(-FARTHEST, FARTHEST) + FARTHEST + 1
    return nn.functional.pad(apart, (1, 0, 1, 0))
