# SPDX-License-Identifier: Apache-2.0
"""The graphics card under a measurement: what it is, its clock, memory and energy.

A launch returns before the work is done, so the host's clock would time the launching. Here an event is recorded
around each batch of launches and waited for. Inputs and outputs stay on the card: copies from and to the host
are not part of a latency. Clocks, power limits and modes of the card are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sartor.targets.artefacts import Call, Conditions, TargetError
from sartor.targets.energy import Meter, nvml
from sartor.targets.machine import Growth, processor

__all__ = [
    "EventClock",
    "card",
    "card_memory",
    "conditions",
    "own_stream",
    "require_cuda",
    "torch_memory",
    "whole_float32",
]

LAUNCHES = 20  # between two events
RUNS = 5  # of so many launches in each round
_KERNEL = 2048  # rows of the calibration kernel's matrices
_DRIVER = Path("/proc/driver/nvidia/version")


class EventClock:
    """Seconds on the card: each reading records an event after all launches so far and waits for it.

    The time between two events comes in float32, so that of neighbours is added up in float64: from a far first
    event, microseconds would be rounded off.
    """

    def __init__(self) -> None:
        self._last = _event()
        self._seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds since the clock was made."""
        now = _event()
        self._seconds += self._last.elapsed_time(now) / 1e3
        self._last = now
        return self._seconds


def require_cuda() -> None:
    """TargetError, which says what to do, where PyTorch sees no graphics card."""
    if not torch.cuda.is_available():
        raise TargetError(
            f"PyTorch {torch.__version__} sees no CUDA device: check nvidia-smi, and install a CUDA build of PyTorch"
        )


def card() -> dict[str, str]:
    """Return what identifies host and card: processor and system, GPU, its memory, driver, CUDA, cuDNN."""
    require_cuda()
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    cudnn: Any = torch.backends.cudnn
    return {
        **processor(),
        "gpu": found.name,
        "gpu_memory_mb": str(found.total_memory // 10**6),
        "gpu_processors": str(found.multi_processor_count),
        "capability": f"{found.major}.{found.minor}",
        "driver": _driver(),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(cudnn.version()),
    }


def conditions(*, within: Any, memory: Any) -> Conditions:
    """Return the conditions of a measurement on the card: events around 20 launches, energy by NVML."""
    return Conditions(
        clock=EventClock(), kernel=_kernel, launches=LAUNCHES, runs=RUNS, memory=memory, meter=_meter, within=within
    )


@contextmanager
def torch_memory() -> Iterator[Growth]:
    """Measure how far the peak of what PyTorch holds on the card rises over its level at the start, in MB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, result = torch.cuda.memory_allocated(), Growth()
    yield result
    torch.cuda.synchronize()
    result.mb = (torch.cuda.max_memory_allocated() - before) / 1e6


@contextmanager
def card_memory() -> Iterator[Growth]:
    """Measure how much less memory of the card is free afterwards, in MB, whoever took it.

    Other runtimes keep what they took, so that this is their peak.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, result = torch.cuda.mem_get_info()[0], Growth()
    yield result
    torch.cuda.synchronize()
    result.mb = max(0, before - torch.cuda.mem_get_info()[0]) / 1e6


@contextmanager
def own_stream() -> Iterator[None]:
    """Make a new stream the current one: other runtimes take the default stream's address, 0, for none."""
    made: Any = torch.cuda.Stream
    with torch.cuda.stream(made()):
        yield


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let products and convolutions keep all bits of float32: TF32, which drops 13, would be another dtype."""
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _event() -> Any:
    made: Any = torch.cuda.Event
    event = made(enable_timing=True)
    event.record()
    event.synchronize()
    return event


def _kernel() -> Call:
    generator = torch.Generator(device="cuda").manual_seed(0)
    a, b = (torch.randn(_KERNEL, _KERNEL, device="cuda", generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _meter() -> Meter | None:
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return nvml(f"GPU-{str(found.uuid).removeprefix('GPU-')}")


def _driver() -> str:
    """Return the version of the driver as the kernel module tells it, "unknown" where it does not."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module.*?(\d+\.\d+(\.\d+)*)", text)
    return found[1] if found else "unknown"
