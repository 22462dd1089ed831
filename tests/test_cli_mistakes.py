"""Wrong inputs, kind by kind: each is told in one line, with exit code 2, and nothing of the user's is touched."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sartor.cli import main
from sartor.costs import CostStore
from sartor.protocols import Measurement
from sartor.recipes import _profile_bench, profiling
from sartor.recipes.job import Job
from sartor.run import Run
from sartor.targets import load_target
from sartor.task import load_task

Argv = list[str]
Make = Callable[[Path], Argv]


def asked(*options: str, data: str = "digits", out: str = "out") -> Make:
    """Return a maker of a small search into a fresh folder, with `{tmp}` in the options filled in."""

    def make(tmp: Path) -> Argv:
        filled = [option.replace("{tmp}", str(tmp)) for option in options]
        return ["search", data.replace("{tmp}", str(tmp)), *filled, "--out", str(tmp / out)]

    return make


def given(*argv: str) -> Make:
    return lambda tmp: [part.replace("{tmp}", str(tmp)) for part in argv]


def with_npz(**changes: object) -> Make:
    """Return a maker of a search on an archive of 8x8 images that is right but for `changes`."""

    def make(tmp: Path) -> Argv:
        rng = np.random.default_rng(0)
        arrays: dict[str, object] = {
            "x_train": rng.integers(0, 255, (40, 8, 8), dtype=np.uint8),
            "y_train": np.arange(40) % 4,
            "x_test": rng.integers(0, 255, (20, 8, 8), dtype=np.uint8),
            "y_test": np.arange(20) % 4,
        }
        arrays |= changes
        kept = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        np.savez(tmp / "data.npz", **kept)  # type: ignore[arg-type]
        return asked(data=str(tmp / "data.npz"))(tmp)

    return make


def with_file(name: str, content: bytes, then: Make) -> Make:
    def make(tmp: Path) -> Argv:
        path = tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return then(tmp)

    return make


def with_folder(name: str, then: Make) -> Make:
    def make(tmp: Path) -> Argv:
        (tmp / name).mkdir(parents=True)
        return then(tmp)

    return make


def half_an_archive() -> bytes:
    whole = io.BytesIO()
    np.savez(whole, x_train=np.zeros((40, 8, 8), np.uint8))
    return whole.getvalue()[: len(whole.getvalue()) // 2]


def a_database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE cats(name TEXT)")
    return connection.serialize()


def before_its_search(tmp: Path) -> None:
    """Leave a run in `a` that was stopped while it trained, with made-up latencies of three networks."""
    arguments = {
        "data": "digits", "given": False, "target": ["onnxruntime"], "limits": {}, "budget_s": None, "steps": 1,
        "trials": 1, "space": "mobilenet", "strategy": "random_search", "seed": 0, "threads": 1,
        "trial_timeout_s": None, "image_size": None,
    }  # fmt: skip
    plan = {"steps": 1, "finetune_steps": 0, "batch_size": 8, "trials": 1, "verified": 1, "training_threads": 1}
    target = load_target("onnxruntime", threads=1)
    device = {"name": target.name, "fingerprint": target.fingerprint()}
    record = {"arguments": arguments, "plan": plan, "space": {}, "task": {}, "targets": [device]}
    with Run.create(tmp / "a", record) as run:
        archs = Job(run, load_task("digits", seed=0), (target,), print).hand_made().values()
        with run.stage("profile"):
            measured = [(arch, measurement(0.1 * i)) for i, arch in enumerate(archs, start=1)]
            CostStore(tmp / "a" / "latency.costs").add(target.fingerprint(), measured)


def measurement(ms: float) -> Measurement:
    return Measurement(ms, ms, ms, ms, ms, ms, 10, 5, ms, ms, 0.0, noisy=False, notes=(), size_mb=ms, memory_mb=None)


def with_foreign_trials(tmp: Path) -> Argv:
    before_its_search(tmp)
    (tmp / "a" / "run.sqlite").write_bytes(a_database())
    return ["resume", str(tmp / "a")]


RECORD = {"format": 1, "created": "", "arguments": {}, "seed": 0, "stages": {}}
A_RUN = json.dumps(RECORD).encode()
ASKED = json.dumps({**RECORD, "arguments": {"data": "digits", "given": False, "seed": 0}}).encode()
NEWER = json.dumps({**RECORD, "format": 999}).encode()
NAN_IMAGES = np.full((40, 8, 8), np.nan, np.float32)
PICKLED = np.array([{"a": 1}] * 40, dtype=object)
STRATEGY = b"class Mine:\n    def ask(self, rng): ...\n"

WRONG: dict[str, tuple[Make, str]] = {
    # methods
    "unknown method": (asked("--method", "dart"), "no method is named 'dart'; did you mean 'darts'"),
    "a method that searches nothing": (asked("--method", "supervised"), "leaves nothing to search; those that do: "),
    "a method of another kind": (with_file("m.py", STRATEGY, asked("--method", "{tmp}/m.py:Mine")), "no method step"),
    "retrained after bignas": (asked("--retrain"), "is for methods of differentiable search"),
    "a cost weight with bignas": (asked("--cost-weight", "2"), "is for methods of differentiable search"),
    "a cost weight below 0": (asked("--method", "darts", "--cost-weight", "-1"), "give a number from 0"),
    "weights for another method": (asked("--method", "darts", "--weights", "{tmp}"), "'darts' trains its own"),
    # pretrained networks; what needs transformers is in test_pretrained.py
    "model and space": (asked("--model", "a", "--space", "mobilenet"), "so --space does not go with it"),
    "model of no name": (asked("--model", ""), "names no model"),
    "elastic without a model": (asked("--elastic", "heads=2"), "--elastic is of a pretrained network"),
    "uniform without a model": (asked("--uniform", "heads"), "--uniform is of a pretrained network"),
    "length without a model": (asked("--length", "8"), "--length is of a pretrained network"),
    "elastic of no list": (asked("--model", "a", "--elastic", "heads"), "expected ROLE=COUNTS or shares"),
    "elastic of no number": (asked("--model", "a", "--elastic", "heads=few"), "as heads=6,9,12"),
    "batch zero": (asked("--batch", "0"), "greater than or equal to 1"),
    # what is asked
    "latency of no number": (asked("--latency", "fast"), "for example 0.2ms"),
    "latency of unknown unit": (asked("--latency", "5parsecs"), "unknown unit 'parsecs'"),
    "latency without unit": (asked("--latency", "5"), "no unit"),
    "latency negative": (asked("--latency", "-5ms"), "negative"),
    "latency zero": (asked("--latency", "0ms"), "zero"),
    "latency NaN": (asked("--latency", "nan ms"), "not finite"),
    "latency missing": (given("search", "digits", "--out", "{tmp}/out", "--latency"), "requires an argument"),
    "latency swallowing an option": (asked("--latency"), "latency '--out' is not understood"),
    "size of unknown unit": (asked("--size", "2Mbit"), "for example 2MB"),
    "size below a byte": (asked("--size", "0.1B"), "less than one byte"),
    "macs negative": (asked("--macs", "-1M"), "negative"),
    "params zero": (asked("--params", "0"), "zero"),
    "target unknown": (asked("--target", "onnxrutime"), "did you mean 'onnxruntime'"),
    "target of unknown precision": (asked("--target", "onnxruntime:int7"), "no target is named"),
    "limit out of reach": (asked("--latency", "1ns", "--steps", "1", "--trials", "1"), "smallest"),
    "params out of reach": (asked("--params", "1", "--steps", "1", "--trials", "1"), "smallest"),
    # how much work
    "budget zero": (asked("--budget", "0min"), "zero"),
    "budget without unit": (asked("--budget", "3"), "for example 3min"),
    "budget and steps": (asked("--budget", "3min", "--steps", "5", "--trials", "5"), "one of them"),
    "steps without trials": (asked("--steps", "5"), "go together"),
    "trials without steps": (asked("--trials", "5"), "go together"),
    "steps zero": (asked("--steps", "0", "--trials", "5"), "greater than or equal to 1"),
    "trial timeout of no number": (asked("--trial-timeout", "soon"), "not understood"),
    # how it is searched
    "seed of no number": (asked("--seed", "lucky"), "valid integer"),
    "seed negative": (asked("--seed", "-1"), "greater than or equal to 0"),
    "seed out of range": (asked("--seed", "9" * 30), "less than or equal to 4294967295"),
    "image size of no number": (asked("--image-size", "large"), "HxW"),
    "image size zero": (asked("--image-size", "32x0"), "HxW"),
    "image size negative": (asked("--image-size", "-32"), "HxW"),
    "threads zero": (asked("--threads", "0"), "greater than or equal to 1"),
    "threads of a fraction": (asked("--threads", "1.5"), "valid integer"),
    "space unknown": (asked("--space", "mobilnet"), "did you mean 'mobilenet'"),
    "strategy unknown": (asked("--strategy", "luck"), "built in: "),
    "own file missing": (asked("--space", "{tmp}/none.py:Net"), "no file"),
    "own file without class": (asked("--space", "{tmp}/none.py"), "path.py:Class"),
    "own class missing": (
        with_file("own_a.py", STRATEGY, asked("--strategy", "{tmp}/own_a.py:Yours")),
        "Mine",
    ),
    "own file with a syntax error": (
        with_file("own_b.py", b"class Mine\n", asked("--strategy", "{tmp}/own_b.py:Mine")),
        "line 1",
    ),
    "own file that raises": (
        with_file("own_c.py", b"\n1 / 0\n", asked("--strategy", "{tmp}/own_c.py:Mine")),
        "line 2",
    ),
    "own class of another kind": (
        with_file("own_d.py", STRATEGY, asked("--strategy", "{tmp}/own_d.py:Mine")),
        "tell",
    ),
    "own target of another kind": (
        with_file("own_e.py", STRATEGY, asked("--target", "{tmp}/own_e.py:Mine")),
        "measure",
    ),
    # data
    "data unknown": (asked(data="digitz"), "no such file"),
    "data missing": (asked(data="{tmp}/none.npz"), "none.npz"),
    "data of unknown format": (with_file("a.xyz", b"1,2", asked(data="{tmp}/a.xyz")), "format"),
    "text without a model": (with_file("a.txt", b"1,2", asked(data="{tmp}/a.txt")), "name a --model for it"),
    "archive empty": (with_file("a.npz", b"", asked(data="{tmp}/a.npz")), "a.npz"),
    "archive half-written": (
        with_file("a.npz", half_an_archive(), asked(data="{tmp}/a.npz")),
        "a.npz",
    ),
    "archive of other keys": (with_npz(x_train=None, images=np.zeros((4, 8, 8))), "x_train"),
    "archive with pickles": (with_npz(x_train=PICKLED), "x_train"),
    "images with NaN": (with_npz(x_train=NAN_IMAGES), "nan"),
    "images of wrong shape": (with_npz(x_train=np.zeros(40, np.uint8)), "shape"),
    "images fewer than labels": (with_npz(y_train=np.arange(39) % 4), "39"),
    "labels negative": (with_npz(y_train=np.arange(40) % 4 - 1), "label"),
    "labels out of range": (with_npz(y_test=np.arange(20) % 4 + 90), "label"),
    "labels of fractions": (with_npz(y_train=np.arange(40) / 7), "label"),
    "one class only": (with_npz(y_train=np.zeros(40, int), y_test=np.zeros(20, int)), "class"),
    "one sample of a class": (with_npz(y_train=(np.arange(40) == 0) * 1, y_test=np.arange(20) % 2), "class"),
    "folder without images": (with_folder("photos", asked(data="{tmp}/photos")), "photos"),
    "image unreadable": (
        with_file("photos/cat/a.png", b"no image", asked(data="{tmp}/photos")),
        "photos",
    ),
    # the run folder
    "out missing": (given("search", "digits"), "--out"),
    "out is a run": (with_file("out/run.json", A_RUN, asked()), "sartor resume"),
    "out is a file": (with_file("out", b"", asked()), "is a file"),
    "out below a file": (with_file("file", b"", asked(out="file/out")), "cannot be written"),
    "out is not writable": (given("search", "digits", "--out", "/proc/sartor/out"), "cannot be written"),
    "out holds other files": (with_file("out/thesis.tex", b"", asked()), "no search wrote"),
    "force on other files": (with_file("out/thesis.tex", b"", asked("--force")), "no search wrote"),
    "force on another program's record": (
        with_file("out/run.json", b'{"command": "rm"}', asked("--force")),
        "no search wrote",
    ),
    "force and resume": (asked("--force", "--resume"), "one of them"),
    # the other commands
    "no command": (given(), "Missing command"),
    "unknown command": (given("serach", "digits"), "Did you mean 'search'"),
    "unknown option": (asked("--fast"), "--fast"),
    "unknown option of the program": (given("--fast", "list"), "--fast"),
    "abbreviated option": (asked("--lat", "5ms"), "--latency"),
    "two data sets": (asked("digits"), "extra argument"),
    "resume nothing": (given("resume", "{tmp}/none"), "no such run folder"),
    "resume what never began": (with_file("a/run.lock", b"", given("resume", "{tmp}/a")), "nothing to resume"),
    "resume with other options": (
        with_file("out/run.json", ASKED, asked("--resume", "--seed", "1")),
        "was started with --seed 0",
    ),
    "resume what is no run": (with_folder("a", given("resume", "{tmp}/a")), "no run folder"),
    "resume a broken record": (
        with_file("a/run.json", b'{"format": 1, ', given("resume", "{tmp}/a")),
        "broken",
    ),
    "resume a newer format": (
        with_file("a/run.json", NEWER, given("resume", "{tmp}/a")),
        "upgrade",
    ),
    "resume a record without arguments": (
        with_file("a/run.json", A_RUN, given("resume", "{tmp}/a")),
        "run.json does not say ",
    ),
    "resume another program's database": (with_foreign_trials, "run.sqlite cannot be read as a trial log"),
    "resume with a bad budget": (given("resume", "{tmp}", "--budget", "+-3min"), "negative"),
    "report on nothing": (given("report", "{tmp}/none"), "none"),
    "report on what is no run": (with_folder("a", given("report", "{tmp}/a")), "run.json"),
    "measure nothing": (given("measure"), "MODEL"),
    "measure a missing file": (given("measure", "{tmp}/none.onnx"), "no such file"),
    "measure another kind of file": (
        with_file("a.txt", b"", given("measure", "{tmp}/a.txt")),
        "no .onnx file",
    ),
    "measure what is no ONNX": (with_file("a.onnx", b"no model", given("measure", "{tmp}/a.onnx")), "a.onnx"),
    "measure an ONNX file with torch": (
        with_file("a.onnx", b"", given("measure", "{tmp}/a.onnx", "--target", "torch")),
        "model.pt2",
    ),
    "measure what is no run": (with_folder("a", given("measure", "{tmp}/a")), "no run folder"),
    "measure a run without networks": (
        with_file("a/run.json", A_RUN, given("measure", "{tmp}/a")),
        "no exported network",
    ),
    "measure on an unknown target": (given("measure", "a.onnx", "--target", "toaster"), "toaster"),
    "list an unknown family": (given("list", "networks"), "networks"),
}


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a limit can be met is known from a few hasty measurements as well."""
    monkeypatch.setattr(profiling, "SAMPLES", 3)
    monkeypatch.setattr(_profile_bench, "SECONDS", 0.01)


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize(("make", "told"), [pytest.param(*WRONG[kind], id=kind) for kind in WRONG])
def test_a_mistake_is_one_line_and_exit_code_2(
    make: Make, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = make(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.suffix != ".pyc"}
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("sartor: ")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1
    assert told in error
    assert before <= {*tmp_path.rglob("*")}, "something of the user's is gone"
