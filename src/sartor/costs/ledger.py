# SPDX-License-Identifier: Apache-2.0
"""What a profile was made from, in the `.costs` file: every session's measurements, as they were taken.

A session is one transaction, so that a kill at any instant loses the session in progress and nothing else. Operators
belong to a fingerprint and serve every space that is profiled on the device; networks belong to a profile. A finished
profile keeps in its record the operators that it is made from, so that nothing that is measured later changes it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.costs.store import connected, opened
from sartor.protocols import Measurement
from sartor.targets.fingerprint import differences

__all__ = ["Entry", "Ledger", "Measured", "Session"]

_TABLES = {
    "profiles": "CREATE TABLE IF NOT EXISTS profiles("
    "id INTEGER PRIMARY KEY, target TEXT, fingerprint TEXT, space TEXT, settings TEXT, record TEXT)",
    "one_profile": "CREATE UNIQUE INDEX IF NOT EXISTS one_profile ON profiles(fingerprint, space)",
    "sessions": "CREATE TABLE IF NOT EXISTS sessions("
    "profile INTEGER, number INTEGER, kind TEXT, seconds REAL, PRIMARY KEY(profile, number))",
    "networks": "CREATE TABLE IF NOT EXISTS networks("
    "profile INTEGER, session INTEGER, arch TEXT, measurement TEXT, reason TEXT)",
    "operators": "CREATE TABLE IF NOT EXISTS operators("
    "fingerprint TEXT, key TEXT, ms REAL, measurement TEXT, reason TEXT, UNIQUE(fingerprint, key))",
}


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

    @property
    def title(self) -> str:
        """The target, the space, and its images and classes: what tells it from others for a reader."""
        height, width = self.space["size"]
        images = f"{self.space['channels']}x{height}x{width}"
        return f"{self.target} on {self.space['name']} ({images}, {self.space['classes']} classes)"

    @property
    def reference(self) -> dict[str, Any]:
        """What another profile's record says to name this one as its source."""
        return {"target": self.target, "fingerprint": dict(self.fingerprint), "space": dict(self.space)}

    def came_from(self, other: Entry) -> bool:
        """Whether it was adapted from another one of its file."""
        source = (self.record or {}).get("source")
        if isinstance(source, int):  # as first written
            return source == other.id
        return source is not None and _place(source["fingerprint"], source["space"]) == other._place

    @property
    def _place(self) -> tuple[str, str]:
        return _place(self.fingerprint, self.space)


