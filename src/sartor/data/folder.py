"""A folder of images, one sub-folder a class, with or without a level of splits above the classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sartor.data.source import DataError, Files, Source

__all__ = ["FolderImages", "read_folder"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class FolderImages:
    """Image files by number; see `source.EncodedImages`."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path of a file."""
        return self.paths[index]

    def open(self, index: int) -> Path:
        """Return the path of a file."""
        return Path(self.paths[index])


def read_folder(folder: Path) -> Source:
    """Read ``train/<class>/*.png|jpg|jpeg`` and ``validation/``, ``test/`` beside it, or ``<class>/*`` alone.

    Hidden entries and files that are no images are ignored; `record` counts them. Folders called ``train``,
    ``val``, ``test`` are splits, unless they hold no folders and stand beside others: then they are classes.

    Raises:
        DataError: no classes, a class folder without images, a split given twice, or no ``train``.
    """
    split_folders = _split_folders(folder)
    if split_folders and "train" not in split_folders:
        names = ", ".join(sub.name for sub in split_folders.values())
        raise DataError(f"{folder}: has {names} but no train folder; add train/<class>/ with images")
    if not split_folders:
        split_folders = {"train": folder}
    parts, ignored = {}, 0
    for split, root in split_folders.items():
        parts[split], skipped = _part(root)
        ignored += skipped
    if split_folders["train"] != folder:
        ignored += sum(1 for entry in folder.iterdir() if entry not in split_folders.values())
    record = {"kind": "folder", "ignored_files": ignored}
    return Source(parts["train"], parts.get("validation"), parts.get("test"), record=record)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if the folders of `folder` are classes."""
    below = _folders(folder)
    named = [sub for sub in below if sub.name.lower() in _SPLITS]
    if len(named) < len(below) and not any(_folders(sub) for sub in named):
        return {}
    found: dict[str, Path] = {}
    for sub in named:
        split = _SPLITS[sub.name.lower()]
        if split in found:
            raise DataError(f"{folder}: {found[split].name} and {sub.name} both hold {split}; keep one")
        found[split] = sub
    return found


def _part(root: Path) -> tuple[Files, int]:
    """Return the images below the class folders of `root`, by name, and the number of ignored entries."""
    classes = _folders(root)
    if not classes:
        raise DataError(f"{root}: no class folders; put the images of each class in {root}/<class>/")
    paths: list[str] = []
    labels: list[str] = []
    ignored = sum(1 for entry in root.iterdir() if entry not in classes)
    for class_folder in classes:
        found, skipped = _images(class_folder)
        paths += found
        labels += [class_folder.name] * len(found)
        ignored += skipped
    return Files(FolderImages(tuple(paths)), np.array(labels, dtype=np.str_), str(root)), ignored


def _images(folder: Path) -> tuple[list[str], int]:
    with os.scandir(folder) as entries:
        names = sorted(
            (entry.name, entry.is_file()) for entry in entries
        )  # sorted, since the order of a directory depends on the file system
    found = [
        str(folder / name)
        for name, is_file in names
        if is_file and not name.startswith(".") and name.lower().endswith(_SUFFIXES)
    ]
    if not found:
        others = f", only {len(names)} other entries" if names else ""
        raise DataError(f"{folder}: no .png, .jpg or .jpeg images{others}; add some or remove the folder")
    return found, len(names) - len(found)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
