"""HELP with ten measurements of an unseen device, beside what ten measurements give without it.

Spearman correlations on networks of NAS-Bench-201 that were not measured, means of 30 draws of ten: `any ten` are drawn
evenly from 900 networks, `suggested` are what `HELP.suggest` takes of 300 of those. All methods measure the same ten.
The six unseen devices of the paper's split are asked of tests/predictors/help_sources.safetensors, which has learnt
from the nine source devices and was stopped by the four of validation; two devices of HW-NAS-Bench are asked of what
ships with the package, which has learnt from 27 others. scripts/make_help.py makes both. Others have the same sources.
`deviation` is that of HELP over draws, `best source` is chosen knowing all latencies, and `published` is what the
authors report with more measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from help_devices import (
    POOL,
    REFERENCES,
    SOURCES,
    UNSEEN,
    Cells,
    Floats,
    Rows,
    cells,
    mixed,
    nearest,
    ridge,
)
from sartor.architecture import Architecture
from sartor.encodings import onehot, option_counts
from sartor.predictors import HELP
from sartor.ranking import spearman
from sartor.tables import load

Row = Mapping[str, str | float | int | None]

PROOF = Path(__file__).parents[1] / "tests" / "predictors" / "help_sources.safetensors"
FURTHER = ("edgegpu", "edgetpu")
PUBLISHED = {"titan_rtx_256": 0.987, "gold_6226": 0.989, "pixel2": 0.802, "raspi4": 0.890, "eyeriss": 0.940}
PUBLISHED |= {"fpga": 0.985, "mean": 0.932}


@dataclass(frozen=True)
class Case:
    """An unseen device: its latencies, (N, K) columns for ridge, (D, N) sources, FLOPs if known, what is ranked."""

    ms: Floats
    columns: Floats
    sources: Floats
    flops: Floats | None
    asked: Rows


def rows(quick: bool) -> Iterator[Row]:
    """A row per table, way to draw, and device."""
    draws = 5 if quick else 30
    table = cells()
    yield from on_cells(table, HELP.load(PROOF), draws)
    yield from on_cells(shipped_cells(table), HELP.shipped(), draws, devices=FURTHER, sources=tuple(table.devices))


def shipped_cells(table: Cells) -> Cells:
    """Return the table with the devices that what is shipped has not seen; some networks were not measured there."""
    values = {name: load("nasbench201").values(f"cifar10_{name}_latency_ms", table.archs) for name in FURTHER}
    known = np.all([np.isfinite(ms) for ms in values.values()], axis=0)
    return replace(table, devices={**table.devices, **values}, connected=table.connected & known)


# ---- NAS-Bench-201 ----------------------------------------------------------------------------------------


def on_cells(
    table: Cells,
    help: HELP,
    draws: int,
    samples: Sequence[str] = ("any ten", "suggested"),
    devices: Sequence[str] = UNSEEN,
    sources: Sequence[str] = SOURCES,
) -> Iterator[Row]:
    """A row for each unseen device and way to draw, and their means."""
    pool, columns = table.rows(POOL), option_counts(help.space, table.archs)
    known = np.stack([table.devices[name] for name in sources])
    everything = onehot(help.space, table.archs)
    for way in samples:
        drawn = [drawn_rows(way, help, table.archs, pool, seed) for seed in range(draws)]
        found = {}
        for device in devices:
            asked = np.setdiff1d(table.asked(device), drawn[0]) if help.references else table.asked(device)
            case = Case(table.devices[device], columns, known, table.flops, asked)
            found[device] = compared(help, table.archs, case, drawn)
            many = spearman(ridge(everything, pool, case.ms[pool], asked), case.ms[asked])
            found[device]["ridge, 900 samples"] = np.full(draws, many)
        found["mean"] = {name: np.mean([one[name] for one in found.values()], axis=0) for name in found[devices[0]]}
        is_split = devices == UNSEEN
        for device, rhos in found.items():
            published = PUBLISHED[device] if is_split else None
            yield row("nine sources" if is_split else "all sources", way, device, rhos, published)


def drawn_rows(way: str, help: HELP, archs: Sequence[Architecture], pool: Rows, seed: int) -> Rows:
    """Return which ten to measure."""
    rng = np.random.default_rng(seed)
    if way == "references":
        return np.array(REFERENCES, dtype=np.intp)
    if way == "any ten":
        return rng.choice(pool, 10, replace=False)
    few = rng.choice(pool, min(300, len(pool)), replace=False)
    place = {archs[row]: row for row in few}
    return np.array([place[arch] for arch in help.suggest([archs[row] for row in few])], dtype=np.intp)


def compared(help: HELP, archs: Sequence[Architecture], case: Case, drawn: Sequence[Rows]) -> dict[str, Floats]:
    """Return for each method its correlation in each draw."""
    true = case.ms[case.asked]
    others = [archs[row] for row in case.asked]
    methods: dict[str, Callable[[Rows, Floats], Floats]] = {
        "HELP": lambda rows, ms: help.adapt([archs[row] for row in rows], ms).predict(others)[0],
        "ridge": lambda rows, ms: ridge(case.columns, rows, ms, case.asked),
        "mix of sources": lambda rows, ms: mixed(case.sources, rows, ms, case.asked),
        "nearest source": lambda rows, ms: nearest(case.sources, rows, ms, case.asked),
    }
    found = {
        name: np.array([spearman(method(rows, case.ms[rows]), true) for rows in drawn])
        for name, method in methods.items()
    }
    found["best source"] = np.full(len(drawn), max(spearman(one[case.asked], true) for one in case.sources))
    if case.flops is not None:
        found["FLOPs"] = np.full(len(drawn), spearman(case.flops[case.asked], true))
    return found


def row(learnt: str, samples: str, device: str, rhos: Mapping[str, Floats], published: float | None = None) -> Row:
    """Return means over the draws."""
    names = ("ridge", "mix of sources", "nearest source", "best source", "FLOPs", "ridge, 900 samples")
    return {
        "learnt": learnt,
        "samples": samples,
        "device": device,
        "HELP": round(float(rhos["HELP"].mean()), 3),
        "deviation": round(float(rhos["HELP"].std()), 3),
        **{name: round(float(rhos[name].mean()), 3) if name in rhos else None for name in names},
        "published": published,
    }
