# SPDX-License-Identifier: Apache-2.0
"""Target: another machine, reached by a command that starts the agent there.

`remote:ssh board python -m sartor.targets.agent` runs ONNX files on the board, in float32; `remote:int8:...` quantised
ones. The command is run as it is, without a shell. Whatever the other side says is checked before it is believed.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from sartor.protocols import Artefact, Measurement
from sartor.targets._command import INT8, PREFIX, command_of
from sartor.targets._peer import Lost, Peer
from sartor.targets._protocol import CHUNK, GREETING, Message, ProtocolError, clean, number, rows, text, texts, whole
from sartor.targets.artefacts import Run, TargetError, check_threads, measurement
from sartor.targets.energy import Energy
from sartor.targets.fingerprint import differences, of_artefact
from sartor.targets.timing import FEWEST_ROUNDS, MOST_ROUNDS, Timing

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["RemoteTarget", "from_text"]

_MOST_BEATS = 100_000  # signs of life in one answer; an agent gives one every 2 s
_MOST_RUNS = 100
_NEEDED = ("processor", "cores", "system", "runtime", "version", "threads")
_MOST_ENTRIES = 64

_Result = TypeVar("_Result")


class _Declined(Exception):
    """The agent is in order, and says that it cannot do it."""


def from_text(text: str, threads: int = 1) -> RemoteTarget:
    """Return the target that ``remote:COMMAND`` or ``remote:int8:COMMAND`` names; nothing is run yet."""
    precision, _ = command_of(text)
    return RemoteTarget(text.removeprefix(PREFIX).removeprefix(INT8), precision, threads=threads)


@dataclass
class RemoteTarget:
    """The machine on which `command` starts `sartor.targets.agent`, for ONNX files on `threads` of its threads.

    Attributes:
        command: what to run here, such as ``ssh board python -m sartor.targets.agent``.
        precision: "float32" or "int8", which is quantised here, from the calibration samples of `prepare`.
        seconds: of timing for each network, at most.
        limit_s: for each network, with all that belongs to its measurement. What is asked of the device about n
            networks ends within (n + 2) x `limit_s` + `silence_s`, attempts and pauses included. The agent has a limit
            of its own, and the lower one counts.
        attempts: how often a measurement is begun when the connection is lost; the pause before the next is
            `pause_s` seconds, and twice as long each time.
        silence_s: without a sign of life after which the connection counts as lost.

    Raises:
        ValueError: no command, an unknown precision, or a number that is not positive.
    """

    command: str
    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    limit_s: float = 60.0
    attempts: int = 3
    pause_s: float = 2.0
    silence_s: float = 30.0
    name: str = field(init=False)
    file_name: str = field(init=False)  # in the folder given to `prepare`
    _fingerprint: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.precision not in ("float32", "int8"):
            raise ValueError(f"a remote target has no precision {self.precision!r}: use float32 or int8")
        if not (min(self.seconds, self.limit_s, self.silence_s) > 0 and self.attempts >= 1 and self.pause_s >= 0):
            raise ValueError("seconds, limit_s, silence_s and attempts of a remote target must be positive")
        middle = INT8 if self.precision == "int8" else ""
        self.name = f"{PREFIX}{middle}{self.command}"
        command_of(self.name)
        self.file_name = "model.int8.onnx" if self.precision == "int8" else "model.onnx"

    def fingerprint(self) -> dict[str, str]:
        """Return what the device says of itself, with threads and dtype; asked for once.

        TargetError if it cannot be reached.
        """
        if not self._fingerprint:
            self._fingerprint = self._retried(lambda session: session.describe(), 0)
        return dict(self._fingerprint)

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.onnx` or `model.int8.onnx` into the folder `path` here, as the target `onnxruntime` does."""
        from sartor.targets.onnxruntime import OnnxRuntimeTarget

        return OnnxRuntimeTarget(self.precision).prepare(model, example, calibration, path)

    def runner(self, artefact: Artefact) -> Run:
        """Return the file as a function of float32 arrays (N, C, H, W); ONNX Runtime runs it here."""
        from sartor.targets.onnxruntime import OnnxRuntimeTarget

        return OnnxRuntimeTarget(self.precision).runner(artefact)

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Send the files and have them timed in interleaved rounds; one Measurement per artefact, in order.

        Raises:
            TargetError: a file is refused, and the others were measured; or, with that reason for each of them,
                the device was not reached in any attempt, said what cannot be true, or is another than before.
        """
        reasons = {index: reason for index, one in enumerate(artefacts) if (reason := _missing(one))}
        sent = [index for index in range(len(artefacts)) if index not in reasons]
        measured: list[Measurement | None] = [None] * len(artefacts)
        said = [*reasons.values()]
        try:
            files = [artefacts[index] for index in sent]
            outcomes = self._retried(lambda session: session.measured(files), len(files)) if files else []
            for index, outcome in zip(sent, outcomes, strict=True):
                if isinstance(outcome, str):
                    reasons[index] = f"{artefacts[index].path}: {outcome}"
                    said.append(reasons[index])
                else:
                    measured[index] = outcome
        except TargetError as error:  # said once, however many networks it befell
            reasons |= {index: f"{artefacts[index].path}: {error}" for index in sent}
            said.append(str(error))
        if reasons:
            raise TargetError("; ".join(said), dict(sorted(reasons.items())), measured)
        return [one for one in measured if one is not None]

    def _retried(self, job: Callable[[_Session], _Result], networks: int) -> _Result:
        """Return what `job` returns of a session; a session that is lost is begun anew, while there is time."""
        lost, pause_s = "", self.pause_s
        deadline = time.monotonic() + (networks + 2) * self.limit_s + self.silence_s
        for attempt in range(1, self.attempts + 1):
            try:
                with self._session(deadline) as session:
                    return job(session)
            except Lost as error:
                lost = f"{self.command}: {error}" + (f", in {attempt} attempts" if attempt > 1 else "")
            except (_Declined, ProtocolError) as error:
                raise TargetError(f"{self.command}: {error}") from None
            if attempt == self.attempts or time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
            pause_s *= 2
        raise TargetError(lost)

    @contextmanager
    def _session(self, deadline: float) -> Iterator[_Session]:
        _, command = command_of(self.name)
        try:
            peer = Peer(command, greeting=GREETING)
        except OSError as error:
            raise TargetError(f"{command[0]!r} cannot be run: {error.strerror}") from None
        whole_way = False
        try:
            yield _Session(self, peer, deadline)
            whole_way = True
        finally:
            peer.close(kill=not whole_way)


class _Session:
    """A conversation with an agent, every answer of which is checked."""

    def __init__(self, target: RemoteTarget, peer: Peer, deadline: float) -> None:
        self._target, self._peer, self._deadline = target, peer, deadline

    def describe(self) -> dict[str, str]:
        """Return the fingerprint of the device."""
        target = self._target
        reply = self._ask({"do": "describe", "threads": target.threads}, 2 * target.limit_s + target.silence_s)
        found = reply.get("fingerprint")
        if not isinstance(found, dict) or len(found) > _MOST_ENTRIES:
            raise ProtocolError("its 'fingerprint' is no object of few entries")
        said = {clean(str(name)): text(found, name) for name in found}
        lacking = [name for name in _NEEDED if not said.get(name)]
        if lacking:
            raise ProtocolError(f"its 'fingerprint' does not say {', '.join(lacking)}")
        if said["threads"] != str(target.threads):
            raise ProtocolError(f"it was asked for {target.threads} threads and says {said['threads']!r}")
        return {**said, "dtype": target.precision}

    def measured(self, artefacts: Sequence[Artefact]) -> list[Measurement | str]:
        """Return a measurement or the reason for none of each artefact."""
        target = self._target
        fingerprint = self.describe()
        before = target._fingerprint or fingerprint
        if unlike := differences(before, fingerprint):
            first, (was, is_now) = next(iter(unlike.items()))
            raise _Declined(f"it is not the device it was: {first} was {was!r} and is {is_now!r}; measure all again")
        target._fingerprint = before
        refused = [self._send(artefact) for artefact in artefacts]
        accepted = [one for one, reason in zip(artefacts, refused, strict=True) if not reason]
        outcomes = iter(self._timed(accepted, fingerprint) if accepted else [])
        return [reason or next(outcomes) for reason in refused]

    def _send(self, artefact: Artefact) -> str:
        """Send a file; return why the agent does not take it, or ""."""
        patience = self._target.limit_s
        try:
            data = artefact.path.read_bytes()
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        try:
            ids = {"ids_below": artefact.ids_below} if artefact.ids_below else {}
            self._ask({"do": "model", "bytes": len(data), "shape": list(artefact.input_shape), **ids}, patience)
        except _Declined as error:
            return str(error)
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            reply = self._ask({"do": "data", "data": base64.b64encode(part).decode()}, patience)
            left = len(data) - start - len(part)
            whole(reply, "left", left, left)
        return ""

    def _timed(self, artefacts: Sequence[Artefact], fingerprint: Mapping[str, str]) -> list[Measurement | str]:
        target, count = self._target, len(artefacts)
        request = {"do": "measure", "threads": target.threads, "seconds": target.seconds, "seed": target.seed}
        start = time.monotonic()
        limit = target.limit_s * (count + 1) + target.silence_s
        reply = self._ask({**request, "limit": target.limit_s}, limit)
        elapsed = time.monotonic() - start
        reasons = texts(reply, "reasons", count)
        if len(reasons) != count:
            raise ProtocolError(f"it was asked for {count} measurements and speaks of {len(reasons)}")
        doubts, notes = texts(reply, "doubts", 16), texts(reply, "notes", 16)
        outcomes: list[Measurement | str] = []
        spent = 0.0
        for artefact, reason in zip(artefacts, reasons, strict=True):
            if reason:
                outcomes.append(reason)
                continue
            index = sum(not isinstance(one, str) for one in outcomes)
            result = self._ask({"do": "result", "index": index}, target.limit_s)
            timing, memory_mb, energy = _timing(result), _memory(result), _energy(result)
            spent += float(timing.seconds.sum()) * timing.repeats
            outcomes.append(
                measurement(
                    timing, size_mb=artefact.path.stat().st_size / 1e6, memory_mb=memory_mb, energy=energy,
                    doubts=doubts, notes=notes, seed=target.seed, fingerprint=of_artefact(fingerprint, artefact),
                )
            )  # fmt: skip
        if spent > 1.01 * elapsed + 0.1:
            raise ProtocolError(f"it says that it measured for {spent:.3g} s, and only {elapsed:.3g} s have passed")
        return outcomes

    def _ask(self, request: Mapping[str, object], limit_s: float) -> Message:
        """Return the agent's answer to `request`; Lost if it fell silent, _Declined if it says no."""
        silence_s, deadline = self._target.silence_s, min(self._deadline, time.monotonic() + limit_s)
        self._peer.send(request, silence_s)
        for _ in range(_MOST_BEATS):
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProtocolError(f"it did not answer {request['do']!r} within {limit_s:.3g} s")
            try:
                reply = self._peer.receive(min(silence_s, left))
            except TimeoutError:
                if left <= silence_s:
                    continue
                raise Lost(f"it was silent for {silence_s:.3g} s") from None
            if "error" in reply:
                raise _Declined(text(reply, "error"))
            if "working" not in reply:
                return reply
        raise ProtocolError(f"it sends too much: {_MOST_BEATS} times that it is working")


