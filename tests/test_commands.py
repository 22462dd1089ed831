"""The verbs of the command: what they hand to the recipes, and what they print."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from report_fixture import write_run
from sartor import recipes
from sartor.architecture import Architecture
from sartor.cli import main
from sartor.cli.tables import print_front, print_measurements
from sartor.protocols import Measurement
from sartor.report.reading import Measured, Network, Record


class Recipe:
    """Stands in for a recipe: remembers how it was called, and leaves a finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.called: dict[str, Any] = {}
        self.closed = False

    def __call__(self, subject: object, **named: Any) -> SimpleNamespace:
        self.called = {"subject": subject, **named}
        if not (self.folder / "run.json").exists():
            write_run(self.folder)
        return SimpleNamespace(close=self.close)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    stand_in = Recipe(tmp_path / "out")
    monkeypatch.setattr(recipes, "search_for_device", stand_in)
    monkeypatch.setattr(recipes, "resume", stand_in)
    monkeypatch.setenv("COLUMNS", "120")
    return stand_in


def test_search_hands_over_what_was_asked(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    line = "search digits --latency 200us --size 2MB --budget 90s --seed 3 --threads 2 --trial-timeout 10s"
    line += " --image-size 24x32"
    assert main([*line.split(), "--out", str(recipe.folder)]) == 0
    recipe.called.pop("on_progress")("training")
    assert recipe.called == {
        "subject": "digits",
        "target": ["onnxruntime"],
        "out": recipe.folder,
        "limits": {"latency_ms": 0.2, "size_bytes": 2e6},
        "limit_as": "hard",
        "weights": None,
        "costs": None,
        "budget_s": 90.0,
        "steps": None,
        "trials": None,
        "space": "mobilenet",
        "method": None,
        "batch": 1,
        "elastic": {},
        "uniform": (),
        "length": None,
        "strategy": "auto",
        "retrain": None,
        "cost_weight": None,
        "image_size": (24, 32),
        "seed": 3,
        "threads": 2,
        "trial_timeout_s": 10.0,
        "baselines": True,
        "force": False,
    }
    assert recipe.closed
    shown = capsys.readouterr()
    assert re.search(r"^ +\d+ s  training$", shown.out, re.MULTILINE)
    assert not shown.err


def test_search_hands_over_the_method(recipe: Recipe) -> None:
    line = "search digits --method gdas --space micro --inherit --cost-weight 0.5"
    assert main([*line.split(), "--out", str(recipe.folder)]) == 0
    named = ("method", "space", "retrain", "cost_weight")
    assert [recipe.called[name] for name in named] == ["gdas", "micro", False, 0.5]
    assert main(["search", "digits", "--retrain", "--out", str(recipe.folder), "--force"]) == 0
    assert recipe.called["retrain"] is True


@pytest.mark.parametrize(
    ("options", "work"),
    [([], (180.0, None, None)), (["--steps", "5", "--trials", "7"], (None, 5, 7))],
)
def test_work_is_a_budget_or_counts(recipe: Recipe, options: list[str], work: tuple[object, ...]) -> None:
    assert main(["search", "digits", *options, "--out", str(recipe.folder)]) == 0
    assert (recipe.called["budget_s"], recipe.called["steps"], recipe.called["trials"]) == work


def test_the_front_is_printed_with_the_best_marked(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "digits", "--out", str(recipe.folder)]) == 0
    shown = capsys.readouterr().out
    members = [path.name for path in (recipe.folder / "pareto").iterdir()]
    assert members
    assert all(f" {name} " in shown for name in members)
    assert [line.startswith(" * ") for line in shown.splitlines() if "us - " in line].count(True) == 1
    assert f"{len(members)} verified on onnxruntime, all within 200 us\n" in shown
    assert f"report: {recipe.folder / 'report.html'}" in shown
    assert f"next: python {recipe.folder / 'best' / 'use.py'} IMAGE" in shown
    assert (recipe.folder / "report.html").is_file()


