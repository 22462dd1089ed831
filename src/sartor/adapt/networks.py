# SPDX-License-Identifier: Apache-2.0
"""Networks of transformers with one tensor in and one out: what learners train, and what is measured and exported.

Each holds the model of transformers at `.model`. None of them looks at a value to decide what to compute, so that a
graph of it, traced with one batch, is right for every other, and a trace on the meta device is possible.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ImageClassifier", "LanguageModel", "TextClassifier"]

_HIDDEN = -1e4
"""What is added to the scores of hidden keys: its exponential is 0, and it is finite in half precision."""


class TextClassifier(nn.Module):
    """Token ids (N, T) int64 to logits (N, K): sequences are padded on the right with `pad`, and pads are not seen.

    In a causal model no token sees what follows it, so pads need no mask; the model reads its logits at the last token
    that is no pad, by its own configuration's `pad_token_id`, which is set here if it has none.
    """

    def __init__(self, model: nn.Module, pad: int) -> None:
        super().__init__()
        self.model = model
        self.pad = pad
        config: Any = model.config
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad

    def forward(self, ids: Tensor) -> Tensor:
        """The logits (N, K), or for a model without a head its hidden states (N, T, D)."""
        if _is_causal(self.model):
            mask = _causal_mask(self.model, ids)
            return _first(self.model(input_ids=ids, attention_mask=mask, use_cache=False))
        hidden = (ids == self.pad).to(_dtype(self.model)) * _HIDDEN
        types = {"token_type_ids": torch.zeros_like(ids)} if _has_token_types(self.model) else {}
        return _first(self.model(input_ids=ids, attention_mask=hidden[:, None, None, :], **types))


class LanguageModel(nn.Module):
    """Token ids (N, T) int64 to the logits (N, T, V) of each next token; a causal model, run without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """The logits (N, T, V)."""
        return _first(self.model(input_ids=ids, attention_mask=_causal_mask(self.model, ids), use_cache=False))


class ImageClassifier(nn.Module):
    """Pixels (N, C, H, W), normalised, to logits (N, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, K)."""
        return _first(self.model(pixel_values=images))


def _first(outputs: Any) -> Tensor:
    """The first tensor that the model returns, which are its logits where it has a head."""
    first: Tensor = outputs[0]
    return first


def _is_causal(model: nn.Module) -> bool:
    """Whether an attention layer of the model hides what follows a token, as its class says."""
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def _has_token_types(model: nn.Module) -> bool:
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 0


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _causal_mask(model: nn.Module, ids: Tensor) -> Tensor | None:
    """What a graph needs in the place of transformers' own mask, which depends on values; None outside of graphs.

    (1, 1, T, T), 0 where a token may look. None, too, for sequences beyond a model's sliding window.
    """
    traced = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    graph = ids.is_meta or traced or torch.compiler.is_compiling()
    window = getattr(model.config, "sliding_window", None)
    length = ids.shape[1]
    if not graph or (window is not None and length > window):
        return None
    full = torch.full((length, length), _HIDDEN, dtype=_dtype(model), device=ids.device)
    return full.triu(1)[None, None]
