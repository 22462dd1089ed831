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
from sartor.cli.asked import limits_of
from sartor.deploy.parity import ExportError
from sartor.run import Run
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


@pytest.mark.parametrize("verb", ["", "search", "resume", "report", "measure", "profile", "bench", "list"])
def test_help_of_every_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*([verb] if verb else []), "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: sartor")
    assert not shown.err


@pytest.mark.parametrize(
    "argv",
    [
        "search --help",
        "profile --help",
        "bench --help",
        "list",
        "--version",
        "search digits --latency no --out x",
        "resume",
    ],
)
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
    assert all(f"{family}:" in shown for family in (*names.FAMILIES, "tables"))


def test_arguments_arrive_in_the_units_of_the_recipe() -> None:
    line = "search digits --latency 200us --size 2MB --macs 10M --params 1k --budget 1h30min --out runs/x"
    line += " --latency torch=2ms --energy torch=5mJ --memory 20MB"
    found = parse(line.split()).params
    assert limits_of(found) == {
        "latency_ms": 0.2, "latency_ms@torch": 2.0, "energy_mj@torch": 5.0, "memory_mb": 20.0, "size_bytes": 2e6,
        "macs": 1e7, "params": 1e3,
    }  # fmt: skip
    assert (found["budget"], found["out"], found["target"]) == (5400.0, Path("runs/x"), ())
    assert parse(["resume", "runs/x", "--budget", "+3min"]).params["budget"] == 180.0


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("24x32", (24, 32))])
def test_an_image_size_is_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse(["search", "digits", "--out", "x", "--image-size", text]).params["image_size"] == size


def test_usage_errors_are_exceptions_until_they_are_told() -> None:
    with pytest.raises(UsageError, match="see `sartor search --help`"):
        parse(["search", "digits", "--fast", "--out", "x"])


def test_the_families_offered_are_those_there_are() -> None:
    (family,) = (part for part in get_args(get_args(arguments.Family)[0]) if part is not NoneType)
    assert get_args(family) == (*names.FAMILIES, "tables")


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
    (tmp_path / "run.lock").touch()
    assert not commands.is_run(tmp_path), "the search was killed before it wrote its record"
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.json").write_text("[1]")
    assert not commands.is_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    assert not commands.is_run(tmp_path)
    (tmp_path / "run.lock").touch()
    assert commands.is_run(tmp_path), "a damaged record is still a run's"
    (tmp_path / "run.json").write_bytes(A_RUN)
    assert commands.is_run(tmp_path)


LEFT_BY_A_KILL = [("run.lock",), ("run.json.tmp",), ("run.lock", "run.json.tmp")]


@pytest.mark.parametrize("left", LEFT_BY_A_KILL)
@pytest.mark.parametrize("option", [(), ("--resume",), ("--force",)])
def test_a_search_that_never_began_is_started_again(
    left: tuple[str, ...], option: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in left:
        (tmp_path / name).write_text("1")
    begun: list[str] = []

    def recipe(data: str, *, out: Path, force: bool, **named: object) -> Run:
        begun.append(data)
        return Run.create(out, {}, force=force)

    monkeypatch.setattr(recipes, "search_for_device", recipe)
    monkeypatch.setattr(commands, "conclude", lambda folder: None)
    assert main(["search", "digits", "--out", str(tmp_path), *option]) == 0
    assert begun == ["digits"]
    assert commands.is_run(tmp_path)


@pytest.mark.parametrize("left", LEFT_BY_A_KILL)
def test_a_search_that_never_began_is_not_resumed(
    left: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in left:
        (tmp_path / name).touch()
    assert main(["resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "nothing to resume" in error
    assert "start the search again" in error


STARTED = {
    "data": "digits", "given": False, "target": ["onnxruntime"], "limits": {"latency_ms": 0.2}, "budget_s": 150.0,
    "limit_as": "hard",
    "steps": None, "trials": None, "space": "mobilenet", "strategy": "nsga2", "seed": 0, "threads": 1,
    "trial_timeout_s": None, "image_size": [24, 32],
}  # fmt: skip


@pytest.fixture
def resumed(a_run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Search again in the folder of a run that was started with STARTED; tell whether it was continued."""

    def search(*argv: str, **changes: object) -> bool:
        (a_run / "run.json").write_text(json.dumps({**json.loads(A_RUN), "arguments": {**STARTED, **changes}}))
        continued: list[Path] = []
        monkeypatch.setattr(commands, "again", lambda folder, budget: continued.append(folder))
        assert main(["search", *argv, "--out", str(a_run), "--resume"]) == (0 if continued else 2)
        return bool(continued)

    return search


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--latency 200us --target onnxruntime --seed 0 --image-size 24x32",
        "--target onnxruntime --latency 0.2ms --budget 150s",
        "--budget 1h",
    ],
)
def test_the_same_search_continues_its_run(options: str, resumed: Callable[..., bool]) -> None:
    assert resumed("digits", *options.split())


@pytest.mark.parametrize(("options", "warned"), [("", 0), ("--budget 150s", 0), ("--budget 30min", 1)])
def test_a_budget_that_is_not_used_is_said(
    options: str, warned: int, resumed: Callable[..., bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resumed("digits", *options.split())
    said = capsys.readouterr().out.splitlines()
    assert len(said) == warned
    assert all(f"sartor resume {tmp_path} --budget +TIME" in line for line in said)


def test_what_is_spelt_otherwise_is_the_same(resumed: Callable[..., bool], tmp_path: Path) -> None:
    assert resumed("./data/x.npz", data="data/x.npz")
    assert resumed("digits", "--image-size", "32", image_size=32)
    assert resumed("digits", "--steps", "5", "--trials", "7", steps=5, trials=7)
    assert resumed("digits", data="my task", given=True), "the resume says that it needs the task itself"
    (tmp_path / "run.json").write_text(A_RUN.decode())
    assert commands.is_run(tmp_path)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("other.npz", "was started with data digits, and other.npz is asked for now"),
        ("digits --target torch", "with --target onnxruntime, and torch is"),
        ("digits --latency 0.3ms", "with --latency 0.2ms, and 0.3ms is"),
        ("digits --size 2MB --seed 4", "without --size, and 2000000B is"),
        ("digits --macs 10M", "without --macs, and 10000000 is"),
        ("digits --latency 0.2ms --latency onnxruntime=1ms", "and 0.2ms and onnxruntime=1ms is"),
        ("digits --target torch", "with --target onnxruntime, and torch is"),
        ("digits --limit-as penalty", "with --limit-as hard, and penalty is"),
        ("digits --seed 3", "with --seed 0, and 3 is"),
        ("digits --space mobilenet --strategy random_search", "with --strategy nsga2, and random_search is"),
        ("digits --steps 9 --trials 9", "without --steps, and 9 is"),
        ("digits --trial-timeout 2min", "without --trial-timeout, and 120s is"),
        ("digits --image-size 32", "with --image-size 24x32, and 32x32 is"),
        ("digits --threads 2", "with --threads 1, and 2 is"),
    ],
)
def test_another_search_does_not_continue_a_run(
    argv: str, told: str, resumed: Callable[..., bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not resumed(*argv.split())
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert told in error
    assert f"sartor resume {tmp_path}" in error
    assert "--force" in error