def test_without_a_best_network_there_is_none_to_use(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(recipe.folder, "verified")
    assert not (recipe.folder / "best").exists()
    assert main(["report", str(recipe.folder)]) == 0
    shown = capsys.readouterr().out
    assert "report: " in shown and "next: " not in shown


def test_search_may_resume_or_replace_a_run(recipe: Recipe) -> None:
    write_run(recipe.folder)
    assert main(["search", "digits", "--out", str(recipe.folder)]) == 2
    assert not recipe.called
    assert main(["search", "digits", "--out", str(recipe.folder), "--resume"]) == 0
    assert recipe.called["subject"] == recipe.folder
    assert main(["search", "digits", "--out", str(recipe.folder), "--force"]) == 0
    assert recipe.called["force"] is True


def test_search_with_resume_starts_where_there_is_no_run(recipe: Recipe) -> None:
    assert main(["search", "digits", "--out", str(recipe.folder), "--resume"]) == 0
    assert recipe.called["subject"] == "digits"


def test_resume_hands_over_the_extra_time(recipe: Recipe) -> None:
    write_run(recipe.folder)
    assert main(["resume", str(recipe.folder), "--budget", "+3min"]) == 0
    assert (recipe.called["subject"], recipe.called["budget_s"]) == (recipe.folder, 180.0)
    assert recipe.called["on_progress"]


def test_report_prints_its_path_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    assert main(["report", str(tmp_path / "a"), "--open-path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'report.html'}\n"


def test_report_of_a_run_that_was_stopped_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a")
    for path in (tmp_path / "a" / "pareto").iterdir():
        (path / "measurement.json").unlink()
    assert main(["report", str(tmp_path / "a")]) == 0
    assert "0 verified" in capsys.readouterr().out


WIDEST = Measured("onnxruntime", 0.0765, 0.0746, 0.0811, 1.0, 1.0, limit_ms=0.2, within_limit=True, size_mb=0.0235)


def printed(record: Record) -> str:
    console = Console(width=80, file=io.StringIO())
    print_front(console, record, Path("runs/a"), Path("runs/a/report.html"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def record(*found: Measured) -> Record:
    networks = [Network(f"{i:012x}", Architecture({"i": i}), (one,)) for i, one in enumerate(found)]
    run = {"targets": [{"name": "onnxruntime"}]}
    return Record("a", run, front=tuple(networks), best=networks[0] if networks else None, why="It is best.")


def test_the_widest_front_fits_a_narrow_terminal() -> None:
    shown = printed(record(WIDEST))
    assert " *   000000000000   100.00 %   100.00 %   76.5 us   74.6 us - 81.1 us   23.5 kB" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([WIDEST, WIDEST], "2 verified on onnxruntime, all within 200 us"),
        (
            [WIDEST, replace(WIDEST, within_limit=False, limits=(("size_bytes", 2e4, 2.35e4),))],
            "2 verified on onnxruntime, 1 of them (!) not within 200 us, 20 kB",
        ),
        (
            [replace(WIDEST, limit_ms=None, limits=(("macs", 1e7, 1.0), ("joules", 0.5, 0.1)))],
            "1 verified on onnxruntime, all within 10M MACs, joules 0.5",
        ),
        ([replace(WIDEST, limit_ms=None, within_limit=None)], "1 verified on onnxruntime; no limit was asked for"),
        ([], "0 verified on onnxruntime"),
    ],
)
def test_the_verdict_is_one_line(found: list[Measured], verdict: str) -> None:
    shown = printed(record(*found)).splitlines()
    assert shown[0] == verdict
    assert sum(line.startswith(" !") for line in shown) == ("(!)" in verdict)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    kinds = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", kinds[:1], kinds[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_measure_prints_a_row_for_each_file(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sartor.cli.measuring.SECONDS", 0.05)
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    assert main(["measure", str(model), str(other)]) == 0
    shown = capsys.readouterr().out
    assert f"measured on onnxruntime, in {model.parent}\n" in shown
    assert "  model.onnx  " in shown
    assert "  other.onnx  " in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_measure_shows_the_good_and_tells_the_bad(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sartor.cli.measuring.SECONDS", 0.05)
    bad = model.with_name("bad.onnx")
    bad.write_bytes(b"no model")
    assert main(["measure", str(model), str(bad)]) == 2
    shown = capsys.readouterr()
    assert "  model.onnx  " in shown.out
    assert "bad.onnx" in shown.err
    assert len(shown.err.splitlines()) == 1


def test_measure_takes_the_networks_of_a_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sartor.cli.measuring.SECONDS", 0.05)
    run = model.parent / "run"
    for name in ("abc", ".half-written"):
        (run / "pareto" / name).mkdir(parents=True)
        (run / "pareto" / name / "model.onnx").write_bytes(model.read_bytes())
    (run / "run.json").write_text(json.dumps({"format": 1, "stages": {}}))
    assert main(["measure", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"in {run / 'pareto'}\n" in shown
    assert "  abc  " in shown
    assert "half-written" not in shown


def test_measurements_are_named_by_what_tells_them_apart() -> None:
    one = Measurement(1, 1, 1, 1, 1, 1, 9, 3, 1, 1, 0.1, noisy=True, notes=("hot",), size_mb=1, memory_mb=None)
    console = Console(width=80, file=io.StringIO())
    print_measurements(console, {"/a/[b].onnx": one, "c/d.onnx": replace(one, notes=())}, "torch")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.startswith("measured on torch\n")
    assert " ~   /a/[b].onnx  " in shown
    assert " ~   c/d.onnx  " in shown
    assert shown.endswith("~ noisy: measure again when the machine is idle\n/a/[b].onnx: hot\n")
