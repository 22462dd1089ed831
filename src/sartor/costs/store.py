# SPDX-License-Identifier: Apache-2.0
"""The one home of measured costs: a SQLite file (`.costs`), keyed by architecture and target fingerprint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType

from sartor.architecture import Architecture
from sartor.protocols import Measurement

__all__ = ["CostStore", "connected", "opened"]

FORMAT = "1"
TIMEOUT_S = 60.0  # of waiting for another process, whose transactions take milliseconds

_TABLES = {
    "meta": "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT)",
    "samples": "CREATE TABLE IF NOT EXISTS samples("
    "arch_id TEXT, arch TEXT, fingerprint TEXT, measurement TEXT, UNIQUE(arch_id, fingerprint))",
}


class CostStore:
    """Measurements of networks in a file; several devices may share one, and are never mixed.

    Raises as `opened`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        opened(path)

    def add(self, fingerprint: Mapping[str, str], measured: Sequence[tuple[Architecture, Measurement]]) -> None:
        """Store all measurements of one session in one transaction; a network measured again is replaced."""
        rows = [
            (arch.id, arch.to_json(), _key(fingerprint), json.dumps(measurement.to_dict()))
            for arch, measurement in measured
        ]
        with connected(self.path) as database:
            database.executemany("INSERT OR REPLACE INTO samples VALUES(?, ?, ?, ?)", rows)

    def samples(self, fingerprint: Mapping[str, str]) -> list[tuple[Architecture, Measurement]]:
        """What was measured under exactly this fingerprint, in the order of storing."""
        query = "SELECT arch, measurement FROM samples WHERE fingerprint = ? ORDER BY rowid"
        with connected(self.path) as database:
            rows = database.execute(query, (_key(fingerprint),)).fetchall()
        return [(Architecture.from_json(arch), Measurement.from_dict(json.loads(text))) for arch, text in rows]


def opened(path: Path, tables: Mapping[str, str] = MappingProxyType({}), *, to_read: bool = False) -> set[str]:
    """Check that a file is a cost store, and return the names of its tables and indices.

    A file that is new or empty becomes one, and of `tables`, name -> statement of SQL, the lacking ones are made; but
    `to_read` changes nothing. Raises ValueError for a file that is no cost store or of a newer format, and as
    `connected`.
    """
    with connected(path, to_read=to_read) as database:
        found = _names(database)
        if found:
            _check(path, database, found)
        elif to_read:
            raise ValueError(f"{path} is no cost store (it is empty); name another file")
        lacking = [statement for name, statement in {**_TABLES, **tables}.items() if name not in found]
        if to_read or not lacking:
            return found
        database.execute("BEGIN IMMEDIATE")  # whole or not at all, whatever another process makes meanwhile
        for statement in lacking:
            database.execute(statement)
        database.execute("INSERT OR IGNORE INTO meta VALUES('format', ?)", (FORMAT,))
        return _names(database)


def _check(path: Path, database: sqlite3.Connection, names: set[str]) -> None:
    if not names >= _TABLES.keys():  # a log of trials has `meta` too, and a format
        raise ValueError(f"{path} is no cost store (it is a database of something else); name another file")
    (found,) = database.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() or (None,)
    if found is None:
        raise ValueError(f"{path} is no cost store (it states no format); name another file")
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, and this version reads {FORMAT}: upgrade sartor")


def _names(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


@contextmanager
def connected(path: Path, *, to_read: bool = False) -> Iterator[sqlite3.Connection]:
    """One transaction on a file: committed at the end of the block, dropped by an error.

    Raises:
        BlockingIOError: another process uses the file, and does not let go.
        PermissionError: the file, or its folder, cannot be read or written.
        OSError: neither can the disk, or it is full.
        ValueError: the file is no database, or a damaged one.
        sqlite3.IntegrityError: what is stored is there already.
    """
    place = f"{path.absolute().as_uri()}?mode={'ro' if to_read else 'rwc'}"
    try:
        with closing(sqlite3.connect(place, uri=True, timeout=TIMEOUT_S)) as database, database:
            yield database
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise _explained(path, error, "read" if to_read else "written") from None


def _explained(path: Path, error: sqlite3.Error, verb: str) -> Exception:
    """Return what went wrong in words; a good file is never called a bad one."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return ValueError(f"{path}: what wrote to it was killed; start the same `sartor profile` again, it mends it")
    primary = code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BlockingIOError(f"another process uses {path}: let it finish, or name another file")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return PermissionError(f"{path} cannot be {verb} ({error}): look at the permissions of it and of its folder")
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM):
        return OSError(f"{path} cannot be {verb} ({error}): look at its disk")
    return ValueError(f"{path} is no cost store ({error}); name another file")


def _key(fingerprint: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(fingerprint.items())))
