# SPDX-License-Identifier: Apache-2.0
"""The folder of one run: its record, its lock, its stages, its logs and checkpoints."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sartor import checkpoint
from sartor.atomic import write_bytes, write_json

__all__ = ["Run"]

FORMAT = 1
_RECORD = "run.json"
_LOCK = "run.lock"


class Run:
    """A run folder, held by this process until `close` or the end of the process, however that comes.

    Opened by `create` or `open`; a context manager. `path` is the folder and `record` what `run.json` says;
    `update` changes it.
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: int | None) -> None:
        self.path = path
        self.record = record
        self._lock = lock
        if lock is not None:  # a forked worker that outlives a killed driver must not keep the folder locked
            run = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _abandon(run()))

    @classmethod
    def create(cls, path: Path | str, record: Mapping[str, Any], *, force: bool = False, resume: bool = False) -> Run:
        """Start a run in `path`, which is made if need be and otherwise must be empty.

        Args:
            path: the run folder.
            record: what `run.json` says beside format, creation time and stages: arguments, seed, plan ...
            force: replace a run that is there.
            resume: open a run that is there; its own record holds, not `record`.

        Raises:
            FileExistsError: `path` holds a run and neither was asked for, or other files, whatever was asked.
            BlockingIOError: another process holds the run.
            ValueError: force and resume at once, or as `open`.
            OSError: it cannot be written.
        """
        path = Path(path)
        if force and resume:
            raise ValueError("force replaces a run and resume continues it: choose one")
        if (path / _RECORD).exists() and not (force or resume):
            raise FileExistsError(f"{path} holds a run: continue it with --resume or replace it with --force")
        if (path / _RECORD).exists() and resume:
            return cls.open(path)
        if (path / _RECORD).exists():
            _remove(path)
        elif path.is_dir() and any(not _is_ours(file.name) for file in path.iterdir()):
            raise FileExistsError(f"{path} holds files that are no run's: choose an empty or a new folder")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {}, _locked(path))
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            run.update({"format": FORMAT, "created": created, **record, "stages": {}})
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str, *, lock: bool = True) -> Run:
        """Open the run in `path`; without `lock` only to read, also while another process works on it.

        Raises:
            FileNotFoundError: no run is there.
            BlockingIOError: another process holds the run.
            ValueError: run.json is broken, or of a newer format.
        """
        path = Path(path)
        if not (path / _RECORD).is_file():
            raise FileNotFoundError(f"no run in {path}: it has no {_RECORD}; give the folder of a search")
        held = _locked(path) if lock else None
        try:
            return cls(path, _read(path / _RECORD), held)
        except BaseException:
            if held is not None:
                os.close(held)
            raise

    def close(self) -> None:
        """Let other processes have the run."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, changes: Mapping[str, Any]) -> None:
        """Set top-level entries of the record, on disk first.

        Raises:
            ValueError: the run was opened to read or is closed.
            OSError: run.json cannot be written; it and the record are as before.
        """
        self._check_held()
        record = {**self.record, **changes}
        write_json(self.path / _RECORD, record)
        self.record = record

    @property
    def stages(self) -> Mapping[str, float]:
        """The finished stages and the seconds each took, in all its attempts."""
        stages: dict[str, float] = self.record["stages"]
        return stages

    @property
    def spent_s(self) -> float:
        """Seconds of all stages and all their attempts, but for those of killed processes."""
        return float(sum(self.stages.values()) + sum(self.record.get("unfinished", {}).values()))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as a stage of the run, which is finished when the block ends without an error.

        Time spent in attempts that raised counts, and so does that of a finished stage that is entered
        again, as by a resume; that of a killed process is lost.
        """
        self._check_held()
        start = time.monotonic()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be full, and then that is the error to tell
                unfinished = self.record.get("unfinished", {})
                self.update({"unfinished": {**unfinished, name: self._spent("unfinished", name, start)}})
            raise
        unfinished = dict(self.record.get("unfinished", {}))
        seconds = self._spent("stages", name, start) + unfinished.pop(name, 0.0)
        self.update({"stages": {**self.stages, name: round(seconds, 3)}, "unfinished": unfinished})

    @contextlib.contextmanager
    def log(self, stage: str = "train", *, after: int = 0) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Give the function that appends a line to `<stage>.jsonl`; each line has a "step".

        What the file says of steps later than `after` is dropped first, as a resumed run goes through them
        again, and so is a line that was cut short. A kill between two calls loses no line.
        """
        self._check_held()
        path = self.path / f"{_plain(stage)}.jsonl"
        if path.exists():
            text = path.read_bytes()
            kept = b"".join(line for line in text.splitlines(keepends=True) if _is_until(line, after))
            if kept != text:
                write_bytes(path, kept)
        with path.open("ab", buffering=0) as file:
            yield lambda line: _append(file, json.dumps(line, allow_nan=False).encode() + b"\n")

    def save_checkpoint(self, step: int, state: Mapping[str, Any], stage: str = "train") -> None:
        """Keep the state after `step` steps of a stage, and the one before it; as `checkpoint.save`."""
        self._check_held()
        checkpoint.save(self._checkpoints(stage), step, state)

    def load_checkpoint(self, stage: str = "train") -> tuple[int, dict[str, Any]] | None:
        """Return step and state of a stage's newest whole checkpoint, or None; as `load_newest`."""
        return checkpoint.load_newest(self._checkpoints(stage))

    def _checkpoints(self, stage: str) -> Path:
        folder = self.path / "checkpoint"
        return folder if stage == "train" else folder / _plain(stage)

    def _spent(self, where: str, name: str, start: float) -> float:
        earlier: float = self.record.get(where, {}).get(name, 0.0)
        return round(earlier + time.monotonic() - start, 3)

    def _check_held(self) -> None:
        if self._lock is None:
            raise ValueError(f"the run in {self.path} is closed or open only to read: open it with its lock")


