"""CPU time of a call, fit to be compared with another one's on a machine that other work shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CpuTime:
    """CPU milliseconds of one call, over `repeats` calls: the median and the range."""

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}-{self.high:.3g}]"


def cpu_ms(call: Callable[[], object], repeats: int = 9, *, warmup: int = 2) -> CpuTime:
    """Return the CPU time of `call`: that of this process, all its threads, and not of its children."""
    return compared([call], repeats, warmup=warmup)[0]


def compared(calls: Sequence[Callable[[], object]], repeats: int = 9, *, warmup: int = 2) -> list[CpuTime]:
    """Return the CPU times of several calls, taken in turns so that a disturbance meets all of them."""
    for call in calls:
        for _ in range(warmup):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            start = time.process_time_ns()
            call()
            own.append((time.process_time_ns() - start) / 1e6)
    return [CpuTime(statistics.median(own), min(own), max(own), repeats) for own in times]
