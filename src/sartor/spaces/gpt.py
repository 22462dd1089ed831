# SPDX-License-Identifier: Apache-2.0
"""GPT: a causal language model whose width, heads, MLPs and depth are searched.

Radford, Wu, Child, Luan, Amodei and Sutskever, "Language Models are Unsupervised Multitask Learners", 2019, with the
rotary positions of Su et al., "RoFormer", 2021, arXiv:2104.09864. The width of the residual stream and the depth are
choices of the network; heads, of a fixed size, and the ratio of the MLP those of each block.

It is made for a vocabulary, not for images, so it is used from Python: `sartor.data.text` has its data. Pretrained
models of this family are adopted by `sartor.adapt`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.choice import Choice, Derived, Size
from sartor.sizes import blocks

__all__ = ["GPT"]


class GPT(nn.Module):
    """The supernet: token ids (N, T) int64 -> the logits (N, T, vocabulary) of each next token.

    Args:
        vocabulary: number of tokens. length: the longest sequence, T.
        width: options of the residual stream. heads: of each block's attention. ratio: of each block's hidden width
            over the stream's. depth: numbers of blocks.
        head: channels of one head. tied: whether the table of tokens also makes the logits.

    Raises ValueError for a sequence that is longer than `length`.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        width: Sequence[int] = (128, 192, 256),
        heads: Sequence[int] = (2, 3, 4),
        ratio: Sequence[int] = (2, 3, 4),
        depth: Sequence[int] = (2, 4, 6),
        head: int = 64,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.length = length
        self.width = Choice(width)
        self.tokens = elastic.Embedding(vocabulary, self.width)
        self.cos, self.sin = (nn.Buffer(torch.empty(length, head), persistent=False) for _ in range(2))
        layers = [Block(self.width, heads, ratio, head) for _ in range(max(depth))]
        self.blocks = elastic.Repeat(*layers, depth=Choice(depth))
        self.norm = elastic.LayerNorm(self.width)
        self.head = elastic.Linear(self.width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: normal of deviation 0.02, what enters the residual stream less; biases 0."""
        for table, values in zip((self.cos, self.sin), rotations(*self.cos.shape), strict=True):
            table.copy_(values)
        less = 1.0 / math.sqrt(2 * len(self.blocks))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 * (less if name.endswith(("out_proj", "fc2")) else 1.0))
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, vocabulary)."""
        if ids.shape[1] > self.length:
            raise ValueError(f"sequences of {ids.shape[1]} tokens are longer than the model's {self.length}: cut them")
        x = self.tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        out: Tensor = self.head(self.norm(x))
        return out


class Block(nn.Module):
    """Causal attention and an MLP, each behind a norm and around a shortcut: (N, T, width) -> the same shape."""

    def __init__(self, width: Size, heads: Sequence[int], ratio: Sequence[int], head: int) -> None:
        super().__init__()
        self.heads, self.ratio = Choice(heads), Choice(ratio)
        self.attention_norm, self.mlp_norm = elastic.LayerNorm(width), elastic.LayerNorm(width)
        self.attention = Attention(width, self.heads, head)
        hidden = width * self.ratio
        self.fc1, self.fc2 = elastic.Linear(width, hidden), elastic.Linear(hidden, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T, width) -> the same shape; rotations (T, head)."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.mlp_norm(x))))
        return out


class Attention(nn.Module):
    """Causal self-attention with rotary positions: (N, T, width) -> the same shape."""

    def __init__(self, width: Size, heads: Size, head: int) -> None:
        super().__init__()
        self.head = head
        inner = Derived(blocks, heads, head)
        self.q_proj, self.k_proj, self.v_proj = (elastic.Linear(width, inner) for _ in range(3))
        self.out_proj = elastic.Linear(inner, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T, width) -> the same shape; rotations (T, head)."""
        layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in layers)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


def rotations(length: int, head: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head) of the angles by which positions rotate pairs of channels, half a head apart.

    The sines of the first half are negative, for `rotated`.
    """
    speeds = base ** -(torch.arange(0, head, 2, device="cpu").float() / head)
    angles = torch.outer(torch.arange(length, device="cpu").float(), speeds).repeat(1, 2)
    first = torch.arange(head, device="cpu") < head // 2
    return angles.cos(), torch.where(first, -angles.sin(), angles.sin())


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, heads, T, head), rotated (Su et al., equation 34)."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin  # the other of each pair, its sign in the sine
