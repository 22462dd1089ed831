# SPDX-License-Identifier: Apache-2.0
"""What gradient-based searches found against the ground truth: ranks, regrets, skips and costs, beside chance.

The truth is the reported value of every network of the space. Random search with the same budget draws as many
networks as the budget has trainings and keeps the best by the signal; its rank and regret are expectations over all
draws, exact, and so are those of a single draw.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sartor.architecture import Architecture
from sartor.atomic import write_bytes
from sartor.bench.entries import Entry
from sartor.bench.methods import COSTS, MethodSearch, note
from sartor.bench.problem import Problem
from sartor.bench.queries import Floats, arrow
from sartor.bench.running import log_path
from sartor.bench.statistics import Goal, band, expected_best
from sartor.trial import Trial, TrialLog

__all__ = ["FILE", "Truth", "read_finds", "summarise_finds", "write_finds"]

FILE = "methods.parquet"
SKIPS = ("skip", "skip_connect")
ENOUGH = 5  # seeds below which no interval is compared with anything
Json = dict[str, Any]


class Truth:
    """The whole space by its reported values: (N,) of all networks, with the (N,) signals and the goal."""

    def __init__(self, signal: Floats, reported: Floats, goal: Goal) -> None:
        from scipy.stats import rankdata

        self.signal, self.reported, self.goal = signal, reported, goal
        self.best = float(reported.max() if goal == "max" else reported.min())
        self.ranks: Floats = np.asarray(rankdata(-reported if goal == "max" else reported), dtype=float)

    @classmethod
    def of(cls, problem: Problem) -> Truth | None:
        """Return the truth of a problem, None where the space is not known whole."""
        if problem.everything is None:
            return None
        return cls(problem.everything[:, 1], problem.everything[:, 0], problem.objectives[0].goal)

    def rank(self, value: float) -> float:
        """Return the rank of a reported value, 1 the best; networks that are equal share the mean of their ranks."""
        better = self.reported > value if self.goal == "max" else self.reported < value
        equal = int((self.reported == value).sum())
        return float(better.sum()) + (equal + 1) / 2 if equal else float(better.sum()) + 1.0

    def regret(self, value: float) -> float:
        """Return the distance to the best reported value, at least 0."""
        return abs(self.best - value)

    def random(self, draws: int) -> tuple[float, float]:
        """Return the expected rank and regret of the best by its signal of so many draws."""
        rank = expected_best(self.signal, self.ranks, draws, self.goal)[-1]
        regret = expected_best(self.signal, np.abs(self.best - self.reported), draws, self.goal)[-1]
        return float(rank), float(regret)


def write_finds(out: Path, problem: Problem, entries: Sequence[Entry], queries: int, seeds: int) -> Json | None:
    """Write a row for each search by gradients, and return what the page needs besides; None without any."""
    searches = [entry for entry in entries if isinstance(entry.search, MethodSearch)]
    steps = {entry.search.steps for entry in searches if isinstance(entry.search, MethodSearch)}
    truth = Truth.of(problem)
    if not searches or truth is None:
        return None
    rows = [_found(out, entry, seed, problem, truth, queries) for entry in searches for seed in range(seeds)]
    library, parquet = arrow()
    file = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(library.table(columns), file, compression="zstd")
    write_bytes(out / FILE, file.getvalue())
    return {"baselines": _baselines(problem, truth), "note": note(steps)}


def _found(out: Path, entry: Entry, seed: int, problem: Problem, truth: Truth, queries: int) -> Json:
    with TrialLog(log_path(out, entry.folder(queries), seed), readonly=True) as log:
        first: Trial = log[0]
    known = COSTS[0] in first.values
    row: Json = {"entry": entry.name, "seed": seed, "architecture": first.arch.to_json() if known else None}
    row |= {name: float(first.values[name]) if known else None for name in COSTS}
    numbers = ("reported", "rank", "regret", "skips", "random_draws", "random_rank", "random_regret")
    if not known:
        return row | dict.fromkeys(numbers) | {"all_skip": None, "note": first.note}
    value = _reported(problem, first.arch)
    share = _skips(first.arch)
    draws = int(first.values[COSTS[0]]) + 1  # the network found is trained once more
    found = (value, truth.rank(value), truth.regret(value), share, draws, *truth.random(draws))
    return row | dict(zip(numbers, found, strict=True)) | {"all_skip": share == 1.0, "note": ""}


def _reported(problem: Problem, arch: Architecture) -> float:
    signal = np.array([problem.objectives[0].measure(arch)], dtype=float)
    return float(problem.reported_values([arch], signal)[0])


def _skips(arch: Mapping[str, Any]) -> float:
    return sum(option in SKIPS for option in arch.values()) / max(len(arch), 1)


def _baselines(problem: Problem, truth: Truth) -> list[Json]:
    """Return what needs no search: one random draw, all skips, the largest network, the best."""
    rank, regret = truth.random(1)
    found: list[Json] = [{"name": "one at random", "rank": rank, "regret": regret, "skips": _mean_skips(problem)}]
    choices = problem.space.choices
    skips = {name: next((one for one in options if one in SKIPS), None) for name, options in choices.items()}
    several = {} if None in skips.values() else {"all skip": problem.space.canonical(skips)}
    for name, arch in {**several, "largest": problem.space.largest()}.items():
        value = _reported(problem, arch)
        known = {"rank": truth.rank(value), "regret": truth.regret(value)}
        found.append({"name": name, **known, "skips": _skips(arch)})
    return [*found, {"name": "optimum", "rank": truth.rank(truth.best), "regret": 0.0, "skips": None}]


def _mean_skips(problem: Problem) -> float:
    choices = problem.space.choices.values()
    return float(np.mean([sum(option in SKIPS for option in options) / len(options) for options in choices]))


def read_finds(out: Path) -> list[Json]:
    """Return the rows that `write_finds` wrote; none where it wrote nothing."""
    if not (out / FILE).is_file():
        return []
    _, parquet = arrow()
    rows: list[Json] = parquet.read_table(out / FILE).to_pylist()
    return rows


def summarise_finds(rows: Sequence[Json], known: Json | None) -> Json | None:
    """Return the table of methods, best mean rank first, with 95 % intervals of the means; None without rows."""
    if not rows or known is None:
        return None
    names = dict.fromkeys(row["entry"] for row in rows)
    methods = [_summary(name, [row for row in rows if row["entry"] == name]) for name in names]
    methods.sort(key=lambda one: (one["rank"]["mean"] if one["rank"] else math.inf, one["name"]))
    return {**known, "rows": methods}


def _summary(name: str, rows: Sequence[Json]) -> Json:
    found = [row for row in rows if row["rank"] is not None]
    columns = {
        key: np.array([row[key] for row in found], dtype=float)
        for key in ("rank", "regret", "skips", "all_skip", "random_draws", "random_rank", "random_regret", *COSTS)
    }
    rank, chance = interval(columns["rank"]), float(columns["random_rank"].mean()) if found else None
    return {
        "name": name,
        "seeds": len(found),
        "failed": sorted({row["note"] for row in rows if row["note"]}),
        "rank": rank,
        "regret": interval(columns["regret"]),
        "all_skip": int(columns["all_skip"].sum()),
        **{key: float(columns[key].mean()) if found else None for key in ("skips", "random_draws", *COSTS)},
        "random_rank": chance,
        "random_regret": float(columns["random_regret"].mean()) if found else None,
        "verdict": _verdict(rank, chance) if len(found) >= ENOUGH else "",
    }


def _verdict(rank: Json | None, chance: float | None) -> str:
    """Say whether the interval of the mean rank leaves out the expectation of random search with that budget."""
    if rank is None or chance is None or rank["low"] is None:
        return ""
    return "better" if rank["high"] < chance else "worse" if rank["low"] > chance else "no difference"


def interval(values: Floats) -> Json | None:
    """Return the mean of (S,) values and its 95 % interval; None of none."""
    if not len(values):
        return None
    mean, low, high = (float(one[0]) for one in band(values[:, None]))
    ends = {"low": low, "high": high} if math.isfinite(low) else {"low": None, "high": None}
    return {"mean": mean, **ends}
