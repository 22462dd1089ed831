# SPDX-License-Identifier: Apache-2.0
"""`sartor profile`: what it hands to the recipe, what it prints, and the mistakes that it names."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sartor.cli import main
from sartor.recipes import profile_device as recipe
from sartor.recipes.profile_device import profile_device
from simulated_device import SimulatedTarget, use_quick_models


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "cpu.costs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load_target", lambda text, threads: SimulatedTarget(noise=0.05))
        use_quick_models(patch)
        made: dict[str, Any] = {"target": "simulated", "space": "mobilenet", "out": path, "size": 8, "channels": 1}
        profile_device(**made, samples=12, tests=8)
    return path


class Recipe:
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.called: dict[str, Any] = {}

    def __call__(self, *given: object, **named: Any) -> None:
        self.called = {"given": given, **named}
        named["on_progress"]("measuring")
        raise KeyboardInterrupt


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    made = Recipe()
    monkeypatch.setattr(recipe, "profile_device", made)
    monkeypatch.setattr(recipe, "adapt_profile", made)
    return made


def test_it_hands_over_what_was_asked(stand_in: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "profile --target onnxruntime --space mobilenet --size 8x12 --channels 1 --budget 2min --tests 9 --seed 3"
    assert main([*line.split(), "--out", str(tmp_path / "a.costs")]) == 130
    stand_in.called.pop("on_progress")
    assert stand_in.called == {
        "given": (), "target": "onnxruntime", "space": "mobilenet", "out": tmp_path / "a.costs", "size": (8, 12),
        "channels": 1, "classes": 10, "budget_s": 120.0, "samples": None, "tests": 9, "seed": 3, "threads": 1,
        "force": False,
    }  # fmt: skip
    shown = capsys.readouterr()
    assert "measuring" in shown.out
    assert shown.err == "sartor: stopped; the same command continues\n"


def test_it_adapts_an_older_profile(stand_in: Recipe, file: Path, tmp_path: Path) -> None:
    line = f"profile --from {file} --target torch --from-target simulated --samples 12 --out {tmp_path / 'b.costs'}"
    assert main(line.split()) == 130
    stand_in.called.pop("on_progress")
    assert stand_in.called == {
        "given": (file,), "target": "torch", "out": tmp_path / "b.costs", "samples": 12, "source": "simulated",
        "space": None, "seed": 0, "threads": 1, "force": False,
    }  # fmt: skip


def test_a_file_is_printed(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = file.read_bytes()
    assert main(["profile", str(file), "--target", "simulated", "--space", "mobilenet"]) == 0
    assert file.read_bytes() == before
    shown = capsys.readouterr().out
    for text in ("simulated: mobilenet, 1x8x8, 10 classes", "Spearman", "flops", "parameters", "again", "roofline"):
        assert text in shown
    assert "12 to learn from, 8 to test on" in shown
    assert "fingerprint: processor simulated" in shown
    table = shown.partition("* chosen")[0]
    assert "*" in table and max(map(len, table.splitlines())) <= 80


def test_an_unfinished_profile_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sartor.costs.ledger import Ledger

    space = {"name": "toy", "channels": 1, "size": [8, 8], "classes": 2}
    Ledger(tmp_path / "a.costs").begin("torch", {}, space, {})
    assert main(["profile", str(tmp_path / "a.costs")]) == 0
    assert "not finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("profile", "name the device and the file"),
        ("profile --target torch --out {folder}/a.costs", "name the space"),
        ("profile --target torch --space nothing --out {folder}/a.costs", "no space is named"),
        ("profile --target nothing --space mobilenet --out {folder}/a.costs", "no target is named"),
        ("profile --target torch --space mobilenet --out {folder}", "is a folder"),
        (
            "profile --from a.costs --target torch --out {folder}/a.costs --size 8 --budget 1min",
            "--size, --budget cannot",
        ),
        ("profile --from {folder}/no.costs --target torch --out {folder}/a.costs", "no such file"),
        ("profile {folder}/no.costs", "no such file"),
        ("profile {file} --out {folder}/b.costs", "leave out --out, or the file"),
        (
            "profile {file} --samples 9 --budget 1min --size 8 --force --seed 3 --threads 2 --from-target torch",
            "leave out --from-target, --size, --budget, --samples, --seed, --threads, --force, or the file",
        ),
        ("profile --target torch --space mobilenet --out {folder}/b.costs --from-target a", "that --from names"),
        ("profile {folder}/text", "is no cost store"),
        ("profile {folder}/log.sqlite", "is a database of something else"),
        ("profile {file} --target torch", "its profiles: simulated on mobilenet"),
        ("profile --target torch --space mobilenet --out {folder}/text", "is no cost store"),
    ],
)
def test_mistakes(line: str, said: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    with sqlite3.connect(tmp_path / "log.sqlite") as database:
        database.execute("CREATE TABLE cats(name TEXT)")
    assert main(line.format(folder=tmp_path, file=file).split()) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
