# SPDX-License-Identifier: Apache-2.0
"""Read the plain data in a pickle, and refuse every pickle that asks for anything else.

A pickle is a program that may name any function and call it. Here only the names below can be asked for, and
what is found under each is a function of this file, made for the purpose: containers become plain ones, numpy's
numbers and arrays are rebuilt from their bytes, torch's tensors (trained weights, which no table needs) are
dropped. Nothing that a pickle holds is imported or run. It is used in a process of its own all the same, see
`sartor.tables.original`.
"""

from __future__ import annotations

import bz2
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Refused", "plain", "read_pickle"]

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")


class Refused(ValueError):
    """The file holds what no table needs, or is no pickle."""


class _Numbers:
    """A dtype while it is read: the pickle sets its byte order afterwards."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code[:1] not in ("f", "i", "u", "b") or not code[1:].isdigit():
            raise Refused(f"it holds numpy data of type {str(code)[:20]!r}: only numbers and booleans are read")
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise Refused("it holds a numpy type of unknown byte order")
        self.order = str(order)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array:
    """An array while it is read: the pickle gives shape, type and bytes afterwards."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("it holds a numpy array of unknown form")
        _, shape, kind, fortran, content = state
        self.array = _array(content, kind, shape, "F" if fortran else "C")


def _array(content: object, kind: object, shape: object, order: object = "C") -> NDArray[Any]:
    if not isinstance(kind, _Numbers) or not isinstance(content, (bytes, bytearray)) or not isinstance(shape, tuple):
        raise Refused("it holds a numpy array of something other than numbers")
    return np.frombuffer(bytes(content), kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: object, content: object = b"") -> float | int | bool:
    if not isinstance(kind, _Numbers) or not isinstance(content, bytes):
        raise Refused("it holds a numpy scalar of something other than numbers")
    value: float | int | bool = np.frombuffer(content, kind.dtype, 1)[0].item()
    return value


def _mapping(*items: object) -> dict[Any, Any]:
    return dict(*items)


def _set(*items: object) -> set[Any]:
    return set(*items)


def _latin(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it asks to encode text otherwise than bytes of an old pickle are")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _dropped(*_: object) -> None:
    return None


class _Named:
    """What a pickle gets for a name: it can be called, and nothing else; a pickle cannot set its attributes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise Refused("it tries to change what a name stands for")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _mapping,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("_codecs", "encode"): _latin,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "dtype"): _Numbers,
    ("numpy", "ndarray"): _dropped,
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
    **{("torch._utils", f"_rebuild_{what}"): _dropped for what in ("tensor", "tensor_v2", "parameter")},
    **{("torch", f"{kind}Storage"): _dropped for kind in _TORCH_STORAGES},
}


class _Reader(pickle.Unpickler):
    """An unpickler to which nothing exists but the names above."""

    def find_class(self, module: str, name: str) -> Any:
        """Return this file's stand-in for a name, or refuse."""
        try:
            return _Named(_KNOWN[module, name])
        except KeyError:
            raise Refused(f"it asks for {f'{module}.{name}'[:80]}, which no table needs: it is not read") from None

    def persistent_load(self, pid: object) -> None:
        """Drop a tensor's storage."""


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle, a bz2 file of one (`.pbz2`), or a file of `torch.save` (old and new).

    Raises Refused for all else, in one line.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK":
            return _read_torch_archive(path)
        with bz2.open(path) if start[:3] == b"BZh" else path.open("rb") as file:
            return _read_stream(file)
    except Refused:
        raise
    except MemoryError:
        raise Refused("it needs more memory than the converter may use: raise memory_limit_mb") from None
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise Refused(f"it cannot be read to its end ({_line(error)}): it may be cut off, copy it anew") from None
    except Exception as error:  # whatever a damaged pickle leads to
        raise Refused(f"it is damaged, or no pickle of plain data ({_line(error)})") from None


def _read_stream(file: IO[bytes]) -> Any:
    found = _Reader(file).load()
    if found != _TORCH_MAGIC:
        return found
    _Reader(file).load()  # torch's old format: protocol and machine come first, then the object
    _Reader(file).load()
    return _Reader(file).load()


def _read_torch_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise Refused("it is an archive, but not one of torch.save")
        with archive.open(names[0]) as file:
            return _Reader(file).load()


def plain(value: object) -> Any:
    """Return an array that was read as one; every other value as it is."""
    return value.array if isinstance(value, _Array) else value


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
