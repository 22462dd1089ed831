"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST, plain or gzip'ed."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sartor.data.source import Arrays, DataError, Source

__all__ = ["holds_idx", "read_idx"]

_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<split>train|test|t10k|val|validation)[-_.]"
    r"(?P<what>images|labels)[-_.]idx[134][-_.]ubyte(\.gz)?"
)
_SPLITS = {"train": "train", "test": "test", "t10k": "test", "val": "validation", "validation": "validation"}
_UBYTE = 0x08

Found = dict[tuple[str, str], Path]


def holds_idx(path: Path) -> bool:
    """Tell whether a folder, or the common start of file names as ``DIR/emnist-letters``, means IDX files."""
    return bool(_found(path))


def read_idx(path: Path, *, memory_mb: float) -> Source:
    """Read ``train-images-idx3-ubyte[.gz]``, ``train-labels-idx1-ubyte[.gz]``, ``t10k-...`` or ``test-...``.

    Args:
        path: the folder, or, where it holds several sets, the folder and what the names of one start with.
        memory_mb: bound on the images of one file.

    EMNIST stores its images transposed; files whose names start with ``emnist`` are turned back.

    Raises:
        DataError: a file is missing, ambiguous, too large, of the wrong length or not IDX bytes.
    """
    found = _found(path)
    prefixes = sorted({_prefix(file) for file in found.values()} if found else set())
    if len(prefixes) > 1:
        names = ", ".join(prefix.rstrip("-_.") or "(no prefix)" for prefix in prefixes)
        one = path / prefixes[-1].rstrip("-_.")
        raise DataError(f"{path}: several data sets in one folder ({names}); name one of them, as {one}")
    parts = {
        split: _part(path, split, found, memory_mb)
        for split in ("train", "validation", "test")
        if (split, "images") in found or (split, "labels") in found
    }
    if "train" not in parts:
        names = ", ".join(sorted(file.name for file in found.values()))
        raise DataError(f"{path}: no train-images-idx3-ubyte among its IDX files ({names}); add the training part")
    transposed = prefixes[0].startswith("emnist")
    if transposed:
        parts = {
            split: Arrays(
                part.images.swapaxes(-1, -2), part.labels, part.images_place, part.labels_place
            )
            for split, part in parts.items()
        }  # fmt: skip
    record = {"kind": "idx", "transposed": transposed}
    return Source(parts["train"], parts.get("validation"), parts.get("test"), record=record)


def _found(path: Path) -> Found:
    """Return the IDX files meant by `path`; keys are unique unless several sets share the folder."""
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    found: Found = {}
    if not folder.is_dir():
        return found
    for file in sorted(folder.iterdir(), key=lambda file: (file.suffix == ".gz", file.name)):
        match = _NAME.fullmatch(file.name)
        if match is None or not (start == "" or match["prefix"].rstrip("-_.") == start):
            continue
        key = (_SPLITS[match["split"]], match["what"])
        if key in found and _prefix(found[key]) != match["prefix"]:
            key = (match["prefix"] + key[0], key[1])  # kept, so that the error can list the sets
        found.setdefault(key, file)
    return found


def _prefix(file: Path) -> str:
    match = _NAME.fullmatch(file.name)
    assert match is not None
    return match["prefix"]


def _part(path: Path, split: str, found: Found, memory_mb: float) -> Arrays:
    for what, other in (("images", "labels"), ("labels", "images")):
        if (split, what) not in found:
            raise DataError(f"{path}: {found[split, other].name} has no {what} file beside it; add it")
    images, labels = found[split, "images"], found[split, "labels"]
    x, y = _array(images, (3, 4), memory_mb), _array(labels, (1,), memory_mb)
    return Arrays.checked(x, y.astype(np.int64), str(images), str(labels))


def _array(file: Path, dimensions: tuple[int, ...], memory_mb: float) -> NDArray[np.uint8]:
    """Return the array in an IDX file.

    The format (Y. LeCun, C. Cortes, "The MNIST database"): two zero bytes, a type code, the number of
    dimensions, their sizes as big-endian 32-bit integers, then the values.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            return _parsed(stream, file, dimensions, memory_mb)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}: damaged or half-written gzip ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); check the file") from error


def _parsed(
    stream: gzip.GzipFile | io.BufferedReader, file: Path, dimensions: tuple[int, ...], memory_mb: float
) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"{file}: empty or half-written ({len(magic)} bytes); download it again")
    if magic[:2] != b"\0\0" or magic[2] != _UBYTE or magic[3] not in dimensions:
        expected = " or ".join(f"0x{_UBYTE << 8 | count:08x}" for count in dimensions)
        raise DataError(f"{file}: starts with 0x{magic.hex()}, not {expected}; it is not such an IDX file")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{file}: the header ends after {4 + len(header)} bytes, half-written; download it again")
    shape = struct.unpack(f">{magic[3]}I", header)
    expected_bytes = math.prod(shape)
    if expected_bytes > memory_mb * 2**20:
        raise DataError(
            f"{file}: declares {expected_bytes / 2**20:.0f} MB, more than memory_mb = {memory_mb:g};"
            " raise the bound or use a folder of images, which streams"
        )
    values = stream.read(expected_bytes + 1)
    if len(values) != expected_bytes:
        found = f"{len(values)} bytes" if len(values) < expected_bytes else "more"
        raise DataError(f"{file}: declares shape {shape}, {expected_bytes} bytes, but holds {found}; download it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
