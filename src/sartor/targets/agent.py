# SPDX-License-Identifier: Apache-2.0
"""The agent of a remote target: measures ONNX files on the device it runs on, asked over standard input.

    ssh board python -m sartor.targets.agent

It opens no port, runs nothing but ONNX models, and needs no torch: numpy and a runtime do. Models run in a
process of their own, with limits on time and memory; one that crashes or hangs is refused, and the rest goes on.
Whoever may start it may use the device's processor within the limits below, and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sartor.targets._onnx_file import reason_against
from sartor.targets._peer import Inbox, Lost, Peer
from sartor.targets._protocol import (
    CHUNK,
    GREETING,
    Message,
    ProtocolError,
    clean,
    frame,
    ids_below,
    number,
    private_stdout,
    shape,
    text,
    whole,
)

__all__ = ["Agent", "Limits", "main"]

RUNTIMES = ("onnxruntime", "openvino")
"""What `--runtime` may name; without it, the first that is installed."""

BEAT_S = 2.0  # between signs of life while a model runs
_CALLS = 90  # of a model in the shortest measurement: warm-up and 6 rounds of 10 runs
_START_S = 120.0  # for a runtime to be imported, on a slow device


@dataclass(frozen=True)
class Limits:
    """What one client may use: networks, megabytes of them all, seconds for each, megabytes of memory.

    `memory_mb` is what models may allocate, all together; 0 for no limit. After `idle_s` seconds without a
    request the agent ends.
    """

    networks: int = 256
    size_mb: float = 500.0
    seconds: float = 120.0
    memory_mb: float = 0.0
    idle_s: float = 600.0


class Refused(Exception):
    """A request that is not granted; the message is the answer."""


class Gone(Exception):
    """The client has closed the connection."""


@dataclass
class _Model:
    path: Path
    shape: tuple[int, ...]
    left: int
    """Bytes still to come."""
    ids_below: int = 0
    """What the token ids of its input are below; 0 for an input of floats."""
    reason: str = ""
    """Why it is not measured."""
    memory_mb: float | None = None


@dataclass
class Agent:
    """Answers the requests in `inbox` on `out`; models are kept in `folder`, and run by `worker` commands.

    `worker` returns the command of the process that runs models, for a number of threads.
    """

    inbox: Inbox
    out: BinaryIO
    folder: Path
    worker: Callable[[int], Sequence[str]]
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _models: list[_Model] = field(default_factory=list, init=False)
    _measured: list[_Model] = field(default_factory=list, init=False)
    _process: Peer | None = field(default=None, init=False)

    def serve(self) -> int:
        """Answer until the client goes (0), or says what cannot be understood, or nothing for too long (1)."""
        try:
            while True:
                message = self.inbox.get(self.limits.idle_s)
                try:
                    reply = self._answer(message)
                except (Refused, ProtocolError, Lost) as error:
                    reply = {"error": clean(str(error))}
                self._say(reply)
        except (EOFError, Gone):
            return 0
        except ProtocolError as error:  # where the next frame begins is not known
            self._say({"error": clean(str(error))})
            return 1
        except TimeoutError:
            self._say({"error": f"nothing was asked for {self.limits.idle_s:g} s"})
            return 1
        finally:
            self._end_worker()

    def _answer(self, message: Message) -> Message:
        match message.get("do"):
            case "describe":
                return self._describe(whole(message, "threads", 1, 1024))
            case "model":
                return self._announce(whole(message, "bytes", 1, 2**40), shape(message, "shape"), ids_below(message))
            case "data":
                return self._receive(text_bytes(message))
            case "measure":
                return self._measure(message)
            case "result":
                index = whole(message, "index", 0, len(self._measured) - 1)
                result = self._ask({"do": "result", "index": index}, self.clock() + self.limits.seconds)
                return {**result, "memory_mb": self._measured[index].memory_mb}
        raise Refused("this agent answers describe, model, data, measure and result")

    def _describe(self, threads: int) -> Message:
        hello = self._start_worker(threads, self.clock() + _START_S)
        return {"fingerprint": hello.get("fingerprint"), "seconds": self.limits.seconds}

    def _announce(self, count: int, sizes: tuple[int, ...], below: int) -> Message:
        """Make room for a model."""
        if self._models and self._models[-1].left:
            raise Refused("the model before is not complete")
        if len(self._models) >= self.limits.networks:
            raise Refused(f"{self.limits.networks} networks are the limit of this agent")
        total = count + sum(model.path.stat().st_size for model in self._models)
        if total > self.limits.size_mb * 1e6:
            raise Refused(f"{total / 1e6:.1f} MB of networks exceed the agent's limit of {self.limits.size_mb:g} MB")
        model = _Model(self.folder / f"{len(self._models)}.onnx", sizes, count, below)
        model.path.touch()
        self._models.append(model)
        return {"index": len(self._models) - 1}

    def _receive(self, data: bytes) -> Message:
        """Append to the last model; once it is whole, look into it."""
        model = self._models[-1] if self._models else None
        if model is None or len(data) > model.left:
            raise Refused("more data than was announced")
        try:
            with model.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise Refused(f"the device cannot store it: {error.strerror}") from None
        model.left -= len(data)
        if not model.left:
            model.reason = reason_against(model.path)
        return {"left": model.left}

    def _measure(self, message: Message) -> Message:
        """Run each model alone first, in a process that it may ruin, and then all that ran, together."""
        if not self._models or self._models[-1].left:
            raise Refused("there is no complete model to measure")
        threads, seconds = whole(message, "threads", 1, 1024), number(message, "seconds", 1e-3, 1e4)
        seed = whole(message, "seed", 0, 2**63)
        limit = min(self.limits.seconds, number(message, "limit", 1e-3, 1e6))
        deadline = self.clock() + limit * (len(self._models) + 1)
        for model in self._models:
            if not model.reason:
                model.reason = self._probed(model, threads, limit, deadline)
        told: Message = {}
        self._measured = [model for model in self._models if not model.reason]
        if self._measured:
            told = self._together(threads, deadline, {"do": "rounds", "seconds": seconds, "seed": seed})
        return {
            "reasons": [model.reason for model in self._models],
            "doubts": told.get("doubts", []), "notes": told.get("notes", []),
        }  # fmt: skip

    def _probed(self, model: _Model, threads: int, limit: float, deadline: float) -> str:
        """Return why a model does not run, or ""."""
        if self.clock() >= deadline:
            return "no time was left for it"
        try:
            if self._process is None:
                self._start_worker(threads, min(deadline, self.clock() + _START_S))
            found = self._ask(_request("probe", model), min(deadline, self.clock() + limit))
            model.memory_mb = number(found, "memory_mb", 0, 1e9) if found.get("memory_mb") is not None else None
            call_s = number(found, "call_s", 0, 1e6)
        except (Refused, Lost, ProtocolError) as error:
            return clean(str(error))
        if call_s * _CALLS > limit:
            return f"it takes {call_s:.3g} s, and {_CALLS} times that exceeds the limit of {limit:g} s"
        return ""

    def _together(self, threads: int, deadline: float, rounds: Message) -> Message:
        """Load all models that ran alone, time them in rounds, and return the worker's answer."""
        while self._measured:
            self._start_worker(threads, deadline)
            for model in self._measured:
                try:
                    self._ask(_request("load", model), deadline)
                except (Refused, Lost) as error:
                    model.reason = f"it does not run beside the others: {clean(str(error))}"
            self._measured = [model for model in self._measured if not model.reason]
            if self._process is None or not self._measured:  # one has taken the others with it
                continue
            try:
                return self._ask(rounds, deadline)
            except (Refused, Lost) as error:
                for model in self._measured:
                    model.reason = f"the measurement failed: {clean(str(error))}"
                self._measured = []
        return {}

    def _start_worker(self, threads: int, deadline: float) -> Message:
        self._end_worker()
        count = str(threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        try:
            self._process = Peer(self.worker(threads), environment={**os.environ, **dict.fromkeys(names, count)})
        except OSError as error:
            raise Refused(f"the device cannot start a process: {error.strerror}") from None
        return self._answered(deadline)

    def _end_worker(self) -> None:
        if self._process is not None:
            self._process.close(kill=True)
        self._process = None

    def _ask(self, request: Mapping[str, object], deadline: float) -> Message:
        """Ask the worker. Refused with the reason it gives, or Lost, and then it is gone."""
        if self._process is None:
            raise Refused("nothing was measured")
        self._process.send(request, BEAT_S)
        return self._answered(deadline)

    def _answered(self, deadline: float) -> Message:
        """Wait for the worker, and tell the client meanwhile that we do."""
        assert self._process is not None
        start = self.clock()
        try:
            while True:
                left = deadline - self.clock()
                if left <= 0:
                    raise Lost(f"it took longer than {deadline - start:.3g} s and was stopped")
                try:
                    reply = self._process.receive(min(BEAT_S, left))
                    break
                except TimeoutError:
                    self._say({"working": True})
                    if self.inbox.ended:
                        raise Gone from None
        except (Lost, ProtocolError) as error:
            self._end_worker()
            raise Lost(f"its process failed: {error}") from None
        if "error" in reply:
            raise Refused(text(reply, "error"))
        return reply

    def _say(self, message: Mapping[str, object]) -> None:
        try:
            self.out.write(frame(message))
            self.out.flush()
        except OSError:
            raise Gone from None


def text_bytes(message: Message) -> bytes:
    """Return the bytes in the field `data`, which are in base 64."""
    data = message.get("data")
    try:
        found = base64.b64decode(data, validate=True) if isinstance(data, str) else b""
    except ValueError:
        found = b""
    if not 0 < len(found) <= CHUNK:
        raise ProtocolError(f"its 'data' is not base 64 of 1 to {CHUNK} bytes")
    return found


def _request(do: str, model: _Model) -> Message:
    return {"do": do, "path": str(model.path), "shape": list(model.shape), "ids_below": model.ids_below}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `python -m sartor.targets.agent`; return its exit code."""
    given = _parser().parse_args(arguments)
    out = private_stdout()
    for name in ("SIGTERM", "SIGHUP"):  # so that folder and process are not left behind
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
    limits = Limits(given.networks, given.size, given.seconds, given.memory, given.idle)

    def worker(threads: int) -> Sequence[str]:
        return [sys.executable, "-m", "sartor.targets._worker", given.runtime, str(threads), str(limits.memory_mb)]

    stdin = os.fdopen(os.dup(0), "rb")
    with tempfile.TemporaryDirectory(prefix="sartor-") as folder:
        out.write(GREETING)
        out.flush()
        return Agent(Inbox(stdin), out, Path(folder), worker, limits).serve()


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m sartor.targets.agent",
        description="Measure ONNX networks on this device, for a client at the other end of standard input and "
        "output: give `remote:ssh DEVICE python -m sartor.targets.agent` as a target there.",
    )
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]
    default = [*installed, RUNTIMES[0]][0]
    add = parser.add_argument
    add("--runtime", choices=RUNTIMES, default=default, help="what runs the networks (default here: %(default)s)")
    add("--networks", type=int, default=limits.networks, help="most networks in one measurement (%(default)s)")
    add("--size", type=float, default=limits.size_mb, metavar="MB", help="of them all together (%(default)g)")
    add("--seconds", type=float, default=limits.seconds, metavar="S", help="longest for a network (%(default)g)")
    add(
        "--memory", type=float, default=_memory_mb(), metavar="MB", help="that networks may take (%(default).0f; Linux)"
    )
    add("--idle", type=float, default=limits.idle_s, metavar="S", help="after which to end (%(default)g)")
    return parser


def _memory_mb() -> float:
    """Return three quarters of the memory that is free, in megabytes; 0 where that is not known."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    free = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable:")]
    return 0.75 * free[0] if free else 0.0


if __name__ == "__main__":
    sys.exit(main())
