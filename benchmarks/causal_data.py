# SPDX-License-Identifier: Apache-2.0
"""Text for small language models: tokens of tinyshakespeare and WikiText-2, and windows of them as batches."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY, LENGTH = 3072, 128


@dataclass(frozen=True)
class Windows:
    """Tokens as windows of `length` of them and the tokens that follow each.

    tokens: (S,) one text, of which training draws windows anywhere; or (N, T) sequences, each with its beginning, of
        which it draws whole ones.
    """

    tokens: Tensor
    length: int = LENGTH
    seed: int = 0

    def batch(self, step: int, size: int, *, augment: bool = False) -> tuple[Tensor, Tensor]:
        """The batch of a step: ids and labels (size, length)."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if self.tokens.dim() == 2:
            drawn = self.tokens[torch.randint(len(self.tokens), (size,), generator=rng), : self.length + 1]
        else:
            starts = torch.randint(len(self.tokens) - self.length, (size, 1), generator=rng)
            drawn = self.tokens[starts + torch.arange(self.length + 1)]
        return drawn[:, :-1], drawn[:, 1:]

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.tokens) if self.tokens.dim() == 2 else (len(self.tokens) - 1) // self.length

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows in order, each token predicted once."""
        if self.tokens.dim() == 2:
            rows = self.tokens[:, : self.length + 1]
        else:
            rows = self.tokens.unfold(0, self.length + 1, self.length)
        for part in torch.split(rows, size):
            yield part[:, :-1], part[:, 1:]

    def first(self, count: int) -> Windows:
        """The first `count` windows alone."""
        return Windows(self.tokens[:count] if self.tokens.dim() == 2 else self.tokens[: count * self.length + 1])


def texts(folder: Path, tokenizer: Path) -> tuple[Windows, Windows, Windows]:
    """Training, validation and test windows of the texts in `folder`; the tokenizer is made where it is not yet.

    Training is tinyshakespeare and the first nine tenths of WikiText-2's validation part, validation the last tenth of
    that, and test WikiText-2's test part. Bytes are merged into 3,072 tokens, learnt from the training text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    play, known, test = (
        gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode()
        for name in ("tinyshakespeare", "wikitext2_valid", "wikitext2_test")
    )
    lines = known.splitlines(keepends=True)
    cut = len(lines) * 9 // 10
    train, validation = play + "".join(lines[:cut]), "".join(lines[cut:])
    if not tokenizer.is_file():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            train.splitlines(keepends=True),
            trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False),
        )
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        made.save(str(tokenizer))
    read = Tokenizer.from_file(str(tokenizer))
    ids = [torch.tensor(read.encode(text).ids) for text in (train, validation, test)]
    return Windows(ids[0]), Windows(ids[1]), Windows(ids[2])
