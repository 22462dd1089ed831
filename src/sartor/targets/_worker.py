# SPDX-License-Identifier: Apache-2.0
"""The process in which an agent runs models: they may crash it, fill its memory or hang it.

It speaks frames with the agent that started it, as the agent does with its client, and ends with the agent.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np

from sartor.targets._protocol import Message, clean, frame, ids_below, number, private_stdout, read, shape, whole
from sartor.targets._runtimes import RUNTIMES, reason
from sartor.targets.energy import Energy, MeterError, energies, rapl
from sartor.targets.machine import Neighbours, growth, processor
from sartor.targets.timing import Timing, rounds

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class Worker:
    """Models that are loaded, and what was measured of them."""

    def __init__(self, runtime: Any, threads: int) -> None:
        self._runtime, self._threads = runtime, threads
        self._calls: list[Callable[[], object]] = []
        self._timings: list[Timing] = []
        self._probed = False
        self._energies: Sequence[Energy | None] = ()

    def answer(self, message: Message) -> Message:
        """Return the answer to one request; whatever a model raises is passed on."""
        match message.get("do"):
            case "probe":
                return self._probe(Path(message["path"]), shape(message, "shape"), ids_below(message))
            case "load":
                self._calls.append(self._first(Path(message["path"]), shape(message, "shape"), ids_below(message)))
                return {}
            case "rounds":
                return self._rounds(number(message, "seconds", 1e-3, 1e6), whole(message, "seed", 0, 2**63))
            case _:
                return self._result(whole(message, "index", 0, len(self._timings) - 1))

    def _first(self, path: Path, sizes: Sequence[int], below: int) -> Callable[[], object]:
        call: Callable[[], object] = self._runtime.load(path, sizes, below)
        call()
        return call

    def _probe(self, path: Path, sizes: Sequence[int], below: int) -> Message:
        """Load a model, run it and let it go; tell its memory and how long a call takes."""
        if not self._probed:
            self._first(path, sizes, below)  # a runtime's own first-time memory is nobody's
            self._probed = True
        with growth() as grown:
            call = self._first(path, sizes, below)
        start = perf_counter()
        call()
        return {"memory_mb": grown.mb, "call_s": perf_counter() - start}

    def _rounds(self, seconds: float, seed: int) -> Message:
        with Neighbours() as others:
            self._timings = rounds(self._calls, budget_s=seconds * max(1, len(self._calls)), seed=seed)
        notes: list[str] = []
        self._energies = [None] * len(self._calls)
        try:
            meter = rapl() if self._calls else None
            if meter is not None:
                latencies = [float(np.median(one.seconds)) for one in self._timings]
                self._energies = energies(self._calls, latencies, meter, seed=seed)
        except MeterError as error:
            notes.append(f"energy not measured: {error}")
        return {"doubts": list(others.notes(self._threads)), "notes": notes}

    def _result(self, index: int) -> Message:
        timing, energy = self._timings[index], self._energies[index]
        return {
            "seconds": np.round(timing.seconds, 10).tolist(), "calibration": [timing.calibration.tolist()],
            "cold": timing.cold, "repeats": timing.repeats, "settled": timing.settled,
            "energy": energy and asdict(energy),
        }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Serve until the input ends. The arguments: runtime, threads, and megabytes of memory or 0 for no limit."""
    out = private_stdout()
    _end_with_parent()
    name, threads, memory_mb = arguments[0], int(arguments[1]), float(arguments[2])
    try:
        runtime = RUNTIMES[name](threads)
    except Exception as error:
        said = clean(str(error))
        _say(out, {"error": f"the device cannot load its runtime ({said}): pip install {name} there"})
        return 1
    limited = memory_mb > 0 and _limit_memory(memory_mb)
    _say(out, {"fingerprint": {**processor(), **runtime.fingerprint()}, "limited": limited})
    worker = Worker(runtime, threads)
    while True:
        try:
            message = read(sys.stdin.buffer)
        except EOFError:
            return 0
        try:
            reply = worker.answer(message)
        except Exception as error:  # MemoryError, too: the limit makes allocations fail
            place = str(message.get("path", ""))
            reply = {"error": clean(reason(error).replace(place, "the model") if place else reason(error))}
        _say(out, reply)


def _say(out: BinaryIO, message: Message) -> None:
    out.write(frame(message))
    out.flush()


def _end_with_parent() -> None:
    """Ask Linux to kill this process when the agent dies, as a model that hangs reads no input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _limit_memory(megabytes: float) -> bool:
    """Let allocations fail beyond `megabytes` more than now; False where the system has no such limit."""
    import resource

    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    used = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")]
    if used:
        most = int(used[0] + megabytes * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return bool(used)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
