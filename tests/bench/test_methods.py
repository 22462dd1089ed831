# SPDX-License-Identifier: Apache-2.0
"""Searches by gradients on a scoreboard: their truth, their price, and one that fails beside others that do not."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from torch import nn

from sartor.bench import bench, method_entries, named_entries, table_problem
from sartor.bench.contenders import ABSENT, CONTENDERS, absent, check_methods
from sartor.bench.finds import Truth, interval
from sartor.bench.gradient import Ground, Work, ground, mean_training, search_network
from sartor.bench.methods import COSTS
from sartor.bench.running import log_path
from sartor.cli import main
from sartor.names import built_in
from sartor.trial import TrialLog

PROBLEM = table_problem("micro", "digits_test")
OWN = """
from sartor.differentiable.gdas import GDAS

class Halting(GDAS):
    def __init__(self, *arguments, seed, **keywords):
        super().__init__(*arguments, seed=seed, **keywords)
        if seed == 1:
            raise ValueError("the loss is nan at step 7")
"""


# ---- the truth ------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_reported_value_and_equals_share_them() -> None:
    truth = Truth(np.array([1.0, 2.0, 3.0, 4.0]), np.array([90.0, 95.0, 95.0, 80.0]), "max")
    assert [truth.rank(value) for value in (95.0, 90.0, 80.0)] == [1.5, 3.0, 4.0]
    assert [truth.regret(value) for value in (95.0, 80.0)] == [0.0, 15.0]
    assert truth.random(1) == pytest.approx((2.5, 5.0))
    costs = Truth(np.array([1.0, 2.0]), np.array([7.0, 5.0]), "min")
    assert (costs.rank(5.0), costs.regret(7.0)) == (1.0, 2.0)


def test_random_search_is_the_expectation_over_all_draws() -> None:
    rng = random.Random(0)
    signal, reported = (np.array([rng.random() for _ in range(5)]) for _ in range(2))
    truth = Truth(signal, reported, "max")
    kept = [max(draw, key=lambda i: float(signal[i])) for draw in itertools.product(range(5), repeat=3)]
    rank, regret = truth.random(3)
    assert rank == pytest.approx(np.mean([truth.rank(reported[i]) for i in kept]))
    assert regret == pytest.approx(np.mean([truth.regret(reported[i]) for i in kept]))


def test_an_interval_has_no_ends_with_one_seed() -> None:
    assert interval(np.array([3.0])) == {"mean": 3.0, "low": None, "high": None}
    assert interval(np.array([])) is None


# ---- the price ------------------------------------------------------------------------------------


def test_multiplications_are_counted_as_they_run_and_passes_by_all_copies() -> None:
    work, linear = Work(), nn.Linear(5, 3)
    net = work.counting(linear)
    x = torch.randn(2, 5)
    with work:
        net(x).sum().backward()
    forward = weights = 2 * 5 * 3
    assert work.flops == 2 * (forward + weights)  # the input has no gradient
    net(x)
    assert (work.passes, work.entered) == (2, 1)


def test_a_training_costs_three_passes_forward_but_for_the_gradient_of_the_images() -> None:
    place = ground("micro")
    table = PROBLEM.space
    assert table.size == 64
    stem = 8 * 9 * 64
    from sartor.tables import load

    mean = float(load("micro").column("macs_m").mean())
    assert mean_training(place) == pytest.approx((3 * mean - stem / 1e6) * 32 * 269, rel=1e-6)


def test_the_same_seed_finds_the_same_and_nothing_but_the_training_split_is_read() -> None:
    whole = ground("micro")

    class Train:
        def __init__(self) -> None:
            task = whole.data()
            self.train, self.classes = task.train, task.classes

    place = Ground("micro", whole.network, Train, batch=8, training=3)  # type: ignore[arg-type]
    for method in ("darts", "snas", "pc_darts"):
        one, same = (search_network(place, method, steps=3, seed=2) for _ in range(2))
        assert one.arch == same.arch and one.macs == same.macs and one.passes == same.passes
        assert one.arch in PROBLEM.space


def test_every_method_searches_or_says_why_not() -> None:
    assert all(absent(name) for name in set(built_in("methods")) - set(CONTENDERS))
    assert set(ABSENT) <= set(built_in("methods"))
    place = ground("micro")
    for method in CONTENDERS:
        watched: list[Any] = []
        found = search_network(place, method, steps=2, seed=0, watch=watched.append, parts=2)
        assert found.arch in PROBLEM.space and found.passes >= 2 and len(watched) == 2, method


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gadas", "did you mean 'gdas'"),
        ("single_path", "takes no part: its superkernels"),
        ("missing.py:Mine", "there is no file"),
    ],
)
def test_a_name_that_takes_no_part(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_methods([name])


def test_another_table_is_refused() -> None:
    with pytest.raises(ValueError, match="search the table micro"):
        method_entries(table_problem("nasbench201", "cifar10"), ["darts"])


# ---- the scoreboard -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "halting.py").write_text(OWN)
    names = ["gdas", "darts", f"{folder / 'halting.py'}:Halting"]
    entries = [*named_entries(["random_search"]), *method_entries(PROBLEM, names, steps=3)]
    bench(PROBLEM, entries, queries=4, seeds=2, out=folder / "out")
    return folder / "out"


def test_a_search_spends_trainings_before_it_has_a_network(done: Path) -> None:
    with TrialLog(log_path(done, "darts", 0), readonly=True) as log:
        trials = list(log)
    spent = math.ceil(trials[0].values[COSTS[0]])
    assert [one.state for one in trials] == ["failed"] * spent + ["done"] * (4 - spent)
    assert len({one.arch for one in trials}) == 1
    assert trials[-1].values["digits_val"] == PROBLEM.objectives[0].measure(trials[-1].arch)


def test_every_search_has_its_row_and_one_that_fails_stops_no_other(done: Path) -> None:
    rows = parquet.read_table(done / "methods.parquet").to_pylist()
    assert [(row["entry"], row["seed"]) for row in rows] == [
        (e, s) for e in ("gdas", "darts", "Halting") for s in (0, 1)
    ]
    assert [row["rank"] is None for row in rows] == [False] * 5 + [True]
    assert "the loss is nan at step 7" in rows[-1]["note"]
    for row in rows[:-1]:
        assert row["regret"] >= 0.0 and 1.0 <= row["rank"] <= 64.0 and row["search_passes"] == 6
    methods = json.loads((done / "report.json").read_text())["methods"]
    assert {row["name"]: row["seeds"] for row in methods["rows"]} == {"gdas": 2, "darts": 2, "Halting": 1}
    chance, skips, largest, best = methods["baselines"]
    assert (chance["name"], chance["rank"], chance["skips"]) == ("one at random", pytest.approx(32.5), 0.25)
    assert (skips["name"], skips["skips"]) == ("all skip", 1.0) and skips["regret"] > 40.0
    assert (largest["name"], largest["rank"], largest["skips"]) == ("largest", 1.0, 0.0)
    assert (best["name"], best["rank"], best["regret"]) == ("optimum", 1.0, 0.0)


def test_the_page_and_the_terminal_show_both_tables(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    assert main(["report", str(done)]) == 0
    shown = capsys.readouterr().out
    assert "against the truth of 64 networks" in shown and "random_search" in shown and "0 of 2" in shown
    page = (done / "report.html").read_text()
    assert "Searches by gradients against the truth" in page and "the loss is nan at step 7" in page


def test_a_seed_that_was_killed_is_all_that_is_run_again(done: Path) -> None:
    killed = log_path(done, "gdas", 1)
    before = parquet.read_table(done / "methods.parquet").to_pylist()
    for path in (killed, killed.with_suffix(".json")):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in done.glob("trials/*/*.json")}
    assert main(["resume", str(done)]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = parquet.read_table(done / "methods.parquet").to_pylist()
    without = [{key: value for key, value in row.items() if key != "search_cpu_s"} for row in (before[1], after[1])]
    assert without[0] == without[1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench --space micro --objective digits_test --methods darts --steps 2 --queries 3 --seeds 1 --workers 1"
    assert main([*line.split(), "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [(one["name"], one["settings"]) for one in record["entries"]] == [("darts", {"steps": 2})]
    wrong = line.replace("darts", "single_path").split()
    assert main([*wrong, "--out", str(tmp_path / "no")]) == 2
    assert "takes no part" in capsys.readouterr().err
