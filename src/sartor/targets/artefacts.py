# SPDX-License-Identifier: Apache-2.0
"""Measuring files: what all targets on this machine share. Nothing here needs torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sartor.protocols import Artefact, Measurement
from sartor.targets.energy import Energy, Meter, MeterError, energies, rapl
from sartor.targets.fingerprint import of_artefact
from sartor.targets.machine import Growth, Neighbours, growth
from sartor.targets.timing import PRECISION, RUNS, Timing, interval, percentiles, rounds

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Conditions", "TargetError", "check_threads", "ids_below", "in_batches", "made_up", "measure_artefacts",
    "measurement", "one_example",
]  # fmt: skip

_DRIFT = 0.1  # of the calibration kernel, beyond which the machine was not the same all the time
_SPREAD = 0.1

Call = Callable[[], object]
Load = Callable[[Artefact], Call]
Describe = Callable[[Artefact], Mapping[str, str]]
Run = Callable[[NDArray[Any]], NDArray[np.float32]]


class TargetError(RuntimeError):
    """Models that a runtime refuses, by name and reason; the others were measured all the same.

    `reasons` maps the position of a refused model to its reason; `measurements` has one entry per model, in
    order, None where it was refused.
    """

    reasons: Mapping[int, str]
    measurements: tuple[Measurement | None, ...]

    def __init__(
        self, message: str, reasons: Mapping[int, str] | None = None,
        measurements: Sequence[Measurement | None] = (),
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.reasons = MappingProxyType(dict(reasons or {}))
        self.measurements = tuple(measurements)


@dataclass(frozen=True)
class Conditions:
    """How calls are timed; the default is for calls that return when this machine's processor has done the work.

    Attributes:
        clock: seconds; it waits for what the calls started.
        kernel: makes the calibration kernel; None for the usual one.
        launches: calls for each run that is timed, where a single one only starts the work.
        runs: timed runs of each candidate in a round.
        memory: measures the growth of memory over a block.
        meter: finds the counter of joules, None where there is none.
        within: what is set while files are loaded and run, such as the threads of a library.
    """

    clock: Callable[[], float] = time.perf_counter
    kernel: Callable[[], Call] | None = None
    launches: int = 1
    runs: int = RUNS
    memory: Callable[[], AbstractContextManager[Growth]] = growth
    meter: Callable[[], Meter | None] = rapl
    within: Callable[[], AbstractContextManager[object]] = nullcontext


PROCESSOR = Conditions()


def check_threads(threads: int) -> None:
    """ValueError for fewer than one thread."""
    if threads < 1:
        raise ValueError(f"cannot run on {threads} threads: use 1 or more")


def one_example(example: tuple[Tensor, ...], *, floats_for: str | None = None) -> Tensor:
    """Return the only input of a network; ValueError if there is none or more than one.

    floats_for: a runtime that is given floating-point inputs alone; ValueError names it for token ids.
    """
    if len(example) != 1:
        raise ValueError(f"a network with {len(example)} inputs cannot be prepared: targets take one tensor")
    if floats_for and not example[0].is_floating_point():
        raise ValueError(f"{floats_for} takes no token ids here: measure text on torch, onnxruntime or openvino")
    return example[0]


def ids_below(example: Tensor) -> int:
    """Return 0 for an input of floats, for token ids the number that all of them are below."""
    return 0 if example.is_floating_point() else int(example.max()) + 1


def made_up(artefact: Artefact) -> NDArray[Any]:
    """Return an input for a file: float32 noise, or int64 token ids that its network has."""
    generator = np.random.default_rng(0)
    if artefact.ids_below:
        return generator.integers(artefact.ids_below, size=artefact.input_shape)
    return generator.standard_normal(artefact.input_shape, dtype=np.float32)


def in_batches(run: Run, size: int) -> Run:
    """Return `run`, which takes batches of exactly `size`, as a function of any number of samples."""

    def chunked(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        missing = -len(inputs) % size
        padded = np.concatenate([inputs, np.zeros((missing, *inputs.shape[1:]), inputs.dtype)])
        parts = [np.array(run(np.ascontiguousarray(part))) for part in np.split(padded, len(padded) // size)]
        return np.concatenate(parts)[: len(inputs)]

    return chunked


def measure_artefacts(
    artefacts: Sequence[Artefact], load: Load, *, threads: int, seconds: float, seed: int,
    fingerprint: Mapping[str, str] | Describe, conditions: Conditions = PROCESSOR,
) -> list[Measurement]:  # fmt: skip
    """Load all artefacts, then time them together; one Measurement per artefact, in order.

    `load` returns the call to time; whatever it raises, or the first call, refuses that artefact alone.
    The rounds take at most `seconds` per artefact, or 6 rounds if these take longer.
    `fingerprint` is the target's, to which batch and shape are added, or a function that gives the whole of it
    once an artefact is loaded. `memory_mb` is the growth of peak memory while an artefact is loaded and run once;
    for a processor this process's resident memory. Energy is measured where there is a counter.

    Raises:
        TargetError: after all others were measured, if any was refused.
        ImportError: the runtime is not installed.
    """
    reasons: dict[int, str] = {}
    calls: dict[int, Call] = {}
    memory: dict[int, float | None] = {}
    with conditions.within():
        if artefacts:
            _refusal(artefacts[0], load)  # a runtime's own first-time memory is nobody's
        for index, artefact in enumerate(artefacts):
            with conditions.memory() as grown:
                outcome = _refusal(artefact, load)
            if isinstance(outcome, str):
                reasons[index] = outcome
            else:
                calls[index], memory[index] = outcome, grown.mb
        with Neighbours() as others:
            timings = _timed([*calls.values()], seconds, seed, conditions)
        joules, doubt = _energies([*calls.values()], timings, seed, conditions)
    measured: list[Measurement | None] = [None] * len(artefacts)
    for index, timing, energy in zip(calls, timings, joules, strict=True):
        artefact = artefacts[index]
        measured[index] = measurement(
            timing, size_mb=sum(file.stat().st_size for file in artefact.files) / 1e6, memory_mb=memory[index],
            energy=energy, doubts=others.notes(threads), notes=doubt, seed=seed,
            fingerprint=fingerprint(artefact) if callable(fingerprint) else of_artefact(fingerprint, artefact),
        )  # fmt: skip
    if reasons:
        raise TargetError("; ".join(reasons.values()), reasons, measured)
    return [one for one in measured if one is not None]


def measurement(
    timing: Timing, *, size_mb: float, memory_mb: float | None, fingerprint: Mapping[str, str],
    energy: Energy | None = None, doubts: tuple[str, ...] = (), notes: tuple[str, ...] = (), seed: int = 0,
) -> Measurement:  # fmt: skip
    """Return the statistics of `timing`; `doubts` and a drift of the calibration kernel make it noisy.

    So does an interval wider than twice the precision that is aimed at. A wide spread of single runs alone
    does not, for the median may be well known; it is noted, as `notes` are.
    """
    p10, p50, p90, p95, p99 = (1e3 * value for value in percentiles(timing))
    low, high = (1e3 * value for value in interval(timing.seconds, seed=seed))
    medians, kernel = timing.medians, timing.calibration
    half = (high - low) / 2 / p50
    drift = float(np.median(kernel) / np.min(kernel)) - 1
    doubts += (f"the calibration kernel drifted by {drift:.0%}",) * (drift > _DRIFT)
    doubts += (f"the median is known to {half:.1%} only",) * (half > 2 * PRECISION)
    told: tuple[str, ...] = (
        f"first call {1e3 * timing.cold:.3g} ms",
        f"{timing.ratio:.3g} of the calibration kernel ({1e3 * float(np.median(kernel)):.3g} ms)",
    )
    told += (f"runs of {timing.repeats} calls",) * (timing.repeats > 1)
    told += ("not settled when the warm-up ended",) * (not timing.settled)
    told += (f"spread: p90 is {p90 / p10 - 1:.0%} above p10",) * (p90 > (1 + _SPREAD) * p10)
    told += () if energy is None else (energy.note(),)
    return Measurement(
        latency_ms=p50, p10=p10, p90=p90, p95=p95, p99=p99, minimum=1e3 * float(timing.seconds.min()),
        runs=timing.seconds.size, rounds=len(timing.seconds), ci_low=low, ci_high=high,
        cv=float(np.std(medians) / np.mean(medians)), noisy=bool(doubts), notes=doubts + told + notes,
        size_mb=size_mb, memory_mb=memory_mb, energy_mj=None if energy is None else energy.mj,
        fingerprint=dict(fingerprint),
    )  # fmt: skip


def _timed(calls: Sequence[Call], seconds: float, seed: int, conditions: Conditions) -> list[Timing]:
    """Time the calls in rounds; the results are per call, however many are launched for each run."""
    count = conditions.launches
    timings = rounds(
        [_repeated(call, count) for call in calls], budget_s=seconds * max(1, len(calls)), seed=seed,
        clock=conditions.clock, calibrate=conditions.kernel and conditions.kernel(), runs=conditions.runs,
    )  # fmt: skip
    return [
        replace(one, seconds=one.seconds / count, cold=one.cold / count, repeats=one.repeats * count)
        for one in timings
    ]  # fmt: skip


def _repeated(call: Call, count: int) -> Call:
    if count == 1:
        return call

    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def _energies(
    calls: Sequence[Call], timings: Sequence[Timing], seed: int, conditions: Conditions
) -> tuple[Sequence[Energy | None], tuple[str, ...]]:
    """Return the energy of each call, None for all where no counter tells, and what to say about that."""
    nothing = [None] * len(calls)
    try:
        meter = conditions.meter() if calls else None
        if meter is None:
            return nothing, ()
        latencies = [float(np.median(one.seconds)) for one in timings]
        return energies(calls, latencies, meter, seed=seed, clock=conditions.clock), ()
    except MeterError as error:
        return nothing, (f"energy not measured: {error}",)


def _refusal(artefact: Artefact, load: Load) -> Call | str:
    """Return the call of an artefact that runs, or why it does not."""
    try:
        call = load(artefact)
        call()
    except ImportError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        name = str(artefact.path)
        return lines[0] if name in lines[0] else f"{name}: {lines[0]}"
    return call
