"""Data sets in the Hugging Face format, from the hub, its local cache or a folder, and the images in them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sartor.data.source import DataError, Files, Source

__all__ = ["SPLITS", "HuggingFaceImages", "read_huggingface", "splits_of"]

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""How the splits are called, by ours."""


@dataclass(frozen=True)
class HuggingFaceImages:
    """Encoded images of one column; see `source.EncodedImages`."""

    rows: Any  # datasets.Dataset whose column is not decoded
    column: str
    place: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return the set, split and row number."""
        return f"{self.place}[{index}]"

    def open(self, index: int) -> Path | IO[bytes]:
        """Return the bytes that are stored in the row, or the path that is."""
        value = self.rows[index][self.column]
        if not value or not (value.get("bytes") or value.get("path")):
            raise DataError(f"{self.name(index)}: the row has no image; drop it")
        return io.BytesIO(value["bytes"]) if value.get("bytes") else Path(value["path"])


def read_huggingface(name: str) -> Source:
    """Read a data set by id (``owner/name``, or ``owner/name:configuration``) or by path.

    A path is what `save_to_disk` wrote, or a folder that `load_dataset` understands (image folder, Parquet).
    With ``HF_HUB_OFFLINE=1`` an id is looked up in the local cache only. No code of a data set is run.
    The image column is the first of type Image; the label is the first column of type ClassLabel, else the
    one called ``label`` or ``labels``.

    Raises:
        ImportError: the `datasets` library is not installed.
        DataError: the set cannot be loaded, or has no training split, image column or label column.
    """
    datasets = _library(name)
    loaded, used = splits_of(name)
    image, label = _columns(datasets, name, loaded[used["train"]].features)
    parts = {split: _part(datasets, name, key, loaded[key], image, label) for split, key in used.items()}
    feature = loaded[used["train"]].features[label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    record = {
        "kind": "huggingface",
        "columns": {"image": image, "label": label},
        "ignored_splits": sorted(set(loaded) - set(used.values())),
    }
    return Source(parts["train"], parts.get("validation"), parts.get("test"), names, record)


def splits_of(name: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Load a data set: its `datasets.Dataset` by split, and which of them are train, validation and test.

    Raises ImportError and DataError as `read_huggingface` does.
    """
    datasets = _library(name)
    loaded = _loaded(datasets, name)
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    used: dict[str, str] = {}
    for split, spellings in SPLITS.items():
        found = [key for key in spellings if key in loaded]
        if found:
            used[split] = found[0]
    if "train" not in used:
        raise DataError(f"hf:{name}: no train split among {', '.join(loaded)}; choose a set that has one")
    return loaded, used


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hf:{name} needs the datasets library: pip install 'sartor[hf]'") from error
    return datasets


def _loaded(datasets: Any, name: str) -> Any:
    """Return a Dataset or a mapping from split to Dataset."""
    path = Path(name)
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        if path.exists():
            return datasets.load_dataset(str(path))
        identifier, _, configuration = name.partition(":")
        return datasets.load_dataset(identifier, configuration or None)
    except Exception as error:  # the library, the network and the file formats have no common error
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
        raise DataError(f"hf:{name}: cannot be loaded ({reason}); check the id or give a local path") from error


def _columns(datasets: Any, name: str, features: Any) -> tuple[str, str]:
    """Return the names of the image and the label column."""
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DataError(f"hf:{name}: no column of type Image among {', '.join(features)}; cast one to Image")
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels += [key for key in ("label", "labels") if key in features]
    if not labels:
        raise DataError(
            f"hf:{name}: no column of type ClassLabel, and none called label, among {', '.join(features)};"
            " rename or cast one"
        )
    return images[0], labels[0]


def _part(datasets: Any, name: str, split: str, rows: Any, image: str, label: str) -> Files:
    place = f"hf:{name}/{split}"
    missing = [column for column in (image, label) if column not in rows.features]
    if missing:
        raise DataError(f"{place}: no column {missing[0]}, which train has; give all splits the same columns")
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = np.array(rows.with_format(None).select_columns([label])[label][:])
    return Files(HuggingFaceImages(encoded, image, place), labels, f"{place}: {label}")
