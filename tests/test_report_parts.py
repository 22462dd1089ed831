"""The parts of the report: effects, progress, the block diagram, axes and how numbers are written."""

from __future__ import annotations

import random
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from report_fixture import (
    LIMIT_MS,
    choices,
    gates,
    latency,
    sample,
    write_run,
)
from sartor.architecture import Architecture
from sartor.report import write_report
from sartor.report.diagram import block_diagram
from sartor.report.effects import additive_effects
from sartor.report.figures import latency_axis
from sartor.report.page import FILTERS
from sartor.report.progress import Question, progress
from sartor.report.reading import read_run
from sartor.report.summary import _behind, summarise
from sartor.space import SearchSpace
from sartor.trial import Trial

HOSTILE = "<script>alert(1)</script>\"'&</style>{{ 7*7 }}<!--\u202e\u00e9\u4e2d$x^2$"


def test_effects_are_recovered_from_an_additive_truth() -> None:
    space = SearchSpace({"depth": (1, 2), "a.k": (3, 5, 7), "b.k": (3, 5)}, {"b.k": ((("depth", (2,)),),)})
    truth: dict[tuple[str, Any], float] = {
        ("a.k", 3): -1.0,
        ("a.k", 5): 0.0,
        ("a.k", 7): 1.0,
        ("b.k", 3): -0.5,
        ("b.k", 5): 0.5,
    }
    rng = random.Random(0)
    archs = [space.sample(rng) for _ in range(400)]
    active = [{item for item in arch.items() if space.is_active(item[0], arch)} for arch in archs]
    values = [10 + sum(truth.get(item, 2.0 if item[1] == 2 else 0.0) for item in items) for items in active]
    fit = additive_effects(space, archs, values)
    assert fit is not None and fit.explained > 0.999
    found = {(one.choice, one.option): one for one in fit.effects}
    assert found["a.k", 7].value - found["a.k", 3].value == pytest.approx(2.0, rel=0.02)
    assert found["b.k", 5].value - found["b.k", 3].value == pytest.approx(1.0, rel=0.03)
    assert found["depth", 2].value - found["depth", 1].value == pytest.approx(2.0, rel=0.02)
    assert found["b.k", 3].trials + found["b.k", 5].trials == sum(arch["depth"] == 2 for arch in archs)
    assert all(one.distinct for key, one in found.items() if key != ("a.k", 5))
    noise = additive_effects(space, archs, [rng.gauss(0, 1) for _ in archs])
    assert noise is not None and sum(one.distinct for one in noise.effects) <= 1
    assert additive_effects(space, archs[:7], values[:7]) is None
    assert additive_effects(space, archs, [1.0] * len(archs)) is None


def test_progress_by_hand() -> None:
    def trial(number: int, error: float, milliseconds: float, state: Any = "done") -> Trial:
        return Trial(number, Architecture({"a": number}), {"error": error, "latency_ms": milliseconds}, state=state)

    told = [
        trial(0, 0.5, 2.0),
        trial(1, 0.2, 3.0),
        trial(2, 0.1, 9.0),
        trial(3, 0.0, 1.0, "failed"),
        trial(4, 0.1, 1.0),
    ]
    points = progress(told, Question("error", "latency_ms", 4.0))
    assert [point.number for point in points] == [0, 1, 2, 4]
    assert [point.best for point in points] == pytest.approx([0.5, 0.8, 0.8, 0.9])
    assert [point.within_limit for point in points] == [True, True, False, True]
    # The box is 4 ms by 0.5: (3 ms, 0.2) dominates 1 x 0.3 of it, (1 ms, 0.1) 3 x 0.4.
    assert [point.hypervolume for point in points] == pytest.approx([0.0, 0.15, 0.15, 0.6])


def test_the_diagram_draws_active_choices_only() -> None:
    space = SearchSpace({name: tuple(options) for name, options in choices().items()}, gates())
    arch = space.canonical(sample(random.Random(3)).replace({"stages.0.depth": 1, "stages.1.depth": 3}))
    svg = block_diagram(arch, space, "input 1 x 8 x 8", "10 classes")
    texts = [node.text for node in ElementTree.fromstring(svg).iter("text")]
    rows = " ".join(text or "" for text in texts)
    first, second = (
        rows.split("stages.0")[1].split("stages.1")[0],
        rows.split("stages.1")[1].split("stages.2")[0],
    )
    assert "blocks.0" in first and "blocks.1" not in first and "blocks.2" in second
    assert texts[0] == "input 1 x 8 x 8" and texts[1:3] == ["resolution", str(arch["resolution"])]
    assert texts[-1] == "10 classes" and rows.index("stem") < rows.index("stages.0")


def test_an_index_list_of_blocks_is_told_from_a_count() -> None:
    depth: tuple[Any, ...] = ((2,), 1, 2)
    blocks = {f"stages.1.{block}.kernel": (3, 5) for block in range(2)}
    gates = {f"stages.1.{block}.kernel": ((("stages.1.depth", depth[block + 1 :]),),) for block in range(2)}
    space = SearchSpace({"stages.1.depth": depth, "stages.1.width": (8, 16), **blocks}, gates)
    drawn = {}
    for option in depth:
        arch = space.canonical({"stages.1.depth": option, "stages.1.width": 16, **dict.fromkeys(blocks, 5)})
        svg = block_diagram(Architecture.from_json(arch.to_json()), space, "input", "output")
        drawn[option] = [node.text for node in ElementTree.fromstring(svg).iter("text")]
    assert drawn[2,] == ["input", "stages.1", "depth", "(2)", "width", "16", "output"], "none of its blocks has choices"
    assert drawn[2][3] == "2" and [text for text in drawn[2] if text in blocks or text == "kernel"] == ["kernel"] * 2


