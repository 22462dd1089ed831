# SPDX-License-Identifier: Apache-2.0
"""The record of a search: trials, and the log that survives a kill of the process."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, get_args, overload

import numpy as np

from sartor.architecture import Architecture
from sartor.pareto import pareto_front

if TYPE_CHECKING:
    from sartor.objective import Objective

State = Literal["asked", "done", "infeasible", "failed"]
_STATES = frozenset(get_args(State))
_ENDED = _STATES - {"asked"}
_FORMAT = "1"
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
CREATE TABLE trials (number INTEGER, arch TEXT, "values" TEXT, budget REAL, state TEXT, seconds REAL, note
TEXT); INSERT INTO meta VALUES ('format', '1'); COMMIT;
"""
_INSERT = "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT = 'SELECT number, arch, "values", budget, state, seconds, note FROM trials ORDER BY rowid'
_SNAPSHOT = "INSERT OR REPLACE INTO meta VALUES ('strategy', ?)"


class Candidate(NamedTuple):
    """What a strategy that chooses budgets asks for: an architecture, and the share of a full evaluation it gets.

    `budget` is in (0, 1]: 1.0 is the full one, whatever the objectives spend it on (epochs, samples, pixels).
    """

    arch: Architecture
    budget: float = 1.0

    @classmethod
    def of(cls, asked: Architecture | Candidate) -> Candidate:
        """Return what `Strategy.ask` returned as a candidate: a bare architecture is for the full budget."""
        return asked if isinstance(asked, Candidate) else cls(asked)


@dataclass(frozen=True, slots=True)
class Trial:
    """One architecture with what was measured of it.

    `number` counts the asks from 0 and seeds the randomness of that ask. `budget` is the share of a full
    evaluation that the values come from, see `Candidate`. A trial is "done", "infeasible" (a bound was
    exceeded; `values` holds what was measured until then) or "failed"; `note` gives the reason in one line.
    """

    number: int
    arch: Architecture
    values: Mapping[str, float] = field(default_factory=dict)
    budget: float = 1.0
    state: State = "asked"
    note: str = ""
    seconds: float = field(default=0.0, compare=False)


