# SPDX-License-Identifier: Apache-2.0
"""The machine under a measurement: what it is, how busy others keep it, and how much memory we take."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Neighbours", "growth", "processor", "usable_cores"]

# Instructions that decide how fast, and in int8 how exactly, a network runs.
_FLAGS = frozenset(
    "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 avx_vnni"
    " amx_tile amx_int8 amx_bf16 asimd asimddp asimdhp i8mm bf16 sve sve2 sme".split()
)
_TOLERANCE = 0.1  # cores: what the books of the kernel are off by in a short measurement
_STOLEN = 0.02


def processor() -> dict[str, str]:
    """Return what identifies processor and system: model, cores, flags, virtualised, governor, system."""
    lines = _read("/proc/cpuinfo").splitlines()
    info: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        info.setdefault(key.strip().lower(), value.strip())
    flags = set((info.get("flags") or info.get("features") or "").split())
    model = info.get("model name") or info.get("cpu model") or platform.processor() or platform.machine()
    virtual = "unknown" if not flags else "yes" if "hypervisor" in flags else "no"
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return {
        "processor": " ".join(model.split()),
        "architecture": platform.machine(),
        "cores": str(os.cpu_count() or 1),
        "cores_usable": str(usable_cores()),
        "flags": " ".join(sorted(flags & _FLAGS)),
        "virtualised": virtual,
        "governor": governor or "unknown",
        "system": f"{platform.system()} {platform.release()}",
    }


@dataclass
class Neighbours:
    """What other processes do while we measure: `with Neighbours() as others: ...`, then `notes(threads)`.

    The 1-minute load average is read before. It counts what this very process did in the past minute too, so
    where the kernel keeps books (Linux), a high load is believed only if others did use the cores meanwhile.
    """

    load: float = field(default=0.0, init=False)
    others: float | None = field(default=None, init=False)  # cores in use by other processes, on average
    stolen: float = field(default=0.0, init=False)  # share of the time that the hypervisor took
    _before: tuple[float, float, float, float] | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Neighbours:
        """Take the first readings."""
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self._before = _books()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the second readings."""
        after = _books()
        if self._before is None or after is None:
            return
        wall, busy, stolen, own = (b - a for a, b in zip(self._before, after, strict=True))
        if wall > 0:
            self.others = max(0.0, (busy - own) / wall)
            self.stolen = stolen / (wall * (os.cpu_count() or 1))

    def notes(self, threads: int) -> tuple[str, ...]:
        """Return why a measurement with `threads` threads is not to be trusted; () if it is."""
        spare = max(0, (os.cpu_count() or 1) - threads)
        found = []
        if self.load > spare and self.others is None:
            found.append(f"1-minute load {self.load:.1f} on {spare} spare cores")
        if self.others is not None and self.others > spare + _TOLERANCE:
            found.append(f"other processes used {self.others:.1f} cores where {spare} were spare")
        if self.stolen > _STOLEN:
            found.append(f"the hypervisor took {self.stolen:.0%} of the time")
        return tuple(found)


@dataclass
class Growth:
    """Resident memory that a block of code took at its peak, in MB (10^6 bytes); None where it is unknown."""

    mb: float | None = None


@contextmanager
def growth() -> Iterator[Growth]:
    """Measure how far the peak of resident memory rises over its level at the start (Linux; else None).

    What the allocator keeps in reserve is given back first, or new data would hide in old pages.
    """
    result = Growth()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present level
        before = _resident("VmRSS")
    except (AttributeError, OSError, TypeError):
        before = None
    yield result
    peak = _resident("VmHWM")
    if before is not None and peak is not None:
        result.mb = max(0, peak - before) * 1024 / 1e6


def _resident(name: str) -> int | None:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return None


def _books() -> tuple[float, float, float, float] | None:
    """Return wall clock, all busy cores, stolen and our own processor seconds; None where nobody counts."""
    fields = _read("/proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (
        int(value) / os.sysconf("SC_CLK_TCK") for value in fields[1:9]
    )
    return time.monotonic(), user + nice + system + irq + softirq, steal, time.process_time()


def usable_cores() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
