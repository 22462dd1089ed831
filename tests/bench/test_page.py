"""The page: what it says, that it stands alone, and the numbers behind it, against small cases by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.toy_bench import COST, SIGNAL, SPACE, Broken, toy
from sartor.bench import Entry, Problem, bench
from sartor.bench.checklist import checklist
from sartor.bench.curves import Box, anytime, curves
from sartor.bench.figures import COLOURS, styles
from sartor.bench.page import write_scoreboard
from sartor.bench.queries import Searches
from sartor.bench.ranks import rank_diagram
from sartor.bench.running import read_record
from sartor.report.palette import DARK, LIGHT, SERIES_DARK, SERIES_LIGHT

HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"
ENTRIES = [
    Entry("random_search", "random_search"),
    Entry("evolution", "regularized_evolution", settings={"population": 4, "tournament": 2}, tuned="nothing"),
    Entry(HOSTILE, "nsga2", settings={"population": 4}, tuned=HOSTILE),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "out"
    bench(toy((SIGNAL, COST)), ENTRIES, queries=20, seeds=6, out=out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return read


def test_the_page_stands_alone_and_nothing_in_it_is_run(page: str) -> None:
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", outside)
    assert HOSTILE not in page and "{{ 7*7 }}" in outside and "alert(1)</script>" not in outside
    assert page.count("<main>") == 1 and "default-src 'none'" in page


def test_every_figure_has_its_place_and_its_colours(page: str) -> None:
    (text,) = re.findall(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)
    figures = json.loads(text)
    assert {"best", "regret", "signal", "final", "volume", "reported_volume", "reach", "cpu"} == set(figures)
    assert all(f'id="{name}"' in page for name in figures)
    assert set(re.findall(r'"@(\w+)"', text)) <= {*LIGHT, *SERIES_LIGHT}
    assert SERIES_LIGHT.keys() == SERIES_DARK.keys() == {f"s{place}" for place in range(COLOURS)}
    numbers = [len(figure["data"]) for figure in figures.values()]
    assert min(numbers) >= 1


def test_colours_tell_series_from_the_paper() -> None:
    for palette, series in ((LIGHT, SERIES_LIGHT), (DARK, SERIES_DARK)):
        assert all(contrast(colour, palette["paper"]) >= 4.5 for colour in series.values())


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_same_folder_gives_the_same_page(folder: Path, page: str) -> None:
    assert write_scoreboard(folder).read_text(encoding="utf-8") == page


def test_the_numbers_agree_with_each_other(summary: dict[str, Any]) -> None:
    assert summary["known"]["optimum"] == 24.0 and summary["checkpoints"] == [20]
    assert [row["rank"] for row in summary["rows"]] == sorted(row["rank"] for row in summary["rows"])
    for row in summary["rows"]:
        assert row["regret"]["mean"] == pytest.approx(24 - row["reported"]["mean"])
        assert row["at"]["20"] == pytest.approx(row["reported"]["mean"])
        average = summary["known"]["average"]
        assert row["improvement"] == pytest.approx(100 * (row["reported"]["mean"] - average) / average)
        assert 0 < row["reported_volume"]["mean"] <= 1 and row["cpu_ms"] > 0
    levels = [level["level"] for level in summary["levels"]]
    assert levels[0] < levels[1] < levels[2] < 24 and summary["levels"][3]["of"] == "signal"


def test_the_reference_is_stated(page: str, summary: dict[str, Any]) -> None:
    assert summary["box"]["reference"] == [0.0, 4.0] and summary["box"]["signs"] == [-1.0, 1.0]
    assert "Measured from the reference" in page


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_and_one_entry_give_a_page(tmp_path: Path, seeds: int) -> None:
    bench(toy(), ENTRIES[:1], queries=4, seeds=seeds, out=tmp_path / "one")
    bench(toy(), ENTRIES[:2], queries=1, seeds=seeds, out=tmp_path / "two")
    assert "not met" in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")


def test_a_problem_of_which_nothing_is_known_gives_a_page(tmp_path: Path) -> None:
    bare = Problem("bare", SPACE, (replace(SIGNAL, goal="min"), COST))
    bench(bare, ENTRIES, queries=8, seeds=3, out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    assert summary["rows"][0]["regret"] is None and summary["rows"][0]["reported_volume"]["mean"] > 0
    states = {item["asked"]: item["state"] for item in summary["checklist"]}
    assert states["The reported value is not what the search reads"] == "not met"
    assert states["Beside random search, and the average random architecture"] == "met"


def test_seeds_that_find_nothing_feasible_rank_last(tmp_path: Path) -> None:
    rare = toy((SIGNAL, replace(COST, at_most=0.0)))
    bench(rare, ENTRIES[:2], queries=2, seeds=6, out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any(row["seeds_with_result"] < 6 for row in summary["rows"])


def test_failures_are_in_the_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 entries failed"):
        bench(toy(), [Entry("broken", Broken), ENTRIES[0]], queries=6, seeds=2, out=tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 entry failed" in text and "no more ideas" in text


# ---- curves -----------------------------------------------------------------------------------------


def searches(values: list[list[float]], reported: list[float], budgets: list[float] | None = None) -> Searches:
    """One seed of queries with (signal, cost)."""
    table = np.array([values], dtype=float)
    count = table.shape[1]
    best = [int(np.argmax(table[0, : place + 1, 0])) for place in range(count)]
    spent = np.array([budgets or [1.0] * count])
    return Searches(table, np.array([reported], dtype=float), spent, np.array([best]), np.array([count]))


def test_hypervolume_curves_by_hand() -> None:
    box = Box((-1.0, 1.0), (0.0, 4.0), (0.0, 4.0), 2.0, 1.0)
    found = curves(searches([[1, 3], [1, 3], [2, 3], [3, 1]], [5, 5, 1, 2]), "max", box)
    assert found.volume is not None and found.reported_volume is not None
    # Areas above signal 0 and below cost 4: 1x1, the same, 2x1, then 3x3, which holds all of it; in halves.
    assert found.volume.tolist() == [[0.5, 0.5, 1.0, 4.5]]
    # The front as reported: it falls where a member that looked better is worse.
    assert found.reported_volume.tolist() == [[5.0, 5.0, 1.0, 6.0]]
    assert found.signal.tolist() == [[1, 1, 2, 3]] and found.reported.tolist() == [[5, 5, 1, 2]]


def test_cheaper_queries_leave_the_front_once_there_are_full_ones() -> None:
    box = Box((-1.0, 1.0), (0.0, 4.0), (0.0, 4.0), 1.0, 1.0)
    found = curves(searches([[9, 1], [1, 3], [9, 1]], [9, 1, 9], [0.1, 1.0, 0.1]), "max", box)
    assert found.volume is not None
    assert found.volume.tolist() == [[27.0, 1.0, 1.0]]


def test_the_run_mean_counts_what_is_missing_as_the_worst() -> None:
    rows = np.array([[np.nan, 2.0, 4.0]])
    assert anytime(rows, "max").tolist() == [pytest.approx(8 / 3)]
    assert anytime(rows, "min").tolist() == [pytest.approx(10 / 3)]


# ---- parts ------------------------------------------------------------------------------------------


def test_the_first_eight_and_random_search_are_shown() -> None:
    look = styles([*(f"e{place}" for place in range(10)), "random_search"])
    assert [style.visible for style in look.values()] == [True] * 8 + ["legendonly"] * 2 + [True]
    assert len({(style.colour, style.dash) for style in look.values()}) == 11


def test_the_rank_diagram_has_every_entry_and_group() -> None:
    ranks = [["a", 1.2], ["b", 1.9], ["<c>", 2.9]]
    text = rank_diagram({"ranks": ranks, "groups": [["a", "b"], ["b", "<c>"]], "nemenyi": 5.0})
    assert text.count("stroke-width:3.5") == 2 and "&lt;c&gt;" in text and "wider than the axis" in text


def test_the_check_list_says_what_is_not_met(folder: Path) -> None:
    record, row = read_record(folder), {"name": "a", "budget": 20.0, "cpu_ms": 1.0}
    met = {item["asked"]: item["state"] for item in checklist(record, [row, row], 30, 20)}
    assert set(met.values()) == {"met", "for the reader"}
    few = {item["asked"]: item["state"] for item in checklist(record, [row, row], 8, 20)}
    assert few["Enough seeds, with spread"] == "not met"
    assert few["Corrected tests"] == "met", "of one pair"
    three = {item["asked"]: item["answer"] for item in checklist(record, [row] * 3, 5, 20)}
    tests = three["Corrected tests"]
    assert "5 seeds are too few for the pairs compared, 3" in tests and "0.062" in tests
    unequal = {i["asked"]: i for i in checklist(record, [row | {"budget": 7.0}, row | {"name": "b"}], 30, 20)}[
        "Equal budgets"
    ]
    assert unequal["state"] == "not met" and "a 7.0" in unequal["answer"]
    lost = {i["asked"]: i for i in checklist(record, [row, row | {"cpu_ms": None}], 30, 20)}
    assert lost["What the search itself costs"]["state"] == "not met"
    silent = {**record, "entries": [{"name": "mine", "tuned": "not stated"}]}
    tuned = {i["asked"]: i for i in checklist(silent, [row, row], 30, 20)}
    assert tuned["What was tuned, on what, and at what cost"]["state"] == "not met"
