# SPDX-License-Identifier: Apache-2.0
"""HAT: encoder-decoder transformers of unequal layers, whose decoder may read several layers of the encoder.

Wang, Wu, Liu, Cai, Zhu, Gan and Han, "HAT: Hardware-Aware Transformers for Efficient Natural Language Processing", ACL
2020, arXiv:2005.14187.

FLOPs do not tell the latency of a transformer: wide embeddings cost a small processor most, and layers a GPU. So the
widths of both embeddings and the decoder's depth are choices, and of each layer the hidden width, the heads, and how
many of the encoder's last layers it attends to (their outputs, one behind the other). Heads divide a fixed width: their
number changes no weight.

The defaults are the paper's space for WMT. Differs from the published code: layers are normalised after their
shortcut, as in its translation models, and all else that is a matter of training is left to the learner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.architecture import Architecture
from sartor.choice import Choice, Size

__all__ = ["FEATURES", "HAT", "features"]

FEATURES = (
    "encoder embedding", "encoder layers", "encoder FFN", "encoder heads", "decoder embedding", "decoder layers",
    "decoder FFN", "decoder heads", "heads between", "encoder layers read",
)  # fmt: skip
"""What the paper's latency predictor knows of a network, in its order; of layers the means over those that run."""


class HAT(nn.Module):
    """The supernet: source ids (N, S) and target ids (N, T) -> the logits (N, T, vocabulary) of each next token.

    Args:
        vocabulary: tokens of both languages. pad: the token that fills short sources, which nothing reads.
        embed: options of both embeddings' widths. ffn: of hidden widths. heads: of every attention.
        read: how many of the encoder's last layers a decoder layer may attend to. depth: of the decoder.
        layers: of the encoder, all of which run. inner: width of queries, keys and values.
        longest: of the sequences. dropout: after each part and each embedding.

    Raises ValueError where `inner` does not divide into the heads.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        pad: int = 1,
        embed: Sequence[int] = (512, 640),
        ffn: Sequence[int] = (1024, 2048, 3072),
        heads: Sequence[int] = (4, 8),
        read: Sequence[int] = (1, 2, 3),
        depth: Sequence[int] = (1, 2, 3, 4, 5, 6),
        layers: int = 6,
        inner: int = 512,
        longest: int = 1024,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        for count in heads:
            if inner % count:
                raise ValueError(f"a width of {inner} does not divide into {count} heads: change either")
        self.pad = pad
        self.encoder_embed, self.decoder_embed = Choice(embed), Choice(embed)
        self.source = Tokens(vocabulary, self.encoder_embed, longest, dropout)
        self.target = Tokens(vocabulary, self.decoder_embed, longest, dropout)
        encoders = [EncoderLayer(self.encoder_embed, ffn, heads, inner, dropout) for _ in range(layers)]
        self.encoder = nn.ModuleList(encoders)
        widths = self.decoder_embed, self.encoder_embed
        decoders = [DecoderLayer(*widths, ffn, heads, inner, read, dropout) for _ in range(max(depth))]
        self.decoder = elastic.Repeat(*decoders, depth=Choice(depth))
        self.head = elastic.Linear(self.decoder_embed, vocabulary, bias=False)
        self.head.weight = self.target.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: Xavier's uniform, embeddings of the deviation of one over the root of their width."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, Tokens):
                module.reset_parameters()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(N, S) and (N, T), int64 -> (N, T, vocabulary)."""
        hidden = (source == self.pad)[:, None, None, :]
        x, outputs = self.source(source), []
        for layer in self.encoder:
            x = layer(x, hidden)
            outputs.append(x)
        y = self.target(target)
        for layer in self.decoder:
            y = layer(y, outputs, hidden)
        out: Tensor = self.head(y)
        return out


class Tokens(nn.Module):
    """Embedded tokens at their places: (N, T) int64 -> (N, T, embed)."""

    def __init__(self, vocabulary: int, embed: Size, longest: int, dropout: float) -> None:
        super().__init__()
        self.embedding = elastic.Embedding(vocabulary, embed)
        self.places = elastic.Embedding(longest, embed)
        self.places.weight.requires_grad_(False)  # sines, of which a narrow network takes the first
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draw the tokens anew, and compute the sines."""
        nn.init.normal_(self.embedding.weight, std=self.embedding.weight.shape[1] ** -0.5)
        with torch.no_grad():
            self.places.weight.copy_(_sines(*self.places.weight.shape))

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, embed)."""
        x = self.embedding(ids)
        x = x * math.sqrt(x.shape[-1]) + self.places(torch.arange(ids.shape[1], device=ids.device))
        out: Tensor = self.dropout(x)
        return out


