"""CPU time of `--help`, a process each: it must not wait for torch."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

LIMIT_MS = 300.0


def rows(quick: bool) -> list[dict[str, str | float]]:
    """Return one row per command."""
    repeats = 3 if quick else 15
    table: list[dict[str, str | float]] = []
    for verb in ("", "search", "resume", "report", "measure", "list"):
        argv = [sys.executable, "-m", "sartor", *([verb] if verb else []), "--help"]
        times = [child_cpu_ms(argv) for _ in range(repeats)]
        row = {"median ms": statistics.median(times), "lowest": min(times), "highest": max(times)}
        table.append({"command": " ".join(["sartor", verb]).strip(), **row, "limit": LIMIT_MS, "repeats": repeats})
    return table


def child_cpu_ms(argv: list[str]) -> float:
    """Return user and system time of a process that runs to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
