# SPDX-License-Identifier: Apache-2.0
"""The numbers of a scoreboard as one JSON-able value: what `report.json` holds and the page prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sartor.bench.checklist import checklist
from sartor.bench.curves import Box, Curves, anytime
from sartor.bench.queries import Floats, Searches
from sartor.bench.running import finished
from sartor.bench.statistics import (
    Goal,
    Reach,
    band,
    nemenyi_difference,
    queries_to_reach,
    ranking,
    reach,
    relative_improvement,
)

Json = dict[str, Any]
CHECKPOINTS = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
RANDOM = "random_search"


def summarise(
    out: Path,
    record: Mapping[str, Any],
    searches: Mapping[str, Searches],
    curves: Mapping[str, Curves],
    box: Box | None,
) -> Json:
    """Return everything that the page says in numbers."""
    goal: Goal = record["problem"]["objectives"][0]["goal"]
    queries = int(next(iter(curves.values())).signal.shape[1])
    seeds = int(next(iter(curves.values())).signal.shape[0])
    known = record["known"]
    steps = [one for one in CHECKPOINTS if one < queries] + [queries]
    rows = [_row(name, searches[name], curves[name], known, goal, steps[-4:]) for name in curves]
    folders = {one["name"]: one["folder"] for one in record["entries"]}
    cpu = {name: _cpu_ms(out, folders[name], seeds) for name in curves}
    for row in rows:
        row["cpu_ms"] = cpu[row["name"]]
    rankings = _rankings(curves, goal)
    primary = "volume" if "volume" in rankings else "reported"
    place = {name: rank for name, rank in rankings[primary]["ranks"]} if primary in rankings else {}
    for row in rows:
        row["rank"] = place.get(row["name"])
    rows.sort(key=lambda row: (row["rank"] or 0.0, row["name"]))
    return {
        "format": 1,
        "name": record["problem"]["name"],
        "created": record.get("created", ""),
        "problem": record["problem"],
        "goal": goal,
        "queries": queries,
        "seeds": seeds,
        "checkpoints": steps[-4:],
        "known": {key: value for key, value in known.items() if key != "random"},
        "box": asdict(box) if box else None,
        "primary": primary,
        "rows": rows,
        "rankings": rankings,
        "levels": _levels(curves, known, goal, queries),
        "entries": record["entries"],
        "failed": record.get("failed", {}),
        "checklist": checklist(record, rows, seeds, queries),
        "environment": record["environment"],
        "command": record.get("command", []),
    }


def _row(
    name: str, searches: Searches, curves: Curves, known: Mapping[str, Any], goal: Goal, steps: Sequence[int]
) -> Json:
    final = curves.reported[:, -1]
    here = final[np.isfinite(final)]
    row: Json = {
        "name": name,
        "seeds_with_result": len(here),
        "reported": _spread(here),
        "signal": _spread(curves.signal[:, -1]),
        "at": {str(step): _mean(curves.reported[:, step - 1]) for step in steps},
        "anytime": _mean(anytime(curves.reported, goal)) if len(here) == len(final) else None,
        "regret": _regret(here, known, goal),
        "improvement": None,
        "different": float(searches.different.mean()),
        "budget": float(searches.budgets.sum(axis=1).mean()),
        "without_value": float(np.isnan(searches.values[..., 0]).mean()),
    }
    if known.get("average") and len(here):
        row["improvement"] = relative_improvement(here, known["average"])
    for key, curve in (("volume", curves.volume), ("reported_volume", curves.reported_volume)):
        row[key] = None if curve is None else _spread(curve[:, -1])
    return row


def _spread(values: Floats) -> Json | None:
    """Return mean, deviation, median and the 95 % interval of the mean of values over seeds; None of none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    mean, low, high = (float(one[0]) for one in band(values[:, None]))
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    ends = {"low": low, "high": high} if math.isfinite(low) else {"low": None, "high": None}
    return {"mean": mean, "sd": spread, "median": float(np.median(values)), **ends}


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if np.isfinite(values).all() else None


def _regret(final: Floats, known: Mapping[str, Any], goal: Goal) -> Json | None:
    if "optimum" not in known:
        return None
    return _spread(known["optimum"] - final if goal == "max" else final - known["optimum"])