def _sines(length: int, width: int) -> Tensor:
    half = width // 2
    speeds = 10_000.0 ** -(torch.arange(half, device="cpu") / max(half - 1, 1))
    angles = torch.outer(torch.arange(length, device="cpu").float(), speeds)
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width - 2 * half))


class Attention(nn.Module):
    """Attention of `embed` wide queries to `read` wide memory; the number of heads divides `inner` and is a choice."""

    def __init__(self, embed: Size, read: Size, heads: Size, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = elastic.Linear(embed, inner), elastic.Linear(inner, embed)
        self.key, self.value = elastic.Linear(read, inner), elastic.Linear(read, inner)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(N, T, embed), (N, S, read) and (N, 1, 1, S), true where a key may be read -> (N, T, embed)."""
        count = int(self.heads)
        q, k, v = (
            layer(inputs).unflatten(-1, (count, -1)).transpose(1, 2)
            for layer, inputs in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Feedforward(nn.Module):
    """The two linear layers of a block: (N, T, embed) -> the same shape."""

    def __init__(self, embed: Size, hidden: Size, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = elastic.Linear(embed, hidden), elastic.Linear(hidden, embed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, embed) -> the same shape."""
        out: Tensor = self.fc2(self.dropout(nn.functional.relu(self.fc1(x))))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part: (N, S, embed) -> the same shape."""

    def __init__(self, embed: Size, ffn: Sequence[int], heads: Sequence[int], inner: int, dropout: float) -> None:
        super().__init__()
        self.ffn, self.heads = Choice(ffn), Choice(heads)
        self.attention, self.feedforward = (
            Attention(embed, embed, self.heads, inner),
            Feedforward(embed, self.ffn, dropout),
        )
        self.attention_norm, self.feedforward_norm = elastic.LayerNorm(embed), elastic.LayerNorm(embed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(N, S, embed) and (N, 1, 1, S), true at pads -> (N, S, embed)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, x, ~hidden)))
        out: Tensor = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's last layers, and a feed-forward part."""

    def __init__(
        self, embed: Size, memory: Size, ffn: Sequence[int], heads: Sequence[int], inner: int, read: Sequence[int],
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ffn, self.heads, self.cross_heads, self.read = Choice(ffn), Choice(heads), Choice(heads), Choice(read)
        self.attention, self.cross = (
            Attention(embed, embed, self.heads, inner),
            Attention(embed, memory, self.cross_heads, inner),
        )
        self.feedforward = Feedforward(embed, self.ffn, dropout)
        self.attention_norm, self.cross_norm = elastic.LayerNorm(embed), elastic.LayerNorm(embed)
        self.feedforward_norm = elastic.LayerNorm(embed)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor, outputs: Sequence[Tensor], hidden: Tensor) -> Tensor:
        """(N, T, embed), the outputs (N, S, encoder embed) of all encoder layers and (N, 1, 1, S) -> (N, T, embed)."""
        count = int(self.read)
        memory, mask = torch.cat([*outputs[-count:]], 1), ~hidden.repeat(1, 1, 1, count)
        y = self.attention_norm(y + self.dropout(self.attention(y, y, causal=True)))
        y = self.cross_norm(y + self.dropout(self.cross(y, memory, mask)))
        out: Tensor = self.feedforward_norm(y + self.dropout(self.feedforward(y)))
        return out


def features(arch: Architecture) -> tuple[float, ...]:
    """The ten numbers of `FEATURES` of an architecture of this space; layers beyond the depth do not count."""

    def mean(part: str, name: str, layers: int) -> float:
        values = [arch[f"{part}.{i}.{name}"] for i in range(layers)]
        return sum(value for value in values if isinstance(value, int)) / layers

    encoders = sum(name.startswith("encoder.") and name.endswith(".ffn") for name in arch)
    depth, embeds = arch["decoder.depth"], (arch["encoder_embed"], arch["decoder_embed"])
    assert isinstance(depth, int)
    assert isinstance(embeds[0], int)
    assert isinstance(embeds[1], int)
    return (
        embeds[0], encoders, mean("encoder", "ffn", encoders), mean("encoder", "heads", encoders),
        embeds[1], depth, mean("decoder", "ffn", depth), mean("decoder", "heads", depth),
        mean("decoder", "cross_heads", depth), mean("decoder", "read", depth),
    )  # fmt: skip