def _missing(artefact: Artefact) -> str:
    try:
        return "" if artefact.path.stat().st_size else f"{artefact.path}: the file is empty"
    except OSError:
        return f"{artefact.path}: no such file"


def _timing(result: Message) -> Timing:
    seconds = rows(result, "seconds", most_rows=MOST_ROUNDS, most_columns=_MOST_RUNS)
    (calibration,) = rows(result, "calibration", most_rows=1, most_columns=MOST_ROUNDS)
    if len(seconds) < FEWEST_ROUNDS or len(calibration) != len(seconds):
        raise ProtocolError(f"it measured {len(seconds)} rounds, and the calibration kernel in {len(calibration)}")
    settled = result.get("settled")
    if not isinstance(settled, bool):
        raise ProtocolError("its 'settled' is neither true nor false")
    repeats, cold = whole(result, "repeats", 1, 10_000), number(result, "cold", 0, 1e6)
    return Timing(np.array(seconds), np.array(calibration), cold, repeats, settled)


def _memory(result: Message) -> float | None:
    return None if result.get("memory_mb") is None else number(result, "memory_mb", 0, 1e9)


def _energy(result: Message) -> Energy | None:
    found = result.get("energy")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ProtocolError("its 'energy' is no object")
    cv, idle_w = number(found, "cv", 0, 1e6), number(found, "idle_w", 0, 1e6)
    return Energy(number(found, "mj", 1e-12, 1e12), cv, idle_w, text(found, "source"))
