# SPDX-License-Identifier: Apache-2.0
"""Measuring files: what all targets on this machine's processor share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import torch

from sartor.protocols import Artefact, Measurement
from sartor.targets.machine import Neighbours, growth
from sartor.targets.timing import PRECISION, Timing, interval, percentiles, rounds

__all__ = ["TargetError", "measure_artefacts", "measurement", "one_example"]

_DRIFT = 0.1  # of the calibration kernel, beyond which the machine was not the same all the time
_SPREAD = 0.1

Load = Callable[[Artefact], Callable[[], object]]


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


def one_example(example: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the only input of a network; ValueError if there is none or more than one."""
    if len(example) != 1:
        raise ValueError(f"a network with {len(example)} inputs cannot be prepared: targets take one tensor")
    return example[0]


def measure_artefacts(
    artefacts: Sequence[Artefact], load: Load, *, threads: int, seconds: float, seed: int
) -> list[Measurement]:
    """Load all artefacts, then time them together; one Measurement per artefact, in order.

    `load` returns the call to time; whatever it raises, or the first call, refuses that artefact alone.
    The rounds take at most `seconds` per artefact, or 6 rounds if these take longer.
    `memory_mb` is the growth of this process's peak resident memory while an artefact is loaded and run once.
    Raises TargetError after all others were measured if any was refused.
    """
    reasons: dict[int, str] = {}
    calls: dict[int, Callable[[], object]] = {}
    memory: dict[int, float | None] = {}
    with _threads(threads), torch.inference_mode():
        if artefacts:
            _refusal(artefacts[0], load)  # a runtime's own first-time memory is nobody's
        for index, artefact in enumerate(artefacts):
            with growth() as grown:
                outcome = _refusal(artefact, load)
            if isinstance(outcome, str):
                reasons[index] = outcome
            else:
                calls[index], memory[index] = outcome, grown.mb
        with Neighbours() as others:
            timings = rounds(list(calls.values()), budget_s=seconds * max(1, len(calls)), seed=seed)
    measured: list[Measurement | None] = [None] * len(artefacts)
    for index, timing in zip(calls, timings, strict=True):
        size = sum(file.stat().st_size for file in artefacts[index].files) / 1e6
        measured[index] = measurement(
            timing, size_mb=size, memory_mb=memory[index], doubts=others.notes(threads), seed=seed
        )
    if reasons:
        raise TargetError("; ".join(reasons.values()), reasons, measured)
    return [one for one in measured if one is not None]


def measurement(
    timing: Timing, *, size_mb: float, memory_mb: float | None, doubts: tuple[str, ...] = (), seed: int = 0
) -> Measurement:
    """Return the statistics of `timing`; `doubts` and a drift of the calibration kernel make it noisy.

    So does an interval wider than twice the precision that is aimed at. A wide spread of single runs alone
    does not, for the median may be well known; it is noted.
    """
    p10, p50, p90, p95, p99 = (1e3 * value for value in percentiles(timing))
    low, high = (1e3 * value for value in interval(timing.seconds, seed=seed))
    medians, kernel = timing.medians, timing.calibration
    half = (high - low) / 2 / p50
    drift = float(np.median(kernel) / np.min(kernel)) - 1
    doubts += (f"the calibration kernel drifted by {drift:.0%}",) * (drift > _DRIFT)
    doubts += (f"the median is known to {half:.1%} only",) * (half > 2 * PRECISION)
    notes: tuple[str, ...] = (
        f"first call {1e3 * timing.cold:.3g} ms",
        f"{timing.ratio:.3g} of the calibration kernel ({1e3 * float(np.median(kernel)):.3g} ms)",
    )
    notes += (f"runs of {timing.repeats} calls, too short for the clock alone",) * (timing.repeats > 1)
    notes += ("not settled when the warm-up ended",) * (not timing.settled)
    notes += (f"spread: p90 is {p90 / p10 - 1:.0%} above p10",) * (p90 > (1 + _SPREAD) * p10)
    return Measurement(
        latency_ms=p50, p10=p10, p90=p90, p95=p95, p99=p99, minimum=1e3 * float(timing.seconds.min()),
        runs=timing.seconds.size, rounds=len(timing.seconds), ci_low=low, ci_high=high,
        cv=float(np.std(medians) / np.mean(medians)), noisy=bool(doubts), notes=doubts + notes,
        size_mb=size_mb, memory_mb=memory_mb,
    )  # fmt: skip


def _refusal(artefact: Artefact, load: Load) -> Callable[[], object] | str:
    """Return the call of an artefact that runs, or why it does not."""
    try:
        call = load(artefact)
        call()
    except ImportError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        name = str(artefact.path)
        return lines[0] if name in lines[0] else f"{name}: {lines[0]}"
    return call


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch, and with it the calibration kernel, use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
