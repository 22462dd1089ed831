# SPDX-License-Identifier: Apache-2.0
"""From a text to the network's input: the tokenisation that training used and deployment repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import DataError

__all__ = ["TOKENIZER", "TextPreprocessing", "tokenizer_json"]

TOKENIZER = "tokenizer.json"
"""The file beside a deployed network that the tokenizers library reads."""

_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_AT_ONCE = 1 << 20  # characters of a running text


@dataclass(frozen=True)
class TextPreprocessing:
    """How a text becomes token ids (1, T); JSON-able but for the tokenizer, which is a file of its own.

    kind: "classification" of a text with the tokenizer's special tokens, cut at `length`, or "language", running text.
    length: of the sequences that a network is measured and exported for. pad: the id of what follows a shorter one.
    tokenizer: the content of the tokenizer's file, None where the data were ids.
    """

    kind: Literal["classification", "language"]
    length: int
    pad: int
    tokenizer: str | None = None

    @property
    def mode(self) -> str:
        """``text``, or ``tokens`` where ids are the input."""
        return "tokens" if self.tokenizer is None else "text"

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text, (T,) each. Raises `DataError` without a tokenizer."""
        if self.tokenizer is None:
            raise DataError("the data were token ids, so a text cannot be tokenised; give ids")
        special = self.kind == "classification"
        found = self._loaded.encode_batch_fast([*texts], add_special_tokens=special)
        return [np.array(one.ids, dtype=np.int32) for one in found]

    def running(self, text: str) -> NDArray[np.int32]:
        """The token ids of a long text, (T,). It is tokenised in parts of a megabyte or more, which end with a line."""
        parts, start = list[str](), 0
        while start < len(text):
            end = text.find("\n", start + _AT_ONCE) + 1 or len(text)
            parts.append(text[start:end])
            start = end
        return np.concatenate([np.zeros(0, np.int32), *(self.ids([part])[0] for part in parts)])

    def files(self) -> dict[str, bytes]:
        """What is beside a deployed network, by file name."""
        return {} if self.tokenizer is None else {TOKENIZER: self.tokenizer.encode()}

    def to_dict(self) -> dict[str, Any]:
        """The fields and `mode` as JSON values; of the tokenizer its file's name and SHA-256."""
        told = {"mode": self.mode, "kind": self.kind, "length": self.length, "pad": self.pad}
        if self.tokenizer is None:
            return told
        digest = hashlib.sha256(self.tokenizer.encode()).hexdigest()
        return {**told, "tokenizer": TOKENIZER, "tokenizer_sha256": digest}

    @cached_property
    def _loaded(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer or "")


def tokenizer_json(tokenizer: Any, length: int | None) -> tuple[str, int | None]:
    """The file of a tokenizer, which cuts texts at `length` and does not pad, and the id that it pads with, or None.

    tokenizer: of transformers, or a `tokenizers.Tokenizer`, which stays as it is.
    Raises ImportError without the tokenizers library, ValueError for any other tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"the tokenizers library is missing ({error}): pip install 'sartor[hf]'") from None
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        kind = type(tokenizer).__name__
        raise ValueError(f"a {kind} has no fast form: give a tokenizer of transformers that has a tokenizer.json")
    own = Tokenizer.from_str(backend.to_str())
    own.no_padding()
    own.no_truncation()
    if length is not None:
        own.enable_truncation(length)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None and backend.padding is not None:
        pad = backend.padding["pad_id"]
    known = [own.token_to_id(name) for name in _PADS if own.token_to_id(name) is not None]
    return own.to_str(), pad if pad is not None else next(iter(known), None)
