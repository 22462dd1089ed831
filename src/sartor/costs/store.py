"""The one home of measured costs: a SQLite file (`.costs`), keyed by architecture and target fingerprint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sartor.architecture import Architecture
from sartor.protocols import Measurement

__all__ = ["CostStore"]

FORMAT = "1"


class CostStore:
    """Measurements of networks in a file; several devices may share one, and are never mixed.

    Raises ValueError for a file that is no cost store or of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with self._connected() as database:
                database.execute("CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT)")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS samples(arch_id TEXT, arch TEXT, fingerprint TEXT, "
                    "measurement TEXT, UNIQUE(arch_id, fingerprint))"
                )
                database.execute("INSERT OR IGNORE INTO meta VALUES('format', ?)", (FORMAT,))
                (found,) = database.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is no cost store ({error}); name another file or remove it") from None
        if found != FORMAT:
            raise ValueError(f"{path} has format {found}, and this version reads {FORMAT}: upgrade sartor")

    def add(self, fingerprint: Mapping[str, str], measured: Sequence[tuple[Architecture, Measurement]]) -> None:
        """Store all measurements of one session in one transaction; a network measured again is replaced."""
        rows = [
            (arch.id, arch.to_json(), _key(fingerprint), json.dumps(measurement.to_dict()))
            for arch, measurement in measured
        ]
        with self._connected() as database:
            database.executemany("INSERT OR REPLACE INTO samples VALUES(?, ?, ?, ?)", rows)

    def samples(self, fingerprint: Mapping[str, str]) -> list[tuple[Architecture, Measurement]]:
        """What was measured under exactly this fingerprint, in the order of storing."""
        query = "SELECT arch, measurement FROM samples WHERE fingerprint = ? ORDER BY rowid"
        with self._connected() as database:
            rows = database.execute(query, (_key(fingerprint),)).fetchall()
        return [(Architecture.from_json(arch), Measurement.from_dict(json.loads(text))) for arch, text in rows]

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end of the block, dropped by an error."""
        with closing(sqlite3.connect(self.path)) as database, database:
            yield database


def _key(fingerprint: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(fingerprint.items())))
