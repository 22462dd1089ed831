# SPDX-License-Identifier: Apache-2.0
"""What a profile was made from, in the `.costs` file: every session's measurements, as they were taken.

A session is one transaction, so that a kill at any instant loses the session in progress and nothing else. Operators
belong to a fingerprint and serve every space that is profiled on the device; networks belong to a profile.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.costs.store import CostStore
from sartor.protocols import Measurement
from sartor.targets.fingerprint import differences

__all__ = ["Entry", "Ledger", "Measured", "Session"]

_TABLES = """
CREATE TABLE IF NOT EXISTS profiles(
    id INTEGER PRIMARY KEY, target TEXT, fingerprint TEXT, space TEXT, settings TEXT, record TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS one_profile ON profiles(fingerprint, space);
CREATE TABLE IF NOT EXISTS sessions(
    profile INTEGER, number INTEGER, kind TEXT, seconds REAL, PRIMARY KEY(profile, number));
CREATE TABLE IF NOT EXISTS networks(
    profile INTEGER, session INTEGER, arch TEXT, measurement TEXT, reason TEXT);
CREATE TABLE IF NOT EXISTS operators(
    fingerprint TEXT, key TEXT, ms REAL, measurement TEXT, reason TEXT, UNIQUE(fingerprint, key));
"""


@dataclass(frozen=True)
class Measured:
    """An architecture with its measurement, or with the reason for which the target refuses it."""

    arch: Architecture
    measurement: Measurement | None
    reason: str = ""


@dataclass(frozen=True)
class Session:
    """Networks that were measured together, in interleaved rounds, and the seconds it took with preparing them."""

    number: int
    kind: str
    seconds: float
    networks: tuple[Measured, ...]


@dataclass(frozen=True)
class Entry:
    """One profile of a file: a target and its fingerprint, a space, how it is made, and the record when it is done."""

    id: int
    target: str
    fingerprint: Mapping[str, str]
    space: Mapping[str, Any]
    settings: Mapping[str, Any]
    record: Mapping[str, Any] | None


class Ledger:
    """The profiles of a `.costs` file. Raises ValueError for a file that is no cost store or of a newer format."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        CostStore(self.path)
        with self._connected() as database:
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)

    def entries(self) -> list[Entry]:
        """Return all profiles, in the order in which they were begun."""
        with self._connected() as database:
            rows = database.execute(
                "SELECT id, target, fingerprint, space, settings, record FROM profiles ORDER BY id"
            ).fetchall()
        return [
            Entry(number, target, *(json.loads(text or "null") for text in texts)) for number, target, *texts in rows
        ]

    def find(self, fingerprint: Mapping[str, str], space: Mapping[str, Any]) -> Entry | None:
        """Return the profile of exactly this fingerprint and space."""
        wanted = (_text(fingerprint), _text(space))
        return next((one for one in self.entries() if (_text(one.fingerprint), _text(one.space)) == wanted), None)

    def begin(
        self, target: str, fingerprint: Mapping[str, str], space: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Entry:
        """Start a profile; ValueError if there is one of this fingerprint and space."""
        texts = (target, _text(fingerprint), _text(space), _text(settings))
        try:
            with self._connected() as database:
                database.execute("INSERT INTO profiles(target, fingerprint, space, settings) VALUES(?, ?, ?, ?)", texts)
        except sqlite3.IntegrityError:
            raise ValueError(f"{self.path} holds a profile of this target and space: continue or remove it") from None
        found = self.find(fingerprint, space)
        assert found is not None
        return found

    def settle(self, entry: Entry, settings: Mapping[str, Any]) -> Entry:
        """Replace how a profile is made, such as counts that follow from its first session."""
        with self._connected() as database:
            database.execute("UPDATE profiles SET settings = ? WHERE id = ?", (_text(settings), entry.id))
        return next(one for one in self.entries() if one.id == entry.id)

    def conclude(self, entry: Entry, record: Mapping[str, Any] | None) -> None:
        """Write what the profile found, and so end it; None opens it again."""
        text = None if record is None else json.dumps(record, allow_nan=False)
        with self._connected() as database:
            database.execute("UPDATE profiles SET record = ? WHERE id = ?", (text, entry.id))

    def remove(self, entry: Entry) -> None:
        """Forget a profile with its networks, and the operators of its fingerprint."""
        with self._connected() as database:
            database.execute("DELETE FROM profiles WHERE id = ?", (entry.id,))
            for table in ("sessions", "networks"):
                database.execute(f"DELETE FROM {table} WHERE profile = ?", (entry.id,))
            database.execute("DELETE FROM operators WHERE fingerprint = ?", (_text(entry.fingerprint),))

    def add_session(self, entry: Entry, kind: str, seconds: float, networks: Sequence[Measured]) -> None:
        """Store a session, whole.

        ValueError if a measurement says that it was taken under another fingerprint than the profile's, or if another
        process wrote to the profile meanwhile.
        """
        for one in networks:
            _check_fingerprint(entry.fingerprint, one.measurement)
        number = 1 + max((one.number for one in self.sessions(entry)), default=0)
        rows = [(entry.id, number, one.arch.to_json(), _measurement(one.measurement), one.reason) for one in networks]
        try:
            with self._connected() as database:
                database.execute("INSERT INTO sessions VALUES(?, ?, ?, ?)", (entry.id, number, kind, seconds))
                database.executemany("INSERT INTO networks VALUES(?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            raise ValueError(f"another process writes to {self.path}: let it finish, or name another file") from None

    def sessions(self, entry: Entry) -> list[Session]:
        """Return a profile's sessions, in order."""
        with self._connected() as database:
            heads = database.execute(
                "SELECT number, kind, seconds FROM sessions WHERE profile = ? ORDER BY number", (entry.id,)
            ).fetchall()
            rows = database.execute(
                "SELECT session, arch, measurement, reason FROM networks WHERE profile = ? ORDER BY rowid", (entry.id,)
            ).fetchall()
        networks: dict[int, list[Measured]] = {number: [] for number, _, _ in heads}
        for number, arch, text, reason in rows:
            found = Measurement.from_dict(json.loads(text)) if text else None
            networks[number].append(Measured(Architecture.from_json(arch), found, reason))
        return [Session(number, kind, seconds, tuple(networks[number])) for number, kind, seconds in heads]

    def add_operators(
        self, entry: Entry, seconds: float, operators: Sequence[tuple[str, float | None, Measurement | None, str]]
    ) -> None:
        """Store a session of operators: key, milliseconds at the level of the first session, measurement, reason."""
        for _, _, measurement, _ in operators:
            _check_fingerprint(entry.fingerprint, measurement)
        number = 1 + max((one.number for one in self.sessions(entry)), default=0)
        place = _text(entry.fingerprint)
        rows = [(place, key, ms, _measurement(measurement), reason) for key, ms, measurement, reason in operators]
        with self._connected() as database:
            database.execute("INSERT INTO sessions VALUES(?, ?, 'operators', ?)", (entry.id, number, seconds))
            database.executemany("INSERT OR REPLACE INTO operators VALUES(?, ?, ?, ?, ?)", rows)

    def operators(self, fingerprint: Mapping[str, str]) -> dict[str, float | None]:
        """Return the milliseconds of each operator by its key, None where the target refused it."""
        query = "SELECT key, ms FROM operators WHERE fingerprint = ? ORDER BY rowid"
        with self._connected() as database:
            return dict(database.execute(query, (_text(fingerprint),)).fetchall())

    def adopt(self, other: Ledger, theirs: Entry) -> Entry:
        """Copy a finished profile of another file, with all that it was made from, unless it is here already."""
        if self.path.resolve() == other.path.resolve():
            return theirs
        if (found := self.find(theirs.fingerprint, theirs.space)) is not None:
            if found.record is None:
                raise ValueError(f"{self.path} has an unfinished profile of {theirs.target}: finish or remove it")
            return found
        ours = self.begin(theirs.target, theirs.fingerprint, theirs.space, theirs.settings)
        place = _text(theirs.fingerprint)
        with other._connected() as database:
            tables = {
                "sessions": database.execute("SELECT * FROM sessions WHERE profile = ?", (theirs.id,)).fetchall(),
                "networks": database.execute("SELECT * FROM networks WHERE profile = ?", (theirs.id,)).fetchall(),
                "operators": database.execute("SELECT * FROM operators WHERE fingerprint = ?", (place,)).fetchall(),
            }
        with self._connected() as database:
            for name, rows in tables.items():
                own = rows if name == "operators" else [(ours.id, *row[1:]) for row in rows]
                if own:
                    marks = ", ".join("?" * len(own[0]))
                    database.executemany(f"INSERT OR IGNORE INTO {name} VALUES({marks})", own)
            database.execute("UPDATE profiles SET record = ? WHERE id = ?", (json.dumps(theirs.record), ours.id))
        return next(one for one in self.entries() if one.id == ours.id)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end of the block, dropped by an error."""
        with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            yield database


def _check_fingerprint(expected: Mapping[str, str], measurement: Measurement | None) -> None:
    """Refuse what was measured elsewhere; batch and shape are the network's, and a user's target may say nothing."""
    found = measurement.fingerprint if measurement is not None else {}
    shared = {name: value for name, value in found.items() if name in expected and name not in ("batch", "shape")}
    unlike = differences({name: expected[name] for name in shared}, shared)
    for name, (ours, theirs) in unlike.items():
        raise ValueError(f"a measurement has {name} {theirs!r} where the profile has {ours!r}: profile it by itself")


def _measurement(measurement: Measurement | None) -> str | None:
    return None if measurement is None else json.dumps(measurement.to_dict())


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
