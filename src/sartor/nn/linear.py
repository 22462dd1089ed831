"""Elastic linear layer and embedding: a slice of the weight matrix, with whole rows and columns kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.choice import Size, concat, extent, keep
from sartor.nn.elastic import Elastic, corner, kept, plain, read

__all__ = ["Embedding", "Linear"]


class Linear(Elastic, torch.nn.Linear):
    """`torch.nn.Linear` whose sizes may be searched: (..., in_features) -> (..., out_features).

    `in_features` may be a tuple, for inputs that are concatenated along the last dimension.
    """

    in_features: Any  # int | Size, where torch declares an int
    out_features: Any

    def __init__(
        self,
        in_features: int | Size | tuple[int | Size, ...],
        out_features: int | Size,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inputs = concat(*in_features) if isinstance(in_features, tuple) else in_features
        super().__init__(extent(inputs), extent(out_features), bias, device, dtype)
        self.in_features, self.out_features = inputs, out_features

    def active(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias (out,) in force."""
        (bias,) = kept(self.out_features, self.bias)
        return corner(self.weight, self.out_features, self.in_features), bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(read(x, self.in_features, -1), *self.active())

    def extract(self) -> torch.nn.Linear:
        """The plain layer at the sizes in force."""
        weight, bias = self.active()
        sizes = {"in_features": int(self.in_features), "out_features": int(self.out_features)}
        return plain(self, torch.nn.Linear, {"weight": weight, "bias": bias}, **sizes)


class Embedding(Elastic, torch.nn.Embedding):
    """`torch.nn.Embedding` whose `embedding_dim` may be searched: (...) indices -> (..., embedding_dim).

    Raises ValueError with `max_norm`, which would rescale the rows of the shared table in place.
    """

    embedding_dim: Any  # int | Size

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int | Size,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if max_norm is not None:
            raise ValueError(f"max_norm={max_norm} would rescale the table that all widths share; leave it out")
        super().__init__(num_embeddings, extent(embedding_dim), padding_idx, device=device, dtype=dtype)
        self.embedding_dim = embedding_dim

    def active(self) -> Tensor:
        """The table (num_embeddings, embedding_dim) in force."""
        return keep(self.weight, self.embedding_dim, 1)

    def forward(self, indices: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        return F.embedding(indices, self.active(), self.padding_idx)

    def extract(self) -> torch.nn.Embedding:
        """The plain layer at the size in force."""
        size = int(self.embedding_dim)
        return plain(self, torch.nn.Embedding, {"weight": self.active()}, embedding_dim=size)
