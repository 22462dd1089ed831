"""Which reader a source belongs to, by what the user typed."""

from __future__ import annotations

from pathlib import Path

from sartor.data.digits import read_digits
from sartor.data.folder import read_folder
from sartor.data.huggingface import read_huggingface
from sartor.data.idx import holds_idx, read_idx
from sartor.data.npz import read_npz
from sartor.data.source import DataError, Source
from sartor.data.text_reading import holds_text

__all__ = ["absolute_source", "read_source"]

_KNOWN = "digits, FILE.npz, a folder with IDX files or with images by class, or hf:ID"


def read_source(typed: str, *, memory_mb: float) -> Source:
    """Read what the user names; raises `DataError` if nothing can read it."""
    try:
        return _read(typed, memory_mb)
    except OSError as error:
        raise DataError(f"{typed}: cannot be read ({error.strerror or error}); check the path") from error


def absolute_source(typed: str) -> str:
    """Return what the user typed so that it is found from any folder: paths are absolute, names stay."""
    scheme = "hf:" if typed.startswith("hf:") else ""
    path = Path(typed.removeprefix(scheme))
    if typed == "digits" or not (path.exists() or holds_idx(path)):
        return typed
    return f"{scheme}{path.absolute()}"


def _read(typed: str, memory_mb: float) -> Source:
    if not typed:
        raise DataError(f"no data is named; data is {_KNOWN}")
    if typed == "digits":
        return read_digits()
    if typed.startswith("hf:"):
        return read_huggingface(typed.removeprefix("hf:"))
    path = Path(typed)
    if path.suffix == ".npz" and not path.is_dir():
        return read_npz(path, memory_mb=memory_mb)
    if holds_idx(path):
        return read_idx(path, memory_mb=memory_mb)
    if holds_text(path):
        raise DataError(f"{typed}: text, not images; load it with sartor.data.text.text_task, or name a --model for it")
    if path.is_dir():
        return read_folder(path)
    if path.exists():
        raise DataError(f"{typed}: unknown data format {path.suffix!r}; data is {_KNOWN}")
    hint = f"; for a Hugging Face set write hf:{typed}" if typed.count("/") == 1 else ""
    raise DataError(f"{typed}: no such file or folder{hint}; data is {_KNOWN}")
