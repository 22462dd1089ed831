# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.data.text import text_task
from sartor.evaluation import scored
from sartor.task import DataError, Task, TokenLikelihood, accuracy, load_task

tokenizers = pytest.importorskip("tokenizers")

WORDS = ("bad", "good", "film", "the", "very")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ROWS = [("the film", "bad"), ("very good film", "good")] * 20


@pytest.fixture
def tokenizer() -> Any:
    found = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]")
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return found


def written(path: Path, rows: Sequence[tuple[str, Any]], column: str = "text") -> Path:
    """Write rows in the format of the file's name."""
    table = [{column: text, "label": label} for text, label in rows]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, table)) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        between = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([f"{column}{between}label", *(f"{t}{between}{y}" for t, y in rows)]) + "\n")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_all_formats_are_one_task(ending: str, tokenizer: Any, tmp_path: Path) -> None:
    task = text_task(written(tmp_path / f"data.{ending}", ROWS), tokenizer, length=4)
    assert task.name == "data" and task.classes == ("bad", "good")
    assert task.metric is accuracy and task.record["train_class_counts"] == [len(task.train) // 2] * 2
    assert sum(task.record["sizes"].values()) == 40
    ids, labels = next(iter(task.validation.batches(64)))
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        assert row == ([2, 7, 6, 3] if label == 0 else [2, 8, 5, 3])  # cut at 4, the special tokens kept


def test_the_example_is_a_full_sequence_of_real_tokens(tokenizer: Any, tmp_path: Path) -> None:
    task = text_task(written(tmp_path / "data.csv", ROWS), tokenizer, length=9)
    assert task.example.shape == (1, 9) and task.example.dtype == torch.int64
    assert (task.example != 0).all()
    assert task.train.batch(0, 8)[0].shape[1] <= 5


def test_the_same_seed_cuts_the_same_splits_and_another_one_does_not(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "data.csv", ROWS)
    first, same, other = (text_task(path, tokenizer, length=8, seed=seed) for seed in (0, 0, 1))
    assert first.record == same.record and first.record["splits"] != other.record["splits"]
    counts = np.bincount(first.test.labels.numpy())
    assert counts[0] == counts[1]  # stratified


def test_a_folder_has_splits_of_its_own_and_integer_labels(tokenizer: Any, tmp_path: Path) -> None:
    rows = [(text, "01"[label == "good"]) for text, label in ROWS]
    for name, count in (("train", 20), ("dev", 6), ("test", 4)):
        written(tmp_path / f"{name}.tsv", rows[:count], "sentence")
    task = text_task(tmp_path, tokenizer, length=8)
    assert task.record["sizes"] == {"train": 20, "validation": 6, "test": 4} and task.classes == ("0", "1")


def test_a_test_part_without_labels_is_left_out(tokenizer: Any, tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", [(text, int(label == "good")) for text, label in ROWS])
    written(tmp_path / "test.jsonl", [(text, -1) for text, _ in ROWS])
    task = text_task(tmp_path, tokenizer, length=8)
    assert task.record["splits"]["test"]["part"] == "train"


def test_a_data_set_of_hugging_face(tokenizer: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["neg", "pos"])
    table = {"sentence": [text for text, _ in ROWS], "label": [int(label == "good") for _, label in ROWS]}
    features = datasets.Features({"sentence": datasets.Value("string"), "label": labels})
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(table, features=features)}).save_to_disk(tmp_path / "set")
    task = text_task(f"hf:{tmp_path / 'set'}", tokenizer, length=8)
    assert task.classes == ("neg", "pos") and sum(task.record["sizes"].values()) == 40


def test_language_is_windows_of_the_text_and_its_end_is_the_test_split(tokenizer: Any, tmp_path: Path) -> None:
    text = "the very good film\n" * 100
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    task = text_task(tmp_path / "a.txt.gz", tokenizer, kind="language", length=8)
    assert task.classes == () and isinstance(task.metric, TokenLikelihood)
    sizes = {name: one["tokens"] for name, one in task.record["splits"].items()}
    assert sizes == {"train": 240, "validation": 100, "test": 60}  # 50 windows: 25 % and 15 %
    ids, labels = task.train.batch(0, 4)
    assert ids.shape == labels.shape == (4, 8) and torch.equal(ids[:, 1:], labels[:, :-1])
    assert task.example.tolist() == [[7, 8, 5, 6, 7, 8, 5, 6]]


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", tokens=np.arange(100), tokens_test=np.arange(20))
    task = text_task(tmp_path / "ids.npz", kind="language", length=8)
    assert task.preprocessing.to_dict() == {"mode": "tokens", "kind": "language", "length": 8, "pad": 0}
    assert task.record["splits"]["test"]["part"] == "test" and task.preprocessing.files() == {}


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", tokens=np.arange(500) % 40)
    assert text_task(tmp_path / "ids.npz", kind="language", length=8, vocabulary=40).record["length"] == 8
    with pytest.raises(DataError, match=r"token id 39 of the train split is none of the model's 38"):
        text_task(tmp_path / "ids.npz", kind="language", length=8, vocabulary=38)


