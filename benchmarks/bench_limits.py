"""Limits from tight to loose: whether the recommended network keeps each when measured, and how much of it it uses.

The shared weights are trained once, on MNIST without a limit. Then each of 20 limits, spread evenly in ratio from 1.1
times the smallest network's latency to .95 times the largest's, gets a search of its own with these weights. A limit is
met if the median latency of the recommended file, as measured at the end, is within it. "used" is that median over the
limit; "up to" is that of the slowest verified network within the limit.

SARTOR_MNIST names `mnist.npz`, SARTOR_OUT a folder to keep the runs in: those that are there are not run again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sartor import recipes

Row = Mapping[str, str | float | None]

DATA = os.environ.get("SARTOR_MNIST", "mnist.npz")
TARGET = os.environ.get("SARTOR_TARGET", "onnxruntime")
TRAINING_S, SEARCH_S, LIMITS = 420.0, float(os.environ.get("SARTOR_BUDGET", "60")), 20


def rows(quick: bool) -> Iterator[Row]:
    """A row per limit, then how many were met and the least and median use."""
    training_s, search_s, count = (60.0, 30.0, 3) if quick else (TRAINING_S, SEARCH_S, LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("SARTOR_OUT", folder))
        weights = trained(out / "weights", training_s)
        lowest, highest = ends(weights)
        found = []
        for number, limit in enumerate(np.geomspace(1.1 * lowest, 0.95 * highest, count)):
            found.append(searched(out / f"limit-{number}", weights, float(limit), search_s))
            yield found[-1]
    used = [float(str(row["used"])) for row in found if row["used"] is not None]
    reached = [float(str(row["up to"])) for row in found if row["up to"] is not None]
    met = sum(one <= 1 for one in used)
    least = {"used": min(used, default=None), "up to": min(reached, default=None)}
    yield {"limit ms": f"{met} of {count} met", "measured ms": None, **least}
    medians = (float(np.median(values)) for values in (used, reached))
    yield {"limit ms": "median", "measured ms": None, **dict(zip(("used", "up to"), medians, strict=True))}


def trained(out: Path, budget_s: float) -> Path:
    """Return a finished run without a limit."""
    if not (out / "report.json").is_file():
        recipes.search_for_device(
            DATA, target=TARGET, out=out, budget_s=budget_s, baselines=False, force=True, on_progress=print
        ).close()
    return out


def ends(run: Path) -> tuple[float, float]:
    """Return the latencies of the fastest and the slowest network of the run's profile, in milliseconds."""
    model = json.loads((run / "latency_model.json").read_text())
    measured = [pair["measured_ms"] for pair in model["pairs"]]
    return min(measured), max(measured)


def searched(out: Path, weights: Path, limit: float, budget_s: float) -> Row:
    """Return what a search under a limit recommends, as measured."""
    recorded = out / "limit.json"
    if not recorded.is_file() or not (out / "report.json").is_file():
        with recipes.search_for_device(
            DATA, target=TARGET, out=out, limits={"latency_ms": limit}, budget_s=budget_s, weights=weights,
            baselines=False, force=True,
        ):  # fmt: skip
            recorded.write_text(json.dumps(limit))
    limit = json.loads(recorded.read_text())
    report = json.loads((out / "report.json").read_text())
    best, verified = report["recommended"], [*report["front"], *report["beside_the_front"]]
    within = [row for row in verified if row["within_limit"]]
    slowest = max((row["latency_ms"] for row in within), default=None)
    return {
        "limit ms": limit,
        "measured ms": best and best["latency_ms"],
        "used": best and best["latency_ms"] / limit,
        "up to": slowest and slowest / limit,
        "validation": best and best["validation"],
        "test": best and best["test"],
        "verified": len(verified),
        "within": len(within),
    }
