# SPDX-License-Identifier: Apache-2.0
"""Objectives and calls that tests send to other processes; light, since each process imports this file."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import Any

from sartor.architecture import Architecture


def number(arch: Architecture, name: str = "a") -> int:
    """Return an option as the number that it is."""
    return int(str(arch[name]))


def total(arch: Architecture) -> float:
    """Return a + b."""
    return float(number(arch) + number(arch, "b"))


def moody(arch: Architecture) -> float:
    """Does something else for each option of `a`."""
    match number(arch):
        case 0:
            return total(arch)
        case 1:
            raise RuntimeError("two\nlines")
        case 2:
            return math.nan
        case _:
            raise MemoryError


def scaled(arch: Architecture, budget: float) -> float:
    """The larger, the smaller the budget."""
    return total(arch) + 1 / budget


def suicidal(arch: Architecture) -> float:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def deadly(arch: Architecture) -> float:
    """Does something that no `except` can stop, for each option of `a`."""
    match number(arch):
        case 0:
            return total(arch)
        case 1:
            threading.Event().wait()
        case 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        case _:
            os._exit(3)
    return 0.0


def greedy(arch: Architecture) -> float:
    """Hold a * 1.2 GB for as long as it takes."""
    held = [bytearray(os.urandom(1) * 20_000_000) for _ in range(60 * number(arch))]
    return float(len(held))


class Unloadable:
    """Pickles well and cannot be loaded."""

    def __call__(self, arch: Architecture) -> float:
        return 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()


def fail() -> None:
    """Stand for weights that are not there."""
    raise RuntimeError("no such weights")


def add(shared: int, other: int) -> int:
    """Return the sum."""
    return shared + other


def stuck(shared: int, other: int) -> int:
    """Never return."""
    threading.Event().wait()
    return shared


def unread(shared: int, other: int) -> int:
    """Stand for data that is not there."""
    raise FileNotFoundError("no such disk")
