"""Multi-head self-attention whose heads, of a fixed size, come and go whole; grouped-query, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.choice import Derived, Size
from sartor.nn.linear import Linear
from sartor.sizes import blocks

__all__ = ["MultiheadAttention"]


class MultiheadAttention(torch.nn.Module):
    """Self-attention over (N, T, embed_dim), batch first; scores are scaled by 1 / sqrt(head_dim).

    Args:
        embed_dim: width of input and output, an int or a size.
        num_heads: of keys and values, an int or a size (an index list keeps those heads).
        head_dim: width of one head.
        queries_per_head: query heads that share one key-value head (grouped-query attention, Ainslie et al.
            2023, arXiv:2305.13245); above 1 there are `num_heads * queries_per_head` query heads.
        bias: of the four projections.
        causal: whether a position sees only those before it.

    It is an ordinary module of elastic projections: extraction leaves this class with plain ones.
    """

    def __init__(
        self,
        embed_dim: int | Size,
        num_heads: int | Size,
        head_dim: int,
        *,
        queries_per_head: int = 1,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.queries_per_head, self.causal = queries_per_head, causal
        keys, queries = _whole_heads(num_heads, head_dim), _whole_heads(num_heads, queries_per_head * head_dim)
        self.q_proj = Linear(embed_dim, queries, bias)
        self.k_proj = Linear(embed_dim, keys, bias)
        self.v_proj = Linear(embed_dim, keys, bias)
        self.out_proj = Linear(queries, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, embed_dim) -> the same shape. The number of heads follows from the projections' widths."""
        q, k, v = (
            p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        grouped = self.queries_per_head > 1
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


def _whole_heads(count: int | Size, length: int) -> int | Size:
    return Derived(blocks, count, length) if isinstance(count, Size) else count * length
