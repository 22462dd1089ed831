# SPDX-License-Identifier: Apache-2.0
"""The two ends of a conversation in frames: what comes in, and a process that is spoken to.

Reading and writing each have a thread of their own, as no other way of waiting for a pipe with a time limit
works on every system. The queues between are short, so that a flood waits in the pipe and not in our memory.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, cast

from sartor.targets._protocol import Message, ProtocolError, clean, frame, read

__all__ = ["Inbox", "Lost", "Peer"]

_QUEUED = 4  # frames that wait in memory
_NOISE = 2**16  # bytes that may come before the greeting
_TAIL = 4096  # bytes of standard error that are kept
_PATIENCE_S = 2.0  # for a process to end by itself, and again after it was told to


class Lost(Exception):
    """The other side ended, or takes nothing in; the message says so, with what it wrote last."""


class Inbox:
    """The frames of `stream`, after `greeting` if there is one."""

    def __init__(self, stream: BinaryIO, greeting: bytes = b"") -> None:
        self.ended = False
        self._stream, self._greeting = stream, greeting
        self._queue: queue.Queue[Message | Exception] = queue.Queue(_QUEUED)
        self._last: Exception | None = None
        self._closed = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def get(self, timeout_s: float) -> Message:
        """Return the next message.

        Raises:
            TimeoutError: none came in time.
            EOFError: the stream has ended.
            ProtocolError: what came is no message; the stream is of no use from then on.
        """
        if self._last is None:
            try:
                item = self._queue.get(timeout=max(0.0, timeout_s))
            except queue.Empty:
                raise TimeoutError from None
            if isinstance(item, dict):
                return item
            self._last = item
        raise self._last

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _read(self) -> None:
        try:
            self._skip_noise()
            while self._put(read(self._stream)):
                pass
        except ProtocolError as error:
            self._put(error)
        except (EOFError, OSError, ValueError):  # ValueError: the stream was closed
            self.ended = True
            self._put(EOFError())

    def _skip_noise(self) -> None:
        seen = bytearray(b"\n")
        while self._greeting and not seen.endswith(self._greeting):
            byte = self._stream.read(1)
            if not byte:
                raise EOFError
            seen += byte
            if len(seen) > _NOISE:
                line = clean(seen.decode(errors="replace"))[:60]
                raise ProtocolError(f"it is no agent of this version; it says {line!r}")

    def _put(self, item: Message | Exception) -> bool:
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False


class Peer:
    """A process whose standard input and output carry frames, with what it answers after `greeting`.

    It is started at once, in a session of its own, without a shell. OSError if the command cannot be run.
    """

    def __init__(
        self, command: Sequence[str], *, greeting: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        self._inbox = Inbox(cast(BinaryIO, self._process.stdout), greeting)
        self._outbox: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._said = b""
        self._threads = [threading.Thread(target=job, daemon=True) for job in (self._write, self._listen)]
        for thread in self._threads:
            thread.start()

    def send(self, message: Mapping[str, object], timeout_s: float) -> None:
        """Hand over a message; Lost if the process takes nothing in for `timeout_s` seconds."""
        try:
            self._outbox.put(frame(message), timeout=max(0.0, timeout_s))
        except queue.Full:
            raise Lost(f"it took nothing in for {timeout_s:.3g} s") from None

    def receive(self, timeout_s: float) -> Message:
        """Return the next message; TimeoutError if none comes in time, Lost at the end, or ProtocolError."""
        try:
            return self._inbox.get(timeout_s)
        except EOFError:
            raise Lost(self._ending()) from None

    def close(self, *, kill: bool = False) -> None:
        """End the process and its children: by the end of its input, or by force with `kill` or if that fails."""
        self._inbox.close()
        with suppress(queue.Full):
            self._outbox.put(None, timeout=0.0 if kill else _PATIENCE_S)
        if not (not kill and self._has_ended(_PATIENCE_S)):
            self._signal(signal.SIGTERM)  # lets an agent remove its files
            self._has_ended(_PATIENCE_S)
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))  # children that stayed behind, too
        self._process.wait()
        with suppress(queue.Full):
            self._outbox.put_nowait(None)
        for thread in (self._inbox.thread, *self._threads):
            thread.join(timeout=_PATIENCE_S)
        if not self._inbox.thread.is_alive() and not self._threads[1].is_alive():
            for stream in (self._process.stdout, self._process.stderr):
                cast(BinaryIO, stream).close()

    def _has_ended(self, patience_s: float) -> bool:
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def _ending(self) -> str:
        """Return how the process ended, and the last line that it wrote to standard error."""
        if not self._has_ended(_PATIENCE_S):
            return "it closed its output"
        self._threads[1].join(timeout=_PATIENCE_S)
        code = self._process.returncode
        how = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        with suppress(ValueError):  # signals without a name
            how = f"it was killed by {signal.Signals(-code).name}"
        lines = [line for line in map(clean, self._said.decode(errors="replace").splitlines()) if line]
        return f"{how} ({lines[-1][:200]})" if lines else how

    def _write(self) -> None:
        stream, broken = cast(BinaryIO, self._process.stdin), False
        while (data := self._outbox.get()) is not None:
            try:
                if not broken:
                    stream.write(data)
                    stream.flush()
            except OSError:  # it has ended, which the reader will say
                broken = True
        with suppress(OSError):
            stream.close()

    def _listen(self) -> None:
        stream = cast(BinaryIO, self._process.stderr)
        while data := stream.read1(_TAIL):  # type: ignore[attr-defined]
            self._said = (self._said + data)[-_TAIL:]
