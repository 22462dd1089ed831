# SPDX-License-Identifier: Apache-2.0
"""Tasks of text: to classify it, or to model its language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sartor.data.labels import encode_labels, imbalance_warning
from sartor.data.source import DataError
from sartor.data.splits import check_fractions, default_validation, digest, stratified
from sartor.data.text_preprocessing import TextPreprocessing, tokenizer_json
from sartor.data.text_reading import labelled, running, tokens
from sartor.data.text_splits import TextSplit, WindowSplit

if TYPE_CHECKING:
    from sartor.task import Task

__all__ = ["text_task"]

_SPLITS = ("train", "validation", "test")


def text_task(
    source: str | Path,
    tokenizer: Any = None,
    *,
    kind: Literal["classification", "language"] = "classification",
    length: int = 128,
    seed: int = 0,
    validation: float | None = None,
    test: float = 0.15,
    vocabulary: int | None = None,
) -> Task:
    """Load text, tokenise it, check it and cut the splits that it lacks.

    Args:
        source: to classify, a file .csv, .tsv, .jsonl, .json or .parquet with the columns ``text`` (or ``sentence``,
            ``content``) and ``label``, an integer or a string. For language, UTF-8 text .txt or .txt.gz, or an .npz
            archive of token ids ``tokens`` (and perhaps ``tokens_validation``, ``tokens_test``), which needs no
            tokenizer. Or a folder with ``train`` and perhaps ``validation`` (``dev``) and ``test`` files of these. Or
            ``hf:`` and a Hugging Face data set id or path.
        tokenizer: the model's, of transformers or of the tokenizers library.
        kind: what is learned.
        length: tokens of the longest sequence; a longer text is cut, running text goes in windows of it.
        seed: the cut of the splits and the order of the samples depend on it.
        validation, test: shares of the training part that become the splits which the source lacks, as for
            `load_task`. They are stratified by class; running text is cut once, its end being the test split.
        vocabulary: how many tokens the model knows, which no id may reach; None where that is not known.

    Labels of language are the next tokens (N, T), and the metric is `TokenLikelihood`, 1 / perplexity.
    Raises ImportError without an optional library that is needed, ValueError for a tokenizer that is none, and
    DataError, one line with the value, the place and the remedy, for data that cannot be used.
    """
    if kind not in ("classification", "language"):
        raise ValueError(f"no kind {kind!r} of task: use classification or language")
    if length < 2:
        raise ValueError(f"length is {length}: sequences have 2 tokens or more")
    typed, shares = str(source), {"validation": validation, "test": test}
    if typed.endswith(".npz"):
        if kind != "language":
            raise DataError(f"{typed}: token ids have no labels; they are data of kind 'language'")
        ids, told = tokens(Path(typed)), TextPreprocessing("language", length, 0)
        return _known(_language(typed, ids, told, seed, shares), typed, vocabulary)
    if tokenizer is None:
        raise DataError(f"{typed}: text needs a tokenizer; give the model's, or token ids in an .npz archive")
    content, pad = tokenizer_json(tokenizer, length if kind == "classification" else None)
    if pad is None and kind == "classification":
        raise DataError("the tokenizer has no padding token; set its pad_token")
    told = TextPreprocessing(kind, length, pad or 0, content)
    if kind == "classification":
        return _known(_classification(typed, told, seed, shares), typed, vocabulary)
    ids = {split: told.running(text) for split, text in running(typed).items()}
    return _known(_language(typed, ids, told, seed, shares), typed, vocabulary)


def _known(task: Task, typed: str, vocabulary: int | None) -> Task:
    """The task. Raises DataError for a token that is not of the vocabulary."""
    for name in _SPLITS:
        split: Any = getattr(task, name)
        if vocabulary is not None and split.largest_id >= vocabulary:
            raise DataError(
                f"{typed}: token id {split.largest_id} of the {name} split is none of the model's {vocabulary};"
                " tokenise the text with the model's own tokenizer"
            )
    return task


def _classification(typed: str, told: TextPreprocessing, seed: int, shares: Mapping[str, float | None]) -> Task:
    from sartor.task import Task, accuracy, balanced_accuracy

    parts = labelled(typed)
    labels, classes = encode_labels({k: (part.labels, part.place) for k, part in parts.items()}, parts["train"].names)
    ids = {name: _tokenised(part.texts, part.place, told) for name, part in parts.items()}
    cuts = _cuts(labels, classes, seed, _shares(labels, len(labels["train"]), shares))
    splits = {
        name: TextSplit([ids[part][i] for i in chosen], labels[part][chosen], told.pad, seed)
        for name, (part, chosen) in cuts.items()
    }
    counts = np.bincount(splits["train"].labels.numpy(), minlength=len(classes))
    warning = imbalance_warning(counts, classes)
    record = {
        name: {"part": part, "size": len(chosen), "sha256": digest(chosen),
               "labels_sha256": digest(labels[part][chosen]), "tokens": int(splits[name].lengths.sum())}
        for name, (part, chosen) in cuts.items()
    }  # fmt: skip
    cut = float(np.mean(splits["train"].lengths == told.length))
    return Task(
        name=_name(typed), train=splits["train"], validation=splits["validation"], test=splits["test"],
        loss=torch.nn.functional.cross_entropy,
        metric=balanced_accuracy if warning else accuracy,
        metric_name="balanced accuracy" if warning else "accuracy",
        example=_example(splits["train"], told), classes=classes, preprocessing=told,
        record=_record(typed, told, seed, record, train_class_counts=counts.tolist(), at_full_length=cut),
        warnings=(warning,) if warning else (),
    )  # fmt: skip


def _language(
    typed: str, ids: Mapping[str, NDArray[np.int32]], told: TextPreprocessing, seed: int,
    shares: Mapping[str, float | None],
) -> Task:  # fmt: skip
    from sartor.task import Task, TokenLikelihood

    windows = -(-len(ids["train"]) // told.length)
    parts = _pieces(ids, _shares(ids, windows, shares))
    for name, piece in parts.items():
        if len(piece) < 2:
            raise DataError(
                f"{typed}: the {name} split has {len(piece)} tokens; give a longer text or a smaller length"
            )
    if len(parts["train"]) <= told.length:
        given = len(parts["train"])
        raise DataError(
            f"{typed}: {given} training tokens do not fill a sequence of {told.length}; choose a smaller one"
        )
    splits = {name: WindowSplit(piece, told.length, told.pad, seed) for name, piece in parts.items()}
    record = {
        name: {"part": name if name in ids else "train", "size": len(splits[name]), "tokens": len(piece),
               "sha256": digest(piece.astype(np.int64))}
        for name, piece in parts.items()
    }  # fmt: skip
    example, _ = splits["train"].at(np.zeros(1, np.int64))
    return Task(
        name=_name(typed), train=splits["train"], validation=splits["validation"], test=splits["test"],
        loss=torch.nn.functional.cross_entropy, metric=TokenLikelihood(), metric_name="token likelihood",
        example=example, classes=(), preprocessing=told, record=_record(typed, told, seed, record),
    )  # fmt: skip


def _tokenised(texts: Any, place: str, told: TextPreprocessing) -> list[NDArray[np.int32]]:
    found = told.ids(texts)
    empty = [number for number, one in enumerate(found, 1) if not len(one)]
    if empty:
        raise DataError(f"{place}: the text of sample {empty[0]} has no token; give some text or drop it")
    return found


def _shares(there: Mapping[str, Any], count: int, asked: Mapping[str, float | None]) -> dict[str, float]:
    """The share of the training part, of `count` samples, that each split which the source lacks gets."""
    test = asked["test"] or 0.0
    validation = asked["validation"]
    if validation is None:
        validation = default_validation(count, 0.0 if "test" in there else test)
    wanted = {"validation": validation, "test": test}
    lacking = {name: share for name, share in wanted.items() if name not in there}
    check_fractions(lacking)
    return lacking


def _cuts(
    labels: Mapping[str, NDArray[np.int64]], classes: tuple[str, ...], seed: int, shares: Mapping[str, float]
) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """By split, the part that it comes from and the indices into that part."""
    cut = stratified(labels["train"], shares, classes, seed)
    return {name: ("train", cut[name]) if name in cut else (name, np.arange(len(labels[name]))) for name in _SPLITS}


def _pieces(ids: Mapping[str, NDArray[np.int32]], shares: Mapping[str, float]) -> dict[str, NDArray[np.int32]]:
    """The tokens of each split: those it lacks are cut off the end of the training text, in order."""
    whole = ids["train"]
    sizes = {name: max(1, round(share * len(whole))) for name, share in shares.items()}
    start = len(whole) - sum(sizes.values())
    pieces = {"train": whole[: max(0, start)]}
    for name in _SPLITS[1:]:
        if name in sizes:
            pieces[name] = whole[max(0, start) : max(0, start + sizes[name])]
            start += sizes[name]
        else:
            pieces[name] = ids[name]
    return pieces


def _example(split: TextSplit, told: TextPreprocessing) -> Tensor:
    """A real sequence (1, length): the longest one, and where that is shorter, others behind it until it is full."""
    found, number = list[int](), len(split)
    while len(found) < told.length and number > 0:
        number -= 1
        ids, _ = split.at(np.array([number]))
        found += ids[0].tolist()
    full = found[: told.length] + [told.pad] * (told.length - len(found))
    return torch.tensor([full])


def _record(
    typed: str, told: TextPreprocessing, seed: int, splits: Mapping[str, Mapping[str, Any]], **more: Any
) -> dict[str, Any]:
    return {
        "source": typed, "kind": f"text, {told.kind}", "seed": seed, "storage": "memory, int32",
        "length": told.length, "tokenizer_sha256": told.to_dict().get("tokenizer_sha256"),
        "sizes": {name: one["size"] for name, one in splits.items()}, "splits": dict(splits), "augmentation": None,
        **more,
    }  # fmt: skip


def _name(typed: str) -> str:
    """A short name for reports: the last part of what the user typed."""
    return Path(typed.removeprefix("hf:")).name.partition(".")[0] or typed
