# SPDX-License-Identifier: Apache-2.0
"""Tables in `.npz` files: one array for each column, decompressed when it is first used.

A whole table holds, beside its columns, `.format`, `.name`, `.space` (the JSON of the choices and gates), `.rule`
(how equal networks are told) and `.codes`, the position of each choice's option. Nothing in it is a pickle.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.gates import key
from sartor.space import SearchSpace
from sartor.spaces import nasbench101_cell
from sartor.tables.table import Table

__all__ = ["Columns", "arrays", "open_table", "packed", "read"]

_SUFFIX = ".npy"
_FORMAT = 1
_Rule = tuple[Callable[[Architecture], bool], Callable[[Architecture], Architecture]]
_RULES: dict[str, _Rule] = {"nasbench101": (nasbench101_cell.is_cell, nasbench101_cell.canonical)}
"""By name: what the space is constrained to, and the architecture that stands for its equals."""


class Columns(Mapping[str, NDArray[Any]]):
    """The arrays of one or several `.npz` files by name, read-only; `aliases` give some a second name.

    Names that start with a dot are not columns, but can be had. A pickle carries the paths, not the numbers.
    Raises ValueError, here or at the first use, for a file that is missing, damaged or holds pickles, and for
    a column that has not `rows` numbers.
    """

    def __init__(self, paths: Sequence[Path], rows: int, aliases: Mapping[str, str] | None = None) -> None:
        self._rows = rows
        self._places = {name: path for path in paths for name in _names(path)}
        self._aliases = dict(aliases or {})
        self._read: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array, from its file the first time."""
        name = self._aliases.get(name, name)
        if name not in self._read:
            path = self._places[name]
            array = read(path, name)
            if not name.startswith(".") and (array.shape != (self._rows,) or array.dtype.kind not in "biuf"):
                raise ValueError(
                    f"column {name!r} in {path.name} is {array.dtype} of shape {array.shape}: "
                    f"it should be {self._rows} numbers"
                )
            self._read[name] = array
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is such a column, without reading it."""
        return name in self._places or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        yield from (name for name in self._places if not name.startswith("."))
        yield from self._aliases

    def __len__(self) -> int:
        """Return the number of columns."""
        return sum(1 for _ in self)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the numbers."""
        return {**vars(self), "_read": {}}


def read(path: Path, name: str) -> NDArray[Any]:
    """Return one array of an `.npz` file; ValueError if it cannot be had."""
    try:
        with np.load(path, allow_pickle=False) as file:
            array: NDArray[Any] = file[name]
            array.flags.writeable = False
            return array
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name!r} cannot be read from {path} ({_line(error)}): make or copy the file anew") from None


def open_table(path: Path | str, *, keep: bool = False) -> Table:
    """Return the table in a file that `read_original` saved; ValueError in one line if it is malformed.

    keep: read every column now, so that the file may go.
    """
    path = Path(path)
    names = _names(path)
    if missing := {".format", ".name", ".space", ".rule", ".codes"} - {*names}:
        raise ValueError(f"{path} is no table: it has no {', '.join(sorted(missing))}")
    if (found := read(path, ".format").tolist()) != _FORMAT:
        raise ValueError(f"{path} has format {found!r}, and {_FORMAT} is what this version of sartor reads")
    codes, rule = read(path, ".codes"), str(read(path, ".rule"))
    if rule and rule not in _RULES:
        raise ValueError(f"{path} tells equal networks by the rule {rule!r}, which this version of sartor lacks")
    is_cell, canonical = _RULES.get(rule, (None, None))
    space = SearchSpace.from_json(str(read(path, ".space")), is_cell)
    columns = Columns([path], len(codes))
    kept = {name: columns[name] for name in columns} if keep else columns
    table = Table(str(read(path, ".name")), space, kept, codes, canonical)
    if canonical is None and len(table) < space.size:
        return table.where(np.ones(len(table), dtype=bool), table.name)
    return table


def arrays(
    name: str,
    space: SearchSpace,
    archs: Sequence[Architecture],
    columns: Mapping[str, NDArray[Any]],
    rule: str = "",
) -> dict[str, NDArray[Any]]:
    """Return what a file of the table holds; ValueError for an architecture that is outside of the space."""
    codes = np.empty((len(archs), len(space.choices)), dtype=np.uint8)
    places = {one: {key(option): i for i, option in enumerate(space.choices[one])} for one in space.choices}
    for row, arch in enumerate(archs):
        if arch not in space:
            raise ValueError(f"row {row} holds {dict(arch)!r:.200}, which is not in the space")
        codes[row] = [place[key(arch[one])] for one, place in places.items()]
    about = {".name": name, ".space": space.to_json(), ".rule": rule}
    return {
        ".format": np.array(_FORMAT),
        **{place: np.array(text) for place, text in about.items()},
        ".codes": codes,
        **columns,
    }


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the bytes of an `.npz` file without the time of day in it, so that equal arrays are equal bytes."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays.items():
            content = BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}{_SUFFIX}"), content.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return out.getvalue()


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(_SUFFIX) for name in file.namelist() if name.endswith(_SUFFIX)]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a table ({_line(error)}): make or copy it anew") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
