# SPDX-License-Identifier: Apache-2.0
"""Energy per inference, from counters of the hardware: RAPL for processors, NVML for graphics cards.

Both count whole devices, so what the device takes when idle is subtracted, and what neighbours take is not known
apart. Where there is no counter, there is no number: an estimate from a thermal design power would be the
latency times a constant.
"""

from __future__ import annotations

import importlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Energy", "Meter", "MeterError", "Nvml", "Rapl", "energies", "nvml", "rapl"]

POWERCAP = Path("/sys/class/powercap")
WINDOWS = 5  # of repeated inference for each network, whose median counts
IDLE_S = 2.0

Call = Callable[[], object]


class MeterError(RuntimeError):
    """A counter that is there and cannot be read; the message says why, in one line."""


class Meter(Protocol):
    """A counter of joules."""

    source: str
    window_s: float
    """The shortest time of repeated inference over which it is read."""

    def joules(self) -> float:
        """Return the joules since some moment in the past, never less than before; MeterError if unreadable."""
        ...


@dataclass(frozen=True)
class Energy:
    """Millijoules of one inference above an idle power in watts, and the spread over windows (std over mean)."""

    mj: float
    cv: float
    idle_w: float
    source: str

    def note(self) -> str:
        """Return what a reader of the number has to know."""
        return f"energy by {self.source}, the whole device above {self.idle_w:.3g} W when idle, within {self.cv:.0%}"


class Rapl:
    """The counters of all processor packages and their memory below `root`, in steps of about 1 ms.

    Windows are shorter than is usually advised (1 s), as many networks are measured: a step is 1 % of one.
    """

    source, window_s = "RAPL", 0.1

    def __init__(self, domains: Sequence[Path]) -> None:
        self._files = [domain / "energy_uj" for domain in domains]
        self._ranges = [_number(domain / "max_energy_range_uj") for domain in domains]
        self._last = [_number(file) for file in self._files]
        self._total = 0

    def joules(self) -> float:
        """Return the joules since the meter was made. A counter that fell has wrapped around, once."""
        for index, file in enumerate(self._files):
            now = _number(file)
            step = now - self._last[index]
            self._total += step if step >= 0 else step + self._ranges[index]
            self._last[index] = now
        return self._total / 1e6


def rapl(root: Path = POWERCAP) -> Rapl | None:
    """Return the meter of this machine's processors, None if it has none.

    Domains of packages count their cores but not their memory, which has domains of its own; `psys` counts it all
    once more, and `intel-rapl-mmio` is another view of the same packages.

    Raises:
        MeterError: the counters are there and cannot be read; Linux lets only root read them.
    """
    domains = [
        path for path in sorted(root.glob("intel-rapl:*"))
        if _text(path / "name").startswith("package") or _text(path / "name") == "dram"
    ]  # fmt: skip
    return Rapl(domains) if domains else None


class Nvml:
    """The counter of a graphics card (Volta and later); its steps may be 100 ms.

    That is up to 10 % of a window, which is shorter than is usually advised (5 s); the median of five windows counts.
    """

    source, window_s = "NVML", 1.0

    def __init__(self, library: Any, device: Any) -> None:
        self._library, self._device = library, device

    def joules(self) -> float:
        """Return the joules since the driver was loaded."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device)) / 1e3
        except self._library.NVMLError as error:
            raise MeterError(f"NVML does not tell the energy of this card: {error}") from None


def nvml(uuid: str) -> Nvml | None:
    """Return the meter of the graphics card `uuid` ("GPU-..."), None without nvidia-ml-py.

    Raises:
        MeterError: the driver refuses, or the card has no counter (before Volta, or one that is shared).
    """
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
        meter = Nvml(library, library.nvmlDeviceGetHandleByUUID(uuid))
    except library.NVMLError as error:
        raise MeterError(f"NVML is not available: {error}") from None
    meter.joules()
    return meter


def energies(
    calls: Sequence[Call],
    latencies_s: Sequence[float],
    meter: Meter,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = time.sleep,
) -> list[Energy | None]:
    """Measure the energy of each call, whose latencies are known, in interleaved windows; in order.

    Idle power comes first, over 2 s. Each window repeats a call for as long as the meter's steps ask for. None
    where a window took no more than idling: the difference is then below what the counter can tell. `clock` must
    wait for what the calls started. MeterError as the meter raises it.
    """
    idle_w = _idle_power(meter, clock, wait)
    joules: list[list[float]] = [[] for _ in calls]
    order, rng = list(range(len(calls))), random.Random(seed)
    for _ in range(WINDOWS):
        rng.shuffle(order)
        for index in order:
            count = max(1, math.ceil(meter.window_s / latencies_s[index]))
            joules[index].append(_window(calls[index], count, meter, idle_w, clock))
    return [_summary(values, idle_w, meter.source) for values in joules]


def _idle_power(meter: Meter, clock: Callable[[], float], wait: Callable[[float], None]) -> float:
    start, before = clock(), meter.joules()
    wait(IDLE_S)
    return (meter.joules() - before) / (clock() - start)


def _window(call: Call, count: int, meter: Meter, idle_w: float, clock: Callable[[], float]) -> float:
    """Return the joules of one of `count` calls, above idle."""
    start, before = clock(), meter.joules()
    for _ in range(count):
        call()
    taken = clock() - start
    return (meter.joules() - before - idle_w * taken) / count


def _summary(joules: Sequence[float], idle_w: float, source: str) -> Energy | None:
    middle = float(np.median(joules))
    if min(joules) <= 0:
        return None
    return Energy(1e3 * middle, float(np.std(joules) / np.mean(joules)), idle_w, source)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MeterError(f"{path} cannot be read ({reason}): give this user the right to read it") from None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
