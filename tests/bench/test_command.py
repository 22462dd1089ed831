"""`sartor bench`: what it hands over, what it prints, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sartor import bench as package
from sartor.cli import main
from sartor.cli.benching import is_scoreboard, read_budgets, read_pairs, split_names, tables
from sartor.tables import NAMES

LINE = "bench --space nasbench201 --objective cifar10 --queries 6 --seeds 2 --workers 1"


def run(*options: str, out: Path) -> int:
    return main([*LINE.split(), *options, "--out", str(out)])


@pytest.fixture
def done(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out"
    assert run("--strategies", "random_search,regularized_evolution", "--device", "pixel3", out=out) == 0
    capsys.readouterr()
    return out


def test_a_comparison_from_start_to_end(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in done.iterdir()} >= {"report.html", "report.json", "queries.parquet", "run.json"}
    assert is_scoreboard(done) and not is_scoreboard(done.parent)
    assert main(["report", str(done)]) == 0
    shown = capsys.readouterr().out
    assert "nasbench201: cifar10 and latency on pixel3: 6 queries, 2 seeds" in shown
    assert "random_search" in shown and "not met: Enough seeds" in shown and str(done / "report.html") in shown
    assert main(["report", str(done), "--open-path"]) == 0
    assert capsys.readouterr().out == f"{done / 'report.html'}\n"


def test_resume_runs_nothing_twice_and_takes_more(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in done.glob("trials/*/*.json")}
    assert main(["resume", str(done)]) == 0
    assert {path: path.stat().st_mtime_ns for path in done.glob("trials/*/*.json")} == kept
    assert main(["resume", str(done), "--budget", "+1min"]) == 2
    assert "is a scoreboard" in capsys.readouterr().err
    more = LINE.replace("--queries 6", "--queries 8").split()
    assert main([*more, "--device", "pixel3", "--strategies", "random_search", "--resume", "--out", str(done)]) == 0
    assert json.loads((done / "run.json").read_text())["queries"] == 8
    assert run("--resume", "--strategies", "random_search", out=done) == 2
    assert "was started with name" in capsys.readouterr().err


def test_a_strategy_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine_for_command.py"
    own.write_text("from sartor.strategies.random_search import RandomSearch\nclass Mine(RandomSearch):\n    pass\n")
    assert run("--strategy", f"{own}:Mine", "--tuned", "Mine=nothing at all", out=tmp_path / "out") == 0
    entries = json.loads((tmp_path / "out" / "run.json").read_text())["entries"]
    assert [(one["name"], one["tuned"]) for one in entries] == [("Mine", "nothing at all")]
    assert main(["resume", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--space nasbench102", "no table is named 'nasbench102': there is nasbench201"),
        ("--objective cifar11", "did you mean 'cifar10'"),
        ("--device pixel4", "did you mean 'pixel3'"),
        ("--signal cifar10_val21", "did you mean 'cifar10_val12'"),
        ("--cost flop_m", "did you mean 'flops_m'"),
        ("--strategies nsga3", "did you mean 'nsga2'"),
        ("--strategies ,", "names nothing"),
        ("--strategy missing.py:Mine", "there is no file missing.py"),
        ("--queries 0", "--queries"),
        ("--seeds 0", "greater than or equal to 1"),
        ("--seeds many", "valid integer"),
        ("--latency 5ms", "needs a device"),
        ("--latency fast --device pixel3", "fast"),
        ("--tuned nsga2", "write it as NAME=TEXT"),
        ("--tuned nsga2=x --strategies random_search", "'nsga2' takes no part"),
        ("--fidelity 6%=cifar10_val12", "write 0.06=COLUMN"),
        ("--fidelity 2=cifar10_val12 --signal cifar10", "is not between 0 and 1"),
        ("--fast", "--fast"),
        ("--resume --force", "give one of them"),
        ("--device pixel3 --latency 0.000001ms", "no architecture"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    options: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options.split(), out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("sartor: ") and told in error
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_taken_folder(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(out=done) == 2
    assert "or replace it with --force" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert run(out=tmp_path / "other") == 2
    assert "holds files that no search wrote" in capsys.readouterr().err


def test_an_interrupt_tells_how_to_resume(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "bench", interrupted)
    assert run("--resume", "--strategies", "random_search", "--device", "pixel3", out=done) == 130
    assert f"sartor resume {done}" in capsys.readouterr().err


def test_what_python_started_python_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.toy_bench import toy

    package.bench(toy(), package.named_entries(["random_search"]), queries=3, seeds=1, out=tmp_path / "out")
    assert main(["resume", str(tmp_path / "out")]) == 2
    assert "was started from Python" in capsys.readouterr().err


def test_every_table_is_listed_with_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert {*tables()} == {*NAMES}
    assert main(["list", "tables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*tables()] and all(len(line.split()) > 3 for line in lines)


def test_lists_are_read_as_written() -> None:
    assert split_names("all, nsga2,") == ["all", "nsga2"]
    assert read_pairs("--tuned", ["a=b=c", " d = e "]) == {"a": "b=c", "d": "e"}
    assert read_budgets(["0.06=cifar10_val12"]) == {0.06: "cifar10_val12"}