def test_a_line_of_json_ends_where_the_line_does(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": f"good\u2028{word}", "label": label % 2} for label, (word, _) in enumerate(ROWS)]
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert sum(text_task(tmp_path / "data.jsonl", tokenizer, length=8).record["sizes"].values()) == len(rows)


def test_the_tokenizer_that_is_deployed_cuts_and_the_given_one_stays(tokenizer: Any, tmp_path: Path) -> None:
    task = text_task(written(tmp_path / "data.csv", ROWS), tokenizer, length=4)
    own = tokenizers.Tokenizer.from_str(task.preprocessing.files()["tokenizer.json"].decode())
    assert len(own.encode("the the the the the").ids) == 4 and tokenizer.truncation is None
    assert task.preprocessing.to_dict()["tokenizer"] == "tokenizer.json"


def test_the_metric_of_language_is_one_over_the_perplexity_however_it_is_batched() -> None:
    logits = torch.randn(6, 5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(1))
    labels[5, 3:] = -100
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).neg().exp()
    pairs = zip(logits.chunk(2), labels.chunk(2), strict=True)
    assert scored(TokenLikelihood(), pairs) == pytest.approx(float(whole))
    assert TokenLikelihood()(logits.flatten(0, 1), labels.flatten()) == pytest.approx(float(whole))
    assert TokenLikelihood()(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)) == pytest.approx(0.25)


WRONG: list[tuple[str, str, str]] = [
    ("data.csv", "text,label\nfilm,1,2\n", "row 1 has another number of columns"),
    ("data.csv", "words,label\nfilm,1\n", "no column text or sentence or content among words, label"),
    ("data.csv", "text,class\nfilm,1\n", "no column label among text, class"),
    ("data.csv", "text,label\nfilm,\n", "row 1 has no label"),
    ("data.csv", "", "the file is empty"),
    ("data.csv", "text,label\n", "no rows"),
    ("data.csv", "text,label\nfilm,1\ngood,1\n", "all 2 labels are 1"),
    ("data.jsonl", '{"text": 3, "label": 1}\n', "row 1: the text is 3"),
    ("data.json", "{", "cannot be read"),
    ("data.json", "[1]", "not a list of objects"),
    ("data.parquet", "no", "cannot be read"),
    ("data.doc", "no", "unknown text format '.doc'"),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
def test_what_cannot_be_read_says_so_in_one_line(
    name: str, content: str, words: str, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        text_task(tmp_path / name, tokenizer)
    assert "\n" not in str(caught.value)


def test_other_mistakes(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "data.csv", ROWS)
    cases: list[tuple[type[Exception], str, Any]] = [
        (DataError, "text needs a tokenizer", lambda: text_task(path)),
        (ValueError, "no kind 'other'", lambda: text_task(path, tokenizer, kind="other")),  # type: ignore[arg-type]
        (ValueError, "2 tokens or more", lambda: text_task(path, tokenizer, length=1)),
        (ValueError, "a str has no fast form", lambda: text_task(path, "bert")),
        (DataError, "no such file", lambda: text_task(tmp_path / "none.csv", tokenizer)),
        (DataError, "text, not images", lambda: load_task(path)),
    ]
    for error, words, call in cases:
        with pytest.raises(error, match=words):
            call()
    (tmp_path / "few.txt").write_text("the film")
    with pytest.raises(DataError, match="tokens"):
        text_task(tmp_path / "few.txt", tokenizer, kind="language")
    np.savez(tmp_path / "bad.npz", tokens=np.zeros(9))
    with pytest.raises(DataError, match="train tokens are float64"):
        text_task(tmp_path / "bad.npz", kind="language")


def test_a_tokenizer_of_transformers_is_taken_with_its_padding_token(tokenizer: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[SEP]")
    task: Task = text_task(written(tmp_path / "data.csv", ROWS), wrapped, length=8)
    assert task.preprocessing.to_dict()["pad"] == 3