def _cpu_ms(out: Path, folder: str, seeds: int) -> float | None:
    """Return the median CPU time of a query over the seeds that ran in one go; the first imports weigh on few."""
    whole = [done for seed in range(seeds) if (done := finished(out, folder, seed)) is not None and done.whole]
    return float(np.median([1000 * done.cpu_s / done.queries for done in whole])) if whole else None


def _rankings(curves: Mapping[str, Curves], goal: Goal) -> dict[str, Json]:
    """Return the ranking by the reported value and, with several objectives, by the reported hypervolume."""
    if len(curves) < 2:
        return {}
    sign = 1.0 if goal == "max" else -1.0
    scores = {"reported": [np.nan_to_num(sign * one.reported[:, -1], nan=-np.inf) for one in curves.values()]}
    volumes = [one.reported_volume[:, -1] for one in curves.values() if one.reported_volume is not None]
    if volumes:
        scores["volume"] = volumes
    return {
        key: _ranking([*curves], np.column_stack(columns), sign if key == "reported" else 1.0)
        for key, columns in scores.items()
    }


def _ranking(names: Sequence[str], scores: Floats, sign: float) -> Json:
    worst = np.min(scores[np.isfinite(scores)], initial=0.0) - 1.0
    found = ranking(np.where(np.isfinite(scores), scores, worst))
    order = np.argsort(found.ranks, kind="stable").tolist()
    return {
        "ranks": [[names[place], found.ranks[place]] for place in order],
        "friedman": found.friedman,
        "nemenyi": nemenyi_difference(len(names), len(scores)),
        "groups": [[names[place] for place in group] for group in found.groups],
        "pairs": [
            {"one": names[pair.one], "other": names[pair.other], "difference": sign * pair.difference, "p": pair.p,
             "corrected": pair.corrected}
            for pair in found.pairs
        ],
        "alpha": found.alpha,
    }  # fmt: skip


def _levels(curves: Mapping[str, Curves], known: Mapping[str, Any], goal: Goal, queries: int) -> list[Json]:
    """Return how many queries each entry needs to reach given qualities."""
    found = []
    for label, level, part in quality_levels(curves, known, goal, queries):
        rows = {name: _reach(reach(getattr(one, part), level, goal)) for name, one in curves.items()}
        found.append({"label": label, "level": level, "of": part, "rows": rows})
    return found


def quality_levels(
    curves: Mapping[str, Curves], known: Mapping[str, Any], goal: Goal, queries: int
) -> list[tuple[str, float, str]]:
    """Return label, level and curve ("reported" or "signal") of the qualities that are asked for.

    They come from random search and the optimum, never from what happened to be reached; only where neither is
    known, the best mean of this comparison is the level.
    """
    chance = known["random"][-1] if known.get("random") else None
    if chance is None and RANDOM in curves:
        chance = _mean(curves[RANDOM].reported[:, -1])
    levels: list[tuple[str, float, str]] = []
    if chance is not None:
        levels.append((f"what random search holds after {queries} queries, on average", chance, "reported"))
    optimum = known.get("optimum")
    if chance is not None and optimum is not None and optimum != chance:
        levels.append(("half the way from there to the optimum", (chance + optimum) / 2, "reported"))
        levels.append(("nine tenths of the way", chance + 0.9 * (optimum - chance), "reported"))
    if "signal_optimum" in known:
        levels.append(("the optimum of the signal, by the signal", known["signal_optimum"], "signal"))
    if not levels:
        means = [mean for one in curves.values() if (mean := _mean(one.reported[:, -1])) is not None]
        if means:
            best = max(means) if goal == "max" else min(means)
            levels.append(("the best mean of this comparison", best, "reported"))
    return levels


def _reach(found: Reach) -> Json:
    return {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}


def reached_share(curve: Floats, level: float, goal: Goal) -> Floats:
    """Return the (queries,) share of seeds that were at `level` by each query."""
    taken = queries_to_reach(curve, level, goal)
    return np.asarray((taken[:, None] <= np.arange(1, curve.shape[1] + 1)).mean(axis=0))
