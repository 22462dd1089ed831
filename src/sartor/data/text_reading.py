# SPDX-License-Identifier: Apache-2.0
"""Texts with their labels, and running text, from files and from Hugging Face data sets."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.data.huggingface import SPLITS, splits_of
from sartor.data.source import DataError

__all__ = ["LABELLED", "RUNNING", "Texts", "holds_text", "labelled", "running", "tokens"]

COLUMNS = ("text", "sentence", "content")
"""How the column of texts may be called."""

LABELLED = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
RUNNING = (".txt", ".txt.gz")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Texts:
    """Texts and their labels, as written: integers or strings (N,), or no labels of running text."""

    texts: Sequence[str]
    labels: NDArray[Any]
    place: str
    names: tuple[str, ...] | None = None  # of the classes, where they are declared


def labelled(source: str) -> dict[str, Texts]:
    """The parts of a source of labelled texts, by split: a file, a folder of train.* and others, or `hf:ID`.

    A test part without labels (all -1, as GLUE publishes them) is left out. Raises DataError for what cannot be read.
    """
    if source.startswith("hf:"):
        parts = _hub_labelled(source.removeprefix("hf:"))
    else:
        parts = {split: _labelled_file(path) for split, path in _files(source, LABELLED).items()}
    blind = "test" in parts and parts["test"].labels.dtype.kind == "i" and bool((parts["test"].labels == -1).all())
    return {split: part for split, part in parts.items() if not (blind and split == "test")}


def running(source: str) -> dict[str, str]:
    """The running text of a source by split: a file of text, a folder of train.txt and others, or `hf:ID`."""
    if source.startswith("hf:"):
        name = source.removeprefix("hf:")
        loaded, used = splits_of(name)
        return {split: "\n".join(map(str, _column(loaded[key], f"hf:{name}/{key}"))) for split, key in used.items()}
    return {split: _text(path) for split, path in _files(source, RUNNING).items()}


def tokens(path: Path) -> dict[str, NDArray[np.int32]]:
    """The ids in an .npz archive: `tokens` or `tokens_train`, and perhaps `tokens_validation` and `tokens_test`."""
    names = {"train": ("tokens", "tokens_train"), "validation": ("tokens_validation",), "test": ("tokens_test",)}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {split: arrays[key] for split, keys in names.items() for key in keys if key in arrays.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give an .npz archive with an array `tokens`") from None
    except Exception as error:  # damage surfaces as errors of zip, zlib, the npy header or the allocator
        raise DataError(f"{path}: cannot be read ({_line(error)}); write it again with numpy.savez") from error
    if "train" not in found:
        raise DataError(f"{path}: no array `tokens` in it; save the token ids of the training text as that")
    for split, array in found.items():
        good = array.ndim == 1 and array.dtype.kind in "iu"
        if not good or array.min(initial=0) < 0 or array.max(initial=0) >= 2**31:
            raise DataError(f"{path}: the {split} tokens are {array.dtype} {array.shape}; save ids (M,), 0 or more")
    return {split: array.astype(np.int32) for split, array in found.items()}


def holds_text(path: Path) -> bool:
    """Whether a file, or a folder with a training part, is of text by its name."""
    if path.is_dir():
        return any((path / f"train{ending}").is_file() for ending in (*LABELLED, *RUNNING))
    return path.is_file() and path.name.endswith((*LABELLED, *RUNNING))


def _files(source: str, endings: tuple[str, ...]) -> dict[str, Path]:
    """The file of each split."""
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(endings):
            raise DataError(f"{source}: unknown text format {path.suffix!r}; give {', '.join(endings)}, or hf:ID")
        return {"train": path}
    if not path.is_dir():
        if source == "digits":
            raise DataError("digits: images, and this model reads text; give a file of text")
        raise DataError(f"{source}: no such file or folder; give a file of {', '.join(endings)}, a folder or hf:ID")
    found: dict[str, Path] = {}
    for split, spellings in SPLITS.items():
        names = [f"{spelling}{ending}" for spelling in spellings for ending in endings]
        there = [path / name for name in names if (path / name).is_file()]
        if len(there) > 1:
            raise DataError(f"{path}: {there[0].name} and {there[1].name} are both the {split} split; keep one")
        found |= {split: there[0]} if there else {}
    if "train" not in found:
        raise DataError(f"{path}: no file train{{{','.join(endings)}}} in it; name the training part so")
    return found


def _labelled_file(path: Path) -> Texts:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; write or download it again")
    try:
        rows = _READERS[path.suffix](path)
    except (DataError, ImportError):
        raise
    except Exception as error:  # the formats have no common error
        raise DataError(f"{path}: cannot be read ({_line(error)}); write or download it again") from error
    if not rows:
        raise DataError(f"{path}: no rows in it; give one for each text")
    text = _text_column(rows[0], str(path))
    if "label" not in rows[0]:
        raise DataError(
            f"{path}: no column label among {', '.join(map(str, rows[0]))}; rename the one with the classes"
        )
    texts = [_string(row.get(text), f"{path}: row {number}") for number, row in enumerate(rows, 1)]
    return Texts(texts, _labels([row.get("label") for row in rows], str(path)), f"{path}: label")


def _hub_labelled(name: str) -> dict[str, Texts]:
    loaded, used = splits_of(name)
    parts: dict[str, Texts] = {}
    for split, key in used.items():
        rows, place = loaded[key], f"hf:{name}/{key}"
        if "label" not in rows.features:
            raise DataError(
                f"{place}: no column label among {', '.join(rows.features)}; rename the one with the classes"
            )
        names = getattr(rows.features["label"], "names", None)
        texts = [_string(text, f"{place}[{number}]") for number, text in enumerate(_column(rows, place))]
        values = rows.with_format(None).select_columns(["label"])["label"][:]
        parts[split] = Texts(texts, _labels(values, place), f"{place}: label", tuple(names) if names else None)
    return parts


def _column(rows: Any, place: str) -> Iterable[Any]:
    column = _text_column(rows.features, place)
    values: Iterable[Any] = rows.with_format(None).select_columns([column])[column][:]
    return values


def _text_column(columns: Iterable[Any], place: str) -> str:
    known = [*map(str, columns)]
    found = [name for name in COLUMNS if name in known]
    if not found:
        raise DataError(f"{place}: no column {' or '.join(COLUMNS)} among {', '.join(known)}; rename the one of texts")
    return found[0]


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: the text is {value!r:.40}; give a string or drop the row")
    return value


def _labels(values: Sequence[Any], place: str) -> NDArray[Any]:
    """Labels as integers where all are, or are written so, else as strings."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return np.array(values, dtype=np.int64)
    missing = [number for number, value in enumerate(values, 1) if value is None or value == ""]
    if missing:
        raise DataError(f"{place}: row {missing[0]} has no label; give one or drop the row")
    written = [str(value) for value in values]
    if all(text.lstrip("-").isdecimal() and len(text) < 10 for text in written):
        return np.array([int(text) for text in written], dtype=np.int64)
    return np.array(written)


def _text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is no UTF-8; save the text as UTF-8") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({_line(error)}); write or download it again") from error


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _complete(list(csv.DictReader(file)), path)


def _tsv(path: Path) -> list[Row]:
    """As GLUE writes it: a tab always separates, and quotes are characters."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _complete(list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)), path)


def _complete(rows: list[dict[str | Any, str | Any]], path: Path) -> list[Row]:
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(f"{path}: row {number} has another number of columns than the header; quote its text")
    return list(rows)


def _jsonl(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")  # other ends of lines may stand within a text
    return _objects([json.loads(line) for line in lines if line.strip()], path)


def _json(path: Path) -> list[Row]:
    return _objects(json.loads(path.read_text(encoding="utf-8")), path)


def _objects(found: Any, path: Path) -> list[Row]:
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(f"{path}: not a list of objects; write one with text and label for each sample")
    return found


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow ({error}): pip install 'sartor[hf]'") from None
    known = parquet.read_schema(path).names
    wanted = [name for name in known if name in (*COLUMNS, "label")]
    rows: list[Row] = parquet.read_table(path, columns=wanted or known).to_pylist()
    return rows


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__


_READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    ".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet,
}  # fmt: skip
