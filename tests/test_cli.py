"""The command line: arguments, exit codes, signals, and that help costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

import sartor
from sartor import names, recipes
from sartor.cli import UsageError, arguments, commands, main, parse
from sartor.deploy.parity import ExportError
from sartor.targets.artefacts import TargetError

A_RUN = json.dumps({"format": 1, "created": "", "arguments": {}, "seed": 0, "stages": {}}).encode()


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["search", "hf:someone/photos", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'sartor[hf]'" in error
    assert len(error.splitlines()) == 1


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("argv", [["search", "digits"], ["search", "digits", "--latency", "1"], ["fly"]])
def test_a_mistake_in_a_process_of_its_own(argv: list[str]) -> None:
    done = python("-m", "sartor", *argv)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("verb", ["", "search", "resume", "report", "measure", "list"])
def test_help_of_every_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*([verb] if verb else []), "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: sartor")
    assert not shown.err


@pytest.mark.parametrize("argv", ["search --help", "list", "--version", "search digits --latency no --out x", "resume"])
def test_what_is_light_imports_neither_torch_nor_numpy(argv: str) -> None:
    code = f"import sys, sartor.cli; sartor.cli.main({argv.split()!r}); print(sorted(sys.modules))"
    modules = python("-c", code).stdout.splitlines()[-1]
    assert "'torch'" not in modules
    assert "'numpy'" not in modules
    assert "'rich'" not in modules


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sartor {sartor.__version__}\n"


@pytest.mark.parametrize("family", names.FAMILIES)
def test_list_names_what_is_there(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", family]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*names.built_in(family)]
    assert all(len(line.split()) > 2 for line in lines), "every name has a title"


def test_list_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{family}:" in shown for family in names.FAMILIES)


def test_arguments_arrive_in_the_units_of_the_recipe() -> None:
    line = "search digits --latency 200us --size 2MB --macs 10M --params 1k --budget 1h30min --out runs/x"
    found = parse(line.split()).params
    assert (found["latency"], found["size"], found["macs"], found["params"]) == (0.2, 2_000_000, 1e7, 1000.0)
    assert (found["budget"], found["out"], found["target"]) == (5400.0, Path("runs/x"), "onnxruntime")
    assert parse(["resume", "runs/x", "--budget", "+3min"]).params["budget"] == 180.0


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("24x32", (24, 32))])
def test_an_image_size_is_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse(["search", "digits", "--out", "x", "--image-size", text]).params["image_size"] == size


def test_usage_errors_are_exceptions_until_they_are_told() -> None:
    with pytest.raises(UsageError, match="see `sartor search --help`"):
        parse(["search", "digits", "--fast", "--out", "x"])


def test_the_families_offered_are_those_there_are() -> None:
    (family,) = (part for part in get_args(get_args(arguments.Family)[0]) if part is not NoneType)
    assert get_args(family) == tuple(names.FAMILIES)


def raising(error: BaseException) -> Callable[..., None]:
    def recipe(*given: object, **named: object) -> None:
        raise error

    return recipe


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_bytes(A_RUN)
    return tmp_path


def test_an_interrupt_tells_how_to_resume(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "resume", raising(KeyboardInterrupt()))
    assert main(["resume", str(a_run)]) == 130
    assert capsys.readouterr().err == f"sartor: stopped; continue with `sartor resume {a_run}`\n"


def test_an_interrupt_before_the_run_began_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "search_for_device", raising(KeyboardInterrupt()))
    assert main(["search", "digits", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "sartor: stopped\n"


def test_an_interrupted_report_is_not_resumed(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sartor.report.write_report", raising(KeyboardInterrupt()))
    assert main(["report", str(a_run)]) == 130
    assert capsys.readouterr().err == "sartor: stopped\n"


def test_what_should_not_happen_is_one_line_and_a_log(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "resume", raising(KeyError("lost\nkey")))
    assert main(["resume", str(a_run)]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"details in {a_run / 'error.log'}" in error
    assert "Traceback" in (a_run / "error.log").read_text()


def test_debug_shows_where_an_error_came_from(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "resume", raising(ZeroDivisionError("by zero")))
    assert main(["resume", str(a_run), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_not_the_users_mistake(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(28, "No space left on device", "run.json")
    monkeypatch.setattr(recipes, "resume", raising(full))
    assert main(["resume", str(a_run)]) == 1
    assert capsys.readouterr().err.startswith("sartor: run.json: No space left on device; details in ")


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(11, "another process works on this run", "runs/a"),
        ExportError("the network cannot be exported: aten::strange"),
        TargetError("the runtime refuses the network: no kernel for Strange"),
        ModuleNotFoundError("this needs openvino; pip install 'sartor[openvino]'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_say_what_to_do_are_told_in_their_own_words(
    error: Exception, a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "resume", raising(error))
    assert main(["resume", str(a_run)]) == 2
    told = f"runs/a: {error.strerror}" if isinstance(error, OSError) else str(error)
    assert capsys.readouterr().err == f"sartor: {told}\n"
    assert not (a_run / "error.log").exists()


def test_a_library_that_is_broken_is_unexpected(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "resume", raising(ImportError("libstrange.so: not found")))
    assert main(["resume", str(a_run)]) == 1
    assert "ImportError: libstrange.so: not found; details in" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_process_with_130(number: signal.Signals) -> None:
    code = (
        "import os, sys; from sartor import cli, names\n"
        "sys.argv = ['sartor', 'list']\n"
        f"names.built_in = lambda family: os.kill(os.getpid(), {int(number)}) or input()\n"
        "cli.run()"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (130, "sartor: stopped\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "sartor", "list"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_told_from_other_folders(tmp_path: Path) -> None:
    assert not commands.is_run(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    assert not commands.is_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert not commands.is_run(tmp_path)
    (tmp_path / "run.lock").touch()
    assert commands.is_run(tmp_path), "a damaged record is still a run's"
    (tmp_path / "run.json").write_bytes(A_RUN)
    assert commands.is_run(tmp_path)