class Ledger:
    """The profiles of a `.costs` file, which is made if it is not there; `to_read` changes nothing.

    Raises as `sartor.costs.store.opened`.
    """

    def __init__(self, path: Path | str, *, to_read: bool = False) -> None:
        self.path, self.to_read = Path(path), to_read
        self._tables = opened(self.path, _TABLES, to_read=to_read)

    def entries(self) -> list[Entry]:
        """Return all profiles, in the order in which they were begun."""
        if "profiles" not in self._tables:  # a store of samples, which is only read
            return []
        with self._connected() as database:
            rows = database.execute(
                "SELECT id, target, fingerprint, space, settings, record FROM profiles ORDER BY id"
            ).fetchall()
        return [
            Entry(number, target, *(json.loads(text or "null") for text in texts)) for number, target, *texts in rows
        ]

    def find(self, fingerprint: Mapping[str, str], space: Mapping[str, Any]) -> Entry | None:
        """Return the profile of exactly this fingerprint and space."""
        wanted = _place(fingerprint, space)
        return next((one for one in self.entries() if one._place == wanted), None)

    def source(self, entry: Entry) -> Entry | None:
        """Return the profile that one was adapted from, None if it was measured by itself; ValueError if it is gone."""
        if (entry.record or {}).get("source") is None:
            return None
        found = next((one for one in self.entries() if entry.came_from(one)), None)
        if found is None:
            raise ValueError(f"{self.path} lacks the profile that {entry.title} was adapted from: adapt it again")
        return found

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
        text = None if record is None else _json(record)
        with self._connected() as database:
            database.execute("UPDATE profiles SET record = ? WHERE id = ?", (text, entry.id))

    def remove(self, entry: Entry) -> None:
        """Forget a profile with its networks, and the operators of its device that no other profile needs.

        ValueError if another profile was adapted from it.
        """
        others = [one for one in self.entries() if one.id != entry.id]
        if adapted := [one.title for one in others if one.came_from(entry)]:
            raise ValueError(
                f"{self.path}: {adapted[0]} was adapted from {entry.title}, which therefore stays: "
                f"measure it again into another file"
            )
        free = self._operators_of(entry, others)
        with self._connected() as database:
            database.execute("DELETE FROM profiles WHERE id = ?", (entry.id,))
            for table in ("sessions", "networks"):
                database.execute(f"DELETE FROM {table} WHERE profile = ?", (entry.id,))
            place = _text(entry.fingerprint)
            rows = [(place, name) for name in free]
            database.executemany("DELETE FROM operators WHERE fingerprint = ? AND key = ?", rows)

    def _operators_of(self, entry: Entry, others: Sequence[Entry]) -> set[str]:
        """Return the keys of the entry's device that none of the others needs."""
        alike = [one for one in others if _text(one.fingerprint) == _text(entry.fingerprint)]
        kept = [(one.record or {}).get("operators") for one in alike]
        if any(keys is None for keys in kept):  # unfinished, or from before the record told: it may need any
            return set()
        return {*self.operators(entry.fingerprint)} - {name for keys in kept for name in keys or ()}

    def add_session(self, entry: Entry, kind: str, seconds: float, networks: Sequence[Measured]) -> None:
        """Store a session, whole.

        ValueError if a measurement says that it was taken under another fingerprint than the profile's, or if another
        process wrote to the profile meanwhile.
        """
        for one in networks:
            _check_fingerprint(entry.fingerprint, one.measurement)
        number = 1 + max((one.number for one in self.sessions(entry)), default=0)
        rows = [(entry.id, number, one.arch.to_json(), _measurement(one.measurement), one.reason) for one in networks]
        with self._adding() as database:
            database.execute("INSERT INTO sessions VALUES(?, ?, ?, ?)", (entry.id, number, kind, seconds))
            database.executemany("INSERT INTO networks VALUES(?, ?, ?, ?, ?)", rows)

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
        with self._adding() as database:
            database.execute("INSERT INTO sessions VALUES(?, ?, 'operators', ?)", (entry.id, number, seconds))
            # What another process stored meanwhile stays, so that all are at the level of one first session.
            database.executemany("INSERT OR IGNORE INTO operators VALUES(?, ?, ?, ?, ?)", rows)

    def operators(self, fingerprint: Mapping[str, str]) -> dict[str, float | None]:
        """Return the milliseconds of each operator by its key, None where the target refused it."""
        query = "SELECT key, ms FROM operators WHERE fingerprint = ? ORDER BY rowid"
        with self._connected() as database:
            return dict(database.execute(query, (_text(fingerprint),)).fetchall())

    def adopt(self, other: Ledger, theirs: Entry) -> Entry:
        """Copy a finished profile of another file, with all that it was made from, unless it is here already.

        It is copied whole or not at all. ValueError if it is here and unfinished.
        """
        if self.path.resolve() == other.path.resolve():
            return theirs
        if (found := self.find(theirs.fingerprint, theirs.space)) is not None:
            if found.record is None:
                raise ValueError(f"{self.path} has an unfinished profile of {theirs.title}: finish it, or name another")
            return found
        record = {"operators": other.operators(theirs.fingerprint), **(theirs.record or {})}
        parts = other._parts(theirs)
        texts = (theirs.target, *theirs._place, _text(theirs.settings), _json(record))
        with self._adding() as database:
            query = "INSERT INTO profiles(target, fingerprint, space, settings, record) VALUES(?, ?, ?, ?, ?)"
            number = database.execute(query, texts).lastrowid
            for name, rows in parts.items():
                own = rows if name == "operators" else [(number, *row[1:]) for row in rows]
                if own:
                    marks = ", ".join("?" * len(own[0]))
                    database.executemany(f"INSERT OR IGNORE INTO {name} VALUES({marks})", own)
        return next(one for one in self.entries() if one.id == number)

    def _parts(self, entry: Entry) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows that a profile was made from, by the names of their tables."""
        place = _text(entry.fingerprint)
        with self._connected() as database:
            return {
                "sessions": database.execute("SELECT * FROM sessions WHERE profile = ?", (entry.id,)).fetchall(),
                "networks": database.execute("SELECT * FROM networks WHERE profile = ?", (entry.id,)).fetchall(),
                "operators": database.execute("SELECT * FROM operators WHERE fingerprint = ?", (place,)).fetchall(),
            }

    @contextmanager
    def _adding(self) -> Iterator[sqlite3.Connection]:
        """A transaction whose rows are new; ValueError if another process has written them meanwhile."""
        try:
            with self._connected() as database:
                yield database
        except sqlite3.IntegrityError:
            raise ValueError(f"another process writes to {self.path}: let it finish, or name another file") from None

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end of the block, dropped by an error."""
        with connected(self.path, to_read=self.to_read) as database:
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


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False)  # in the order of its keys: operators are fitted in this order


def _place(fingerprint: Mapping[str, str], space: Mapping[str, Any]) -> tuple[str, str]:
    return _text(fingerprint), _text(space)


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
