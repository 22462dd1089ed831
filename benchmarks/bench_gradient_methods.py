"""Gradient-based methods on the exhaustive micro space, 10 seeds each, beside chance at the same budget.

The same as `sartor bench --space micro --objective digits_test --methods all --queries 32 --seeds 10`, kept in
runs/gradient-methods and continued there. Rank (of 64, equal networks share theirs) and regret (in points of the mean
test accuracy of three trainings) of the network found: means, and 95 % intervals of the mean. `random` is the best by
validation accuracy of as many networks as the search and one training cost, by multiply-accumulates: expectations over
all draws, exact. CPU seconds are those of one search.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sartor.bench import bench, method_entries, table_problem
from sartor.bench.methods import STEPS

Row = Mapping[str, str | float | int | None]

OUT = Path(__file__).parents[1] / "runs" / "gradient-methods"


def rows(quick: bool) -> Iterator[Row]:
    """A row per method, then those that need no search."""
    with tempfile.TemporaryDirectory() as folder:
        out, steps, seeds = (Path(folder) / "out", 4, 2) if quick else (OUT, STEPS, 10)
        problem = table_problem("micro", "digits_test")
        entries = method_entries(problem, ["all"], steps=steps)
        bench(problem, entries, queries=32, seeds=seeds, out=out, resume=out.exists())
        known = json.loads((out / "report.json").read_bytes())["methods"]
    yield from map(_row, known["rows"])
    for one in known["baselines"]:
        told = {"method": one["name"], "rank": one["rank"], "regret": one["regret"], "skips": one["skips"]}
        yield {**dict.fromkeys(_row(known["rows"][0])), **told}


def _row(one: Mapping[str, Any]) -> Row:
    return {
        "method": one["name"],
        "seeds": one["seeds"],
        "rank": one["rank"] and one["rank"]["mean"],
        "rank 95 %": _ends(one["rank"], 1),
        "regret": one["regret"] and one["regret"]["mean"],
        "regret 95 %": _ends(one["regret"], 2),
        "random rank": one["random_rank"],
        "random regret": one["random_regret"],
        "against it": one["verdict"],
        "skips": one["skips"],
        "all skip": one["all_skip"],
        "passes": one["search_passes"],
        "trainings": one["search_trainings"],
        "CPU s": one["search_cpu_s"],
    }


def _ends(part: Mapping[str, Any] | None, digits: int) -> str:
    if part is None or part["low"] is None:
        return ""
    return f"{part['low']:.{digits}f} to {part['high']:.{digits}f}"
