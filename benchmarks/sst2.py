# SPDX-License-Identifier: Apache-2.0
"""Short sentences of SST-2 as token ids, and the BERT of all-MiniLM-L6-v2 with the words that occur in them alone.

SARTOR_TEXT names the folder with `sst2_train.parquet` and `sst2_dev.parquet`, SARTOR_MINILM that of the model. A small
vocabulary saves the passes over a table of 30,522 words, which would be most of the time of small networks.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.adapt.loading import pretrained, tokenizer_of
from sartor.data.text_splits import TextSplit

__all__ = ["Sentences", "minilm", "sentences"]


@dataclass(frozen=True)
class Sentences:
    """Splits of sentences, their ids those of `words`: the model's ids of the words that occur, the pad first."""

    train: TextSplit
    held: TextSplit
    dev: TextSplit
    words: Tensor


def sentences(train: int, held: int, dev: int, *, length: int, seed: int = 0) -> Sentences:
    """Draw sentences of at most `length` tokens; longer ones are cut. `held` are of the training file, too."""
    import pyarrow.parquet as parquet

    folder, tokenizer = Path(os.environ["SARTOR_TEXT"]), tokenizer_of(os.environ["SARTOR_MINILM"])
    ids: list[list[int]] = []
    labels: list[int] = []
    for name, count in (("train", train + held), ("dev", dev)):
        table = parquet.read_table(folder / f"sst2_{name}.parquet").to_pydict()
        texts = table["sentence" if "sentence" in table else "content"]
        long = [i for i, text in enumerate(texts) if len(text.split()) >= 5]
        drawn = random.Random(seed).sample(long, count)
        ids += tokenizer([texts[i] for i in drawn], truncation=True, max_length=length)["input_ids"]
        labels += [table["label"][i] for i in drawn]
    words = sorted({tokenizer.pad_token_id, *(word for one in ids for word in one)})
    words.remove(tokenizer.pad_token_id)
    words.insert(0, tokenizer.pad_token_id)
    place = {word: i for i, word in enumerate(words)}
    new = [np.array([place[word] for word in one]) for one in ids]
    cuts = [0, train, train + held, train + held + dev]

    def split(part: int) -> TextSplit:
        chosen: Sequence[int] = range(cuts[part], cuts[part + 1])
        return TextSplit([new[i] for i in chosen], np.array([labels[i] for i in chosen]), 0, seed)

    return Sentences(split(0), split(1), split(2), torch.tensor(words))


def minilm(words: Tensor) -> nn.Module:
    """The pretrained network, ids (N, T) to logits (N, 2), its table cut to `words`, of which the first is the pad."""
    net: Any = pretrained(os.environ["SARTOR_MINILM"], kind="classification", classes=2)
    table = net.model.bert.embeddings.word_embeddings.weight.detach()[words]
    net.model.bert.embeddings.word_embeddings = nn.Embedding(len(words), table.shape[1], 0, _weight=table.clone())
    net.model.config.vocab_size, net.model.config.pad_token_id, net.pad = len(words), 0, 0
    return net  # type: ignore[no-any-return]