def _locked(path: Path) -> int:
    """Lock the folder for this process and return the file descriptor that holds the lock.

    The kernel drops the lock with the process, so a kill leaves nothing to clean up.
    """
    held = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(held, 32, 0).decode(errors="replace").strip()
        os.close(held)
        by = f"process {owner}" if owner else "another process"
        reason = f"the run in {path} is in use by {by}: wait for it or stop it"
        raise BlockingIOError(error.errno, reason) from None
    os.ftruncate(held, 0)
    os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
    return held


def _abandon(run: Run | None) -> None:
    """Close a forked child's copy of the lock, which stays with the parent."""
    if run is not None and run._lock is not None:
        os.close(run._lock)
        run._lock = None


def _remove(path: Path) -> None:
    """Remove a run that nobody holds. It is renamed first, so that no half of it ever looks like a run."""
    held = _locked(path)
    try:
        doomed = path.resolve().with_name(f".{path.resolve().name}.{os.getpid()}.removed")
        os.rename(path.resolve(), doomed)
        shutil.rmtree(doomed)
    finally:
        os.close(held)


def _is_ours(name: str) -> bool:
    """Whether a start that was killed before it wrote its record can have left this file."""
    return name in (_LOCK, f"{_RECORD}.tmp")


def _is_until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, LookupError, TypeError):
        return False


def _append(file: FileIO, line: bytes) -> None:
    try:
        written = file.write(line)
        reason = "" if written == len(line) else "no space left on the device"
    except OSError as error:
        raise OSError(error.errno, f"cannot write {file.name}: {error.strerror}") from error
    if reason:
        raise OSError(errno.ENOSPC, f"cannot write {file.name}: {reason}")


def _plain(stage: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", stage):
        raise ValueError(f"stage {stage!r} names files: use lower-case letters, digits, - and _")
    return stage


def _read(path: Path) -> dict[str, Any]:
    remedy = "start the run again with --force"
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}): {remedy}") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise ValueError(f"{path} is no run's record, as it names no format: {remedy}")
    if record["format"] > FORMAT:
        found = record["format"]
        raise ValueError(f"{path} has format {found}, and this version reads {FORMAT}: upgrade sartor")
    if not isinstance(record.get("stages"), dict):
        raise ValueError(f"{path} lists no stages: {remedy}")
    return record
