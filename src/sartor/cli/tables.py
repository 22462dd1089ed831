# SPDX-License-Identifier: Apache-2.0
"""What the commands print on standard output."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sartor import units
from sartor.protocols import Measurement
from sartor.report.reading import Measured, Network, Record

_BEST, _OVER, _NOISY = "*", "!", "~"


_LIMITS: Mapping[str, Callable[[float], str]] = {
    "latency_ms": units.format_latency,
    "energy_mj": units.format_energy,
    "memory_mb": lambda limit: f"{units.format_size(1e6 * limit)} of memory",
    "size_bytes": units.format_size,
    "macs": lambda limit: f"{units.format_count(limit)} MACs",
    "params": lambda limit: f"{units.format_count(limit)} parameters",
}
"""How a limit is said, by its name."""


def print_front(console: Console, record: Record, folder: Path, report: Path) -> None:
    """Print the verified front of each target, what is good on all, the report, and what to do with the best one."""
    best = record.best.arch if record.best else None
    for target in record.target_names:
        listed = record.fronts.get(target)
        names = set(listed) if isinstance(listed, list) else {one.name for one in record.front}
        front = [one for one in record.front if one.name in names]
        members = [(network, found) for network in front if (found := network.on(target)) is not None]
        members.sort(key=lambda member: member[1].latency_ms)
        verdict = _verdict([found for _, found in members])
        console.print(f"{len(members)} verified on {target}{verdict}", style="bold", markup=False)
        console.print(_front(members, best))
    for one in record.front:
        if one.tokens_per_s is not None:
            console.print(f"{one.name} writes {one.tokens_per_s:,.0f} tokens/s with a cache, in torch", markup=False)
    if common := record.fronts.get("all targets"):
        console.print(f"good on all targets: {', '.join(map(str, common))}", markup=False)
    if record.why:
        console.print(f"{_BEST} best: {record.why.partition(chr(10))[0]}", markup=False)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    if record.best is not None:
        reads = record.part("task").get("preprocessing") or {}
        what = _READS.get(str(reads.get("mode")), "IMAGE")
        console.print(f"next: python {folder / 'best' / 'use.py'} {what}", markup=False, soft_wrap=True)


_READS = {"text": "TEXT", "tokens": "IDS", "tensor": "ARRAY.npy"}
"""What `use.py` is given, where that is no image."""


def _front(members: Sequence[tuple[Network, Measured]], best: object) -> Table:
    """Return one row per network; with every column at its widest it fits 80 characters."""
    table = _table("", "network", "test", "valid.", "median", "p10 - p90", "size")
    for network, found in members:
        table.add_row(
            _OVER if found.within_limit is False else _BEST if network.arch == best else "",
            escape(network.name),
            _percent(found.test),
            _percent(found.validation),
            units.format_latency(found.latency_ms),
            f"{units.format_latency(found.p10)} - {units.format_latency(found.p90)}",
            "" if found.size_mb is None else units.format_size(found.size_mb * 1e6),
        )
    return table


def _verdict(found: Sequence[Measured]) -> str:
    """Say in few words which limits were asked for and whether they were kept."""
    limits = dict.fromkeys(limit for one in found for limit in _limits(one))
    if not limits:
        return "" if not found else "; no limit was asked for"
    over = sum(one.within_limit is False for one in found)
    kept = f"{over} of them ({_OVER}) not within" if over else "all within"
    return f", {kept} {', '.join(limits)}"


def _limits(found: Measured) -> list[str]:
    limits = {name: limit for name, limit, _ in found.limits}
    if found.limit_ms is not None:
        limits["latency_ms"] = found.limit_ms
    return [_LIMITS.get(name, lambda limit, name=name: f"{name} {limit:g}")(limits[name]) for name in limits]


def print_measurements(console: Console, measured: Mapping[str, Measurement], target: str) -> None:
    """Print one row per network: median, p10, p90, p99, size; then what there is to say of each measurement."""
    folder = _common_folder([*measured])
    place = f", in {folder}" if folder else ""
    console.print(f"measured on {target}{place}", style="bold", markup=False, soft_wrap=True)
    table = _table("", "network", "median", "p10 - p90", "p99", "size")
    shown = {name: os.path.relpath(name, folder) if folder else name for name in measured}
    for name, one in measured.items():
        table.add_row(
            _NOISY if one.noisy else "",
            escape(shown[name]),
            units.format_latency(one.latency_ms),
            f"{units.format_latency(one.p10)} - {units.format_latency(one.p90)}",
            units.format_latency(one.p99),
            units.format_size(one.size_mb * 1e6),
        )
    console.print(table)
    if any(one.noisy for one in measured.values()):
        console.print(f"{_NOISY} noisy: measure again when the machine is idle", markup=False)
    for name, one in measured.items():
        if one.notes:
            console.print(f"{shown[name]}: {'; '.join(one.notes)}", markup=False)


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all are in, "" where they share none."""
    if len({os.path.isabs(name) for name in names}) > 1:
        return ""
    return os.path.commonpath([os.path.dirname(name) for name in names])


def _table(*columns: str) -> Table:
    """Return an empty table; of its columns only names give way to a narrow terminal, by folding."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        name = column == "network"
        right = column not in ("", "network", "p10 - p90")
        table.add_column(column, justify="right" if right else "left", no_wrap=not name, overflow="fold")
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