class TrialLog(Sequence[Trial]):
    """Told trials, in the order in which they were told; in memory, or in an SQLite file at `path`.

    Each append is one transaction (WAL, synchronous=NORMAL): a kill of the process at any instant loses no
    trial for which `append` returned. One process writes; a lock that ends with the process keeps others out.
    Any number may read (`readonly=True`), also while it is written. Values and floats return bit for bit.

    Raises ValueError if the file is no log, is damaged or is of another format, and BlockingIOError if
    another process, or another TrialLog of this one, writes to it.
    """

    def __init__(self, path: Path | str | None = None, *, readonly: bool = False) -> None:
        """Open the log at `path`, made if it does not exist (unless readonly: then FileNotFoundError)."""
        self.path = None if path is None else Path(path)
        self.snapshot: bytes | None = None
        """What a strategy that is saved instead of replayed had committed with the last trial."""
        self.parallel = False
        """Whether several workers ever wrote here, so that the order of asks is not known."""
        self._trials: list[Trial] = []
        self._file: sqlite3.Connection | None = None
        self._lock: sqlite3.Connection | None = None
        self._readonly = readonly
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        if self._readonly and not path.exists():
            raise FileNotFoundError(f"there is no trial log at {path}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot make a trial log at {path}: the folder does not exist")
        try:
            if not self._readonly:
                self._lock = _locked(path)
            self._file = _connected(path, self._readonly)
            self._trials = [_trial(row) for row in self._file.execute(_SELECT)]
            meta = dict(self._file.execute("SELECT key, value FROM meta"))
            self.snapshot, self.parallel = meta.get("strategy"), bool(meta.get("parallel"))
        except (sqlite3.Error, ValueError, TypeError) as error:
            self.close()
            raise ValueError(
                f"{path} cannot be read as a trial log ({error}): restore it, or give another path"
            ) from None
        except BaseException:
            self.close()
            raise

    def mark_parallel(self) -> None:
        """Record that several workers write from here on."""
        if self._file is not None and not self.parallel:
            self._file.execute("INSERT OR REPLACE INTO meta VALUES ('parallel', 1)")
        self.parallel = True

    def append(self, trial: Trial, snapshot: bytes | None = None) -> None:
        """Add a told trial, and the strategy's `snapshot` with it in the same transaction."""
        if trial.state not in _ENDED:
            raise ValueError(
                f"trial {trial.number} is {trial.state!r}: only those done, infeasible or failed are logged"
            )
        if self.path is not None:
            self._write(trial, snapshot)
        self._trials.append(trial)
        if snapshot is not None:
            self.snapshot = snapshot

    def _write(self, trial: Trial, snapshot: bytes | None) -> None:
        if self._file is None or self._readonly:
            raise ValueError(f"the trial log {self.path} is {'read only' if self._file else 'closed'}")
        row = (
            trial.number,
            trial.arch.to_json(),
            _json(trial.values),
            trial.budget,
            trial.state,
            trial.seconds,
            trial.note,
        )
        try:
            if snapshot is None:
                self._file.execute(_INSERT, row)
                return
            self._file.execute("BEGIN")
            with self._file:
                self._file.execute(_INSERT, row)
                self._file.execute(_SNAPSHOT, (snapshot,))
        except sqlite3.Error as error:
            raise OSError(f"cannot write trial {trial.number} to {self.path}: {error}") from error

    def pareto(self, objectives: Sequence[Objective]) -> list[Trial]:
        """Return the non-dominated trials among those done and within all bounds, best first objective first.

        An architecture appears once. Trials that lack a finite value of an objective do not take part, and
        neither do those of less than the full budget: what they hold is another quantity, which compares with
        nothing but its like. A search that ended before any full evaluation has an empty front.
        """
        from sartor.objective import costs, violation

        full = (trial for trial in reversed(self._trials) if trial.state == "done" and trial.budget == 1.0)
        first = {trial.arch: trial for trial in full}
        trials = [trial for trial in first.values() if violation(trial, objectives) == 0]
        points = np.array([costs(trial, objectives) for trial in trials], dtype=float).reshape(-1, len(objectives))
        finite = np.isfinite(points).all(axis=1)
        trials = [trial for trial, kept in zip(trials, finite, strict=True) if kept]
        front = [trials[i] for i in pareto_front(points[finite])]
        return sorted(front, key=lambda trial: (costs(trial, objectives), trial.number))

    def close(self) -> None:
        """Close the file and let others write to it; closing twice is fine."""
        for connection in (self._file, self._lock):
            if connection is not None:
                connection.close()
        self._file = self._lock = None

    def __enter__(self) -> Self:
        """Return the log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()

    def __len__(self) -> int:
        """Return the number of told trials."""
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        """Iterate in the order of the tells."""
        return iter(self._trials)

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trial]: ...
    def __getitem__(self, index: int | slice) -> Trial | list[Trial]:
        """Return the trial at a position in the order of the tells, or a list of them."""
        return self._trials[index]

    def __repr__(self) -> str:
        """Return path and length."""
        return f"TrialLog({str(self.path) if self.path else None!r}) of {len(self)} trials"


def _json(values: Mapping[str, float]) -> str:
    """Return what json.dumps does, several times as fast for the finite floats that a search writes."""
    numbers = values.values()
    if _FLOAT.issuperset(map(type, numbers)) and math.isfinite(sum(numbers)):
        return "{" + ", ".join([f"{_quoted(name)}: {value!r}" for name, value in values.items()]) + "}"
    return json.dumps(dict(values))


_FLOAT = frozenset({float})
_quoted: Callable[[str], str] = lru_cache(maxsize=256)(json.dumps)


def _locked(path: Path) -> sqlite3.Connection:
    """Hold a lock that forked workers do not inherit and that the kernel drops when this process dies.

    SQLite's own locks are of this kind, which flock's are not; they go on a file beside the log, so that
    others can read the log meanwhile.
    """
    lock = sqlite3.connect(
        path.with_name(path.name + ".lock"), timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if "locked" not in str(error):
            raise
        raise BlockingIOError(f"{path} is in use by another search: wait for it, or give another path") from None
    return lock


def _connected(path: Path, readonly: bool) -> sqlite3.Connection:
    source = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
    file = sqlite3.connect(source, uri=True, isolation_level=None, check_same_thread=False)
    try:
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and not readonly:
            file.execute("PRAGMA journal_mode = WAL")
            file.executescript(_SCHEMA)
        elif not {"meta", "trials"} <= tables:
            raise ValueError("it holds no trials")
        (found,) = file.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() or (None,)
        if found != _FORMAT:
            raise ValueError(f"its format is {found}, and {_FORMAT} is what this version of sartor reads")
        file.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        file.close()
        raise
    return file


def _trial(row: tuple[int, str, str, float, str, float, str]) -> Trial:
    number, arch, values, budget, state, seconds, note = row
    read = json.loads(values)
    if state not in _STATES or not isinstance(read, dict):
        raise ValueError(f"trial {number} is damaged")
    return Trial(number, Architecture.from_json(arch), read, budget, state, note, seconds)  # type: ignore[arg-type]