@pytest.mark.parametrize(("shortest", "told"), [([2], True), (1, False)])
def test_parentheses_are_explained_where_there_are_some(tmp_path: Path, shortest: Any, told: bool) -> None:
    space = {"name": "mine", "choices": choices() | {"stages.0.depth": [shortest, 2, 3]}, "gates": gates()}
    page = write_report(write_run(tmp_path / "run", space=space)).read_text(encoding="utf-8")
    assert page.count("(2) is number 2 alone") == (2 if told else 0), "below the network, and below the effects"


def test_a_baseline_that_was_left_out_is_waited_for_only_until_all_is_verified(tmp_path: Path) -> None:
    begun = summarise(read_run(write_run(tmp_path / "begun", "baselines")))
    assert "no measured baseline yet: largest, middle, smallest" in begun["missing"]
    assert not any("Left out" in note for note in begun["notes"])
    shutil.rmtree(write_run(tmp_path / "done") / "baselines" / "middle")
    done = summarise(read_run(tmp_path / "done"))
    assert done["complete"] and any("Left out" in note and "middle" in note for note in done["notes"])
    shutil.rmtree(write_run(tmp_path / "alone", arguments={"baselines": False}) / "baselines")
    alone = summarise(read_run(tmp_path / "alone"))
    assert alone["complete"] and not any("Left out" in note for note in alone["notes"])


def test_what_lies_deeper_is_drawn_in_its_block() -> None:
    names = (
        "stages.0.width",
        "stages.0.0.kernel",
        "stages.0.0.squeeze.choice",
        "stages.0.0.mix.heads",
        "head_width",
    )
    svg = block_diagram(Architecture(dict.fromkeys(names, 3)), None, "input", "output")
    texts = [node.text for node in ElementTree.fromstring(svg).iter("text") if node.text != "3"]
    drawn = ["stages.0.0", "kernel", "mix.heads", "squeeze"]
    assert texts == ["input", "stages.0", "width", *drawn, "output", "head_width"]


def test_the_diagram_of_an_unknown_space() -> None:
    arch = Architecture({"a.10.x": 1, "a.2.x": (3, 5), "a.w": 8, "head.w": None, "<b>&": HOSTILE, "zoo.op": "skip"})
    svg = block_diagram(arch, None, "input", "output")
    texts = [node.text or "" for node in ElementTree.fromstring(svg).iter("text")]
    assert texts.index("a.2") < texts.index("a.10") and "(3, 5)" in texts and "none" in texts
    assert texts.index("zoo") < texts.index("head") and any(text.startswith("<b>&") for text in texts)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sig", 0.12345, "0.123"), ("sig", 0.0, "0"), ("sig", 0.9996, "1.00"), ("sig", 12.345, "12.3"),
        ("sig", 1234.5, "1,230"), ("percent", 0.97777, "97.78"), ("signed", -0.001, "0.00"),
        ("signed", -1.5, "\N{MINUS SIGN}1.50"), ("signed", 2.0, "+2.00"), ("scaled", 950.0, "950"),
        ("scaled", 2_884_000.0, "2.88 M"), ("duration", 74.8, "1 min 15 s"), ("duration", 7.3e3, "2 h 1 min"),
        ("duration", 4.25, "4.2 s"), ("amount", 1_350_000_000, "1.35 billion"), ("amount", 9_000, "9,000"),
        ("amount", 3 * 10**23, "10\u00b2\u00b3"), ("spoken", True, "yes"), ("spoken", [3, 5.0], "3, 5"),
        ("spoken", (2,), "(2)"), ("spoken", (0, 2), "(0, 2)"), ("spoken", 2, "2"),
    ],
)  # fmt: skip
def test_numbers_are_written_plainly(name: str, value: Any, text: str) -> None:
    assert FILTERS[name](value) == text


def test_a_wide_range_of_latencies_gets_a_logarithmic_axis() -> None:
    rows = [{"p10": low, "p90": 1.1 * low} for low in (0.05, 0.9)]
    axis = latency_axis(rows, (), LIMIT_MS)
    assert axis.log and axis.low < 0.05 and axis.high > 0.99 and axis.ticks == (0.05, 0.1, 0.2, 0.5, 1.0)
    assert not latency_axis(rows[1:], (), None).log and not latency_axis((), (), None).log


def test_the_made_up_device_has_a_limit_that_binds() -> None:
    largest = Architecture({name: options[-1] for name, options in choices().items()})
    assert latency(largest) > 2 * LIMIT_MS


def test_a_baseline_that_is_ahead_is_told() -> None:
    best = {"name": "a", "validation": 0.9, "latency_ms": 2.0, "within_limit": None}
    fast, slow, worse = (
        {"name": name, "validation": accuracy, "latency_ms": ms, "within_limit": None}
        for name, accuracy, ms in (("b", 0.95, 1.9), ("c", 0.95, 2.1), ("d", 0.9, 1.0))
    )
    told = "Trained from scratch, {} is more accurate on the validation split{}: the search needs more time."
    assert _behind(best, [fast, slow, worse]) == [told.format("b", " and no slower")]
    assert not _behind(best, [slow, worse]) and not _behind(None, [fast]), "without a limit, speed is worth something"
    limited = {**best, "within_limit": True}
    assert _behind(limited, [{**slow, "within_limit": True}]) == [told.format("c", ", if slower")]
    assert not _behind(limited, [{**slow, "within_limit": False}])
