# SPDX-License-Identifier: Apache-2.0
"""A tabular benchmark: every architecture of a space, and columns of what was measured of each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture, Option
from sartor.objective import Objective
from sartor.space import SearchSpace

__all__ = ["Lookup", "Table"]

_COSTS = ("_ms", "_mj", "_s", "_m")


@dataclass(frozen=True, eq=False)
class Table:
    """Architectures, one a row, and what was measured of each.

    name: as `sartor.tables.load` knows it.
    space: what a search draws from; each of its architectures has a row.
    columns: name to (rows,) numbers; NaN where nothing was measured. A name that ends in `_ms`, `_s`
        (milliseconds, seconds), `_mj` (millijoules) or `_m` (millions) is a cost, to be minimised.
    codes: (rows, choices) position of the option of each choice, choices in the order of `space.choices`.
    canonical: gives the architecture that stands for all those that are the same network, and so share a row;
        None where every architecture has its own.

    Raises ValueError for codes that are no architectures of the space, for an architecture with two rows, and
    for a column of another length.
    """

    name: str
    space: SearchSpace
    columns: Mapping[str, NDArray[Any]]
    codes: NDArray[np.integer[Any]]
    canonical: Callable[[Architecture], Architecture] | None = None

    def __post_init__(self) -> None:
        """Check; columns that are read from a file when they are first used are checked then."""
        self._check_codes()
        for name, column in self.columns.items() if isinstance(self.columns, dict) else ():
            if column.shape != (len(self),) or column.dtype.kind not in "biuf":
                raise ValueError(
                    f"column {name!r} of table {self.name!r} is {column.dtype} of shape {column.shape}: "
                    f"give {len(self)} numbers, one for each row"
                )

    def _check_codes(self) -> None:
        codes, counts = self.codes, [len(options) for options in self.space.choices.values()]
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.shape[1] != len(counts) or not len(codes):
            raise ValueError(
                f"the codes of table {self.name!r} are {codes.dtype} of shape {codes.shape}: give at least one row "
                f"of {len(counts)} integers, an option's position for each choice"
            )
        wrong = np.argwhere((codes < 0) | (codes >= np.array(counts)))
        if len(wrong):
            row, choice = wrong[0]
            raise ValueError(
                f"row {row} of table {self.name!r} has option {codes[row, choice]} of "
                f"{list(self.space.choices)[choice]!r}, which has {counts[choice]}"
            )
        order = np.lexsort(codes.T[::-1])
        repeats = np.flatnonzero((codes[order[1:]] == codes[order[:-1]]).all(axis=1))
        if len(repeats):
            first, second = order[repeats[0]], order[repeats[0] + 1]
            raise ValueError(f"rows {first} and {second} of table {self.name!r} are the same architecture: keep one")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.codes)

    def __repr__(self) -> str:
        """Return name and size."""
        return f"Table({self.name!r}: {len(self)} architectures, {len(self.columns)} columns)"

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields; what was worked out from them is left behind."""
        return {name: vars(self)[name] for name in self.__dataclass_fields__}

    # ---- rows and architectures -----------------------------------------------------------------------

    def architecture(self, row: int) -> Architecture:
        """Return the architecture of a row; ValueError outside of 0 to rows - 1."""
        if not 0 <= row < len(self):
            raise ValueError(f"table {self.name!r} has no row {row}: rows are 0 to {len(self) - 1}")
        return self._architectures[row]

    def architectures(self) -> list[Architecture]:
        """Return the architectures of all rows, in order."""
        return list(self._architectures)

    def row(self, arch: Architecture) -> int:
        """Return the row of an architecture; ValueError if it has none."""
        try:
            return self._index[tuple(arch._values.items())]
        except (KeyError, AttributeError):
            return self._shared_row(arch)

    def rows(self, archs: Sequence[Architecture]) -> NDArray[np.intp]:
        """Return the (N,) rows of `archs`; ValueError names the first that has none."""
        index = self._index
        try:
            return np.array([index[tuple(arch._values.items())] for arch in archs], dtype=np.intp)
        except (KeyError, AttributeError):
            return np.array([self.row(arch) for arch in archs], dtype=np.intp)

    @cached_property
    def _architectures(self) -> list[Architecture]:
        options = list(self.space.choices.items())
        columns = [[choice[code] for code in self.codes[:, i].tolist()] for i, (_, choice) in enumerate(options)]
        names = [name for name, _ in options]
        return [Architecture._trusted(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]

    @cached_property
    def _index(self) -> dict[tuple[tuple[str, Option], ...], int]:
        """Rows by what architectures hold: hashing and comparing them as objects would take three times as long."""
        return {tuple(arch._values.items()): row for row, arch in enumerate(self._architectures)}

    def _shared_row(self, arch: Architecture) -> int:
        if self.canonical is not None and arch in self.space:
            row = self._index.get(tuple(self.canonical(arch)._values.items()))
            if row is not None:
                self._index[tuple(arch._values.items())] = row
                return row
        raise ValueError(f"{arch!r} is no architecture of table {self.name!r}: draw from its space")

    # ---- columns ----------------------------------------------------------------------------------------

    def column(self, name: str) -> NDArray[Any]:
        """Return a column, read-only; ValueError for an unknown name, with the closest ones."""
        if name not in self.columns:
            close = difflib.get_close_matches(name, self.columns, n=3) or list(self.columns)
            raise ValueError(f"table {self.name!r} has no column {name!r}: there is {', '.join(close)}")
        return self.columns[name]

    def values(self, column: str, archs: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the (N,) values of `archs` in a column, NaN where not measured; ValueError as `rows`."""
        return self.column(column)[self.rows(archs)].astype(np.float64)

    def where(self, kept: NDArray[np.bool_], name: str | None = None) -> Table:
        """Return the table of the rows where `kept`, (rows,) booleans, is true; its space is as much smaller.

        For instance the networks that a device ran: `table.where(np.isfinite(table.column("...")))`.
        Raises ValueError for another shape or type, and where nothing is kept.
        """
        kept = np.asarray(kept)
        if kept.shape != (len(self),) or kept.dtype != np.bool_:
            raise ValueError(f"kept is {kept.dtype} of shape {kept.shape}: give {len(self)} booleans, one for each row")
        if not kept.any():
            raise ValueError(f"no row of table {self.name!r} is kept")
        space = replace(self.space, constraint=_Within(self, kept.tobytes()))
        name = name or f"{self.name}, {kept.sum()} rows"
        return Table(name, space, _Selected(self.columns, np.flatnonzero(kept)), self.codes[kept], self.canonical)

    # ---- objectives -------------------------------------------------------------------------------------

    def objective(
        self,
        column: str,
        *,
        name: str | None = None,
        goal: Literal["min", "max"] | None = None,
        at_most: float | None = None,
        at_least: float | None = None,
        fidelities: Mapping[float, str] | None = None,
    ) -> Objective:
        """Return the objective that looks `column` up; what was not measured (NaN) becomes a failed trial.

        name: of the objective; the column's if not given.
        goal: "min" for the columns of costs (see the class) and "max" for others if not given.
        fidelities: a budget, above 0 and below 1, to the column that training for this share of the full
            budget gives. The objective then takes a budget: the largest of these (or 1, `column`) within
            what is given.

        Raises ValueError for an unknown column and a budget that is not between 0 and 1.
        """
        for budget in fidelities or ():
            if not 0 < budget < 1:
                raise ValueError(f"the budget {budget} of {column!r} is not between 0 and 1: 1 is {column!r} itself")
        steps = (*sorted((fidelities or {}).items()), (1.0, column))
        for _, step in steps:
            self.column(step)
        return Objective(
            name or column,
            Lookup(self, steps),
            goal or ("min" if column.endswith(_COSTS) else "max"),
            at_most=at_most,
            at_least=at_least,
            cheap=True,
            fidelity=bool(fidelities),
        )


@dataclass(frozen=True, eq=False)
class Lookup:
    """The measure of a table's objective: (architecture, budget) to a number; pickles without the numbers."""

    table: Table
    steps: tuple[tuple[float, str], ...]
    """(budget, column), smallest budget first; the last is (1.0, column)."""

    def __call__(self, arch: Architecture, budget: float = 1.0) -> float:
        """Return the value of the largest fidelity within `budget`; ValueError for less than the smallest."""
        if budget >= 1.0:
            return self._full[self.table.row(arch)]
        affordable = [column for least, column in self.steps if least <= budget + 1e-9]
        if not affordable:
            raise ValueError(f"nothing was measured with a budget of {budget:g}: the least is {self.steps[0][0]:g}")
        return float(self.table.columns[affordable[-1]][self.table.row(arch)])

    @cached_property
    def _full(self) -> list[float]:
        values: list[float] = self.table.columns[self.steps[-1][1]].astype(float).tolist()
        return values

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields alone."""
        return {"table": self.table, "steps": self.steps}


@dataclass(frozen=True)
class _Within:
    """The constraint of a part of a table: whether the architecture's row is among those kept."""

    table: Table
    kept: bytes = field(repr=False)

    def __call__(self, arch: Architecture) -> bool:
        try:
            return self.kept[self.table.row(arch)] != 0
        except ValueError:
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Within) and (self.table.name, self.kept) == (other.table.name, other.kept)

    def __hash__(self) -> int:
        return hash((self.table.name, self.kept))


class _Selected(Mapping[str, NDArray[Any]]):
    """Some rows of each column, taken when the column is first used."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]) -> None:
        self._columns, self._rows = columns, rows
        self._taken: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._taken:
            taken = self._columns[name][self._rows]
            taken.flags.writeable = False
            self._taken[name] = taken
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __getstate__(self) -> dict[str, Any]:
        return {"_columns": self._columns, "_rows": self._rows, "_taken": {}}
