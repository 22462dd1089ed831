# SPDX-License-Identifier: Apache-2.0
"""A remote target at the other end of an honest agent, and of agents that hang, die, lie and talk too much."""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.target_contract import TargetContract
from sartor import names
from sartor.own import absolute
from sartor.protocols import Artefact, Measurement
from sartor.recipes import search_for_device
from sartor.targets import load_target, remote
from sartor.targets.artefacts import TargetError
from sartor.targets.remote import RemoteTarget, from_text
from targets.scripted_agent import MACHINE, RESULT
from toy_networks import SmallNet, noise

AGENT = f"{sys.executable} -m sartor.targets.agent"
SCRIPTED = Path(__file__).with_name("scripted_agent.py")
# What a device has: numpy and a runtime. Each of these raises when it is imported.
ABSENT = ("torch", "onnx", "scipy", "sklearn", "moocore", "safetensors", "threadpoolctl", "matplotlib", "rich", "typer")


class TestRemote(TargetContract):
    target = RemoteTarget(AGENT, seconds=0.01)
    script = "import onnxruntime; y = onnxruntime.InferenceSession(path).run(None, {'input': x})[0]"


def scripted(**script: Any) -> RemoteTarget:
    command = shlex.join([sys.executable, "-S", str(SCRIPTED), json.dumps(script)])
    return RemoteTarget(command, silence_s=20.0, limit_s=20.0, pause_s=0.0)


def model(folder: Path, name: str = "net", size: int = 10) -> Artefact:
    path = folder / f"{name}.onnx"
    path.write_bytes(bytes(size))
    return Artefact(path, (1, 3, 4, 4), (path,))


def failure(target: RemoteTarget, folder: Path) -> str:
    with pytest.raises(TargetError) as caught:
        target.measure([model(folder), model(folder, "other")])
    assert caught.value.measurements == (None, None)
    assert [*caught.value.reasons] == [0, 1]
    said = str(caught.value)
    assert "\n" not in said
    assert said.count(str(SCRIPTED)) == 1  # once, for both networks
    assert all(said in reason for reason in caught.value.reasons.values())
    return said


def test_no_library_but_numpy_and_a_runtime_is_needed_on_the_device(tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ABSENT:
        (stubs / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')")
    local = RemoteTarget(AGENT, seconds=0.01)
    bare = RemoteTarget(f"env PYTHONPATH={stubs} {AGENT}", seconds=0.01)
    file = local.prepare(SmallNet(), (noise(1),), [], tmp_path)
    (one,) = bare.measure([file])
    assert one.latency_ms > 0
    assert one.fingerprint == {**bare.fingerprint(), "batch": "1", "shape": "1x8x8"}


def test_a_runtime_that_the_device_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no module of that name')")
    target = RemoteTarget(f"env PYTHONPATH={tmp_path} {AGENT} --runtime onnxruntime")
    with pytest.raises(TargetError, match=r"\(no module of that name\): pip install onnxruntime there"):
        target.measure([model(tmp_path)])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_numbers_are_those_of_the_target_on_this_machine(runtime: str) -> None:
    pytest.importorskip(runtime)
    here, there = load_target(runtime), load_target(f"remote:{AGENT} --runtime {runtime}")
    assert there.fingerprint() == here.fingerprint()
    assert there.file_name == "model.onnx"  # type: ignore[attr-defined]


def test_an_honest_agent_is_believed(tmp_path: Path) -> None:
    target = scripted(noise="Welcome to the board!\nLast login: never\n")
    one, other = target.measure([model(tmp_path), model(tmp_path, "large", size=1_100_000)])
    assert (one.latency_ms, one.runs, one.rounds, one.memory_mb) == (1.5, 12, 6, 1.5)
    assert (one.size_mb, other.size_mb) == (1e-5, 1.1)
    assert one.fingerprint["processor"] == "Abacus"
    assert one.fingerprint["shape"] == "3x4x4"
    assert target.measure([]) == []


def test_int8_is_told_by_the_fingerprint(tmp_path: Path) -> None:
    target = scripted()
    target.precision = "int8"
    assert target.measure([model(tmp_path)])[0].fingerprint["dtype"] == "int8"


def test_energy_is_told_if_the_device_counts_it(tmp_path: Path) -> None:
    energy = {"mj": 2.5, "cv": 0.01, "idle_w": 3.0, "source": "RAPL"}
    (one,) = scripted(result={"energy": energy}).measure([model(tmp_path)])
    assert one.energy_mj == 2.5
    assert "energy by RAPL, the whole device above 3 W when idle, within 1%" in one.notes


def test_what_the_agent_refuses_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    target = scripted(measure={"reasons": ["", "too\n\x1b[2Jbeautiful"], "doubts": ["busy"]})
    with pytest.raises(TargetError, match=r"other\.onnx: too \[2Jbeautiful") as caught:
        target.measure([model(tmp_path), model(tmp_path, "other"), Artefact(tmp_path / "none.onnx", (), ())])
    first, second, third = caught.value.measurements
    assert first is not None
    assert first.noisy
    assert first.notes[0] == "busy"
    assert second is third is None
    assert [*caught.value.reasons] == [1, 2]


def test_a_cut_connection_is_tried_again(tmp_path: Path) -> None:
    for action in ("die", "crash", "half"):
        target = scripted(first=str(tmp_path / action), measure=action)
        assert target.measure([model(tmp_path)])[0].latency_ms == 1.5


def test_silence_counts_as_a_cut_connection(tmp_path: Path) -> None:
    target = scripted(first=str(tmp_path / "hung"), result="hang")
    target.silence_s, target.attempts = 1.5, 5
    assert target.measure([model(tmp_path)])[0].latency_ms == 1.5


CUTS = {
    "die": r"it ended with exit code 3 \(out of beads\), in 2 attempts",
    "crash": "it was killed by SIGKILL, in 2 attempts",
    "half": "it ended with exit code 0, in 2 attempts",
}


@pytest.mark.parametrize("request_", ["greeting", "describe", "data", "measure", "result"])
def test_a_connection_that_stays_cut_is_a_failure_with_its_reason(request_: str, tmp_path: Path) -> None:
    target = scripted(**{request_: "die"})
    target.attempts = 2
    with pytest.raises(TargetError, match=CUTS["die"]):
        target.measure([model(tmp_path)])


@pytest.mark.parametrize("action", CUTS)
def test_however_it_is_cut(action: str, tmp_path: Path) -> None:
    target = scripted(measure=action)
    target.attempts = 2
    with pytest.raises(TargetError, match=CUTS[action]):
        target.measure([model(tmp_path)])


@pytest.mark.parametrize("where", ["greeting", "measure"])
def test_an_agent_that_hangs_is_given_up(where: str, tmp_path: Path) -> None:
    target = scripted(**{where: "hang"})
    target.silence_s, target.attempts = 0.3, 2
    assert "it was silent for 0.3 s, in 2 attempts" in failure(target, tmp_path)


def test_an_agent_that_says_for_ever_that_it_works_is_given_up(tmp_path: Path) -> None:
    assert "it sends too much" in failure(scripted(measure="beats"), tmp_path)


def test_a_measurement_has_an_end_whatever_the_agent_says(tmp_path: Path) -> None:
    target = scripted(model="slow beats")
    target.limit_s = 0.2
    assert "it did not answer 'model' within 0.2 s" in failure(target, tmp_path)


NOT_BELIEVED: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"measure": "garbage"}, "it sends text between the frames: 'Warn'"),
    "a flood": ({"measure": "flood"}, "it sends too much: a frame of 4294967295 bytes"),
    "a flood at first": ({"greeting": "flood"}, "it is no agent of this version"),
    "other JSON": ({"measure": "no json"}, "it sends no JSON"),
    "no object": ({"measure": "list"}, "a JSON list instead of an object"),
    "not a number": ({"measure": "nan"}, "NaN is no JSON"),
    "one outcome for two": ({"measure": {"reasons": [""]}}, "asked for 2 measurements and speaks of 1"),
    "three for two": ({"measure": {"reasons": [""] * 3}}, "'reasons' has 3 entries"),
    "a reason that is no text": ({"measure": {"reasons": [None, ""]}}, "'reasons' is no text"),
    "no fingerprint": ({"describe": {"fingerprint": []}}, "'fingerprint' is no object"),
    "half a fingerprint": ({"describe": {"fingerprint": {"cores": "1"}}}, "does not say processor, system, runtime"),
    "text for times": ({"result": {"seconds": "fast"}}, "'seconds' is no list"),
    "true for a time": ({"result": {"seconds": [[True, 1.0]] * 6}}, "'seconds' is no number"),
    "no time at all": ({"result": {"seconds": [[0.0, 1.0]] * 6}}, "a time that is not positive"),
    "negative time": ({"result": {"seconds": [[-1.0, 1.0]] * 6}}, "'seconds' is -1.0"),
    "rows of all lengths": ({"result": {"seconds": [[1.0], [1.0, 2.0]] * 3}}, "the rows differ in length"),
    "too few rounds": ({"result": {"seconds": [[1e-3]] * 5}}, "it measured 5 rounds"),
    "too many": ({"result": {"seconds": [[1e-3]] * 5000}}, "'seconds' has 5000 entries"),
    "another calibration": ({"result": {"calibration": [[1.0]]}}, "the calibration kernel in 1"),
    "repeats": ({"result": {"repeats": 0}}, "'repeats' is 0"),
    "half a repeat": ({"result": {"repeats": 1.5}}, "'repeats' is no whole number"),
    "settled": ({"result": {"settled": 1}}, "'settled' is neither true nor false"),
    "memory": ({"result": {"memory_mb": -1}}, "'memory_mb' is -1"),
    "energy": ({"result": {"energy": 3}}, "'energy' is no object"),
    "more time than passed": ({"result": {"seconds": [[50.0]] * 6}}, "it measured for 600 s, and only"),
    "its own limits": ({"model": {"error": "3 networks are the limit"}, "measure": "die"}, "3 networks are the limit"),
    "the wrong threads": ({"describe": {"fingerprint": {"threads": "8"}}}, "does not say processor"),
}


@pytest.mark.parametrize("case", NOT_BELIEVED)
def test_what_cannot_be_true_is_not_believed(case: str, tmp_path: Path) -> None:
    script, said = NOT_BELIEVED[case]
    with pytest.raises(TargetError) as caught:
        scripted(**script).measure([model(tmp_path), model(tmp_path, "other")])
    assert said in str(caught.value)
    assert caught.value.measurements == (None, None)


class Liar:
    """A peer that answers honestly but for some fields, which are anything."""

    def __init__(self, lies: dict[str, dict[str, object]]) -> None:
        self.lies, self.answers, self.left, self.count = lies, list[dict[str, object]](), 0, 0

    def send(self, message: Mapping[str, Any], timeout_s: float) -> None:
        do = message["do"]
        self.count += do == "model"
        self.left = message["bytes"] if do == "model" else 0 if do == "data" else self.left
        honest: dict[str, dict[str, object]] = {
            "describe": {"fingerprint": MACHINE}, "model": {"index": 0}, "data": {"left": 0},
            "measure": {"reasons": [""] * self.count, "doubts": [], "notes": []},
            "result": {**RESULT, "seconds": [[1e-9]] * 6},
        }  # fmt: skip
        self.answers.append({**honest[do], **self.lies.get(do, {})})

    def receive(self, timeout_s: float) -> dict[str, object]:
        return self.answers.pop(0)

    def close(self, *, kill: bool = False) -> None:
        self.answers.clear()


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("energy")
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
near = st.lists(st.lists(st.floats(), min_size=1, max_size=2), min_size=6, max_size=6)
energy = st.fixed_dictionaries({"mj": st.floats(), "cv": st.floats(), "idle_w": st.floats(), "source": st.text()})
lies = st.fixed_dictionaries(
    {},
    optional={
        "describe": st.fixed_dictionaries({"fingerprint": anything}),
        "data": st.fixed_dictionaries({"left": anything}),
        "measure": st.fixed_dictionaries({}, optional={"reasons": anything, "doubts": anything, "notes": anything}),
        "result": st.fixed_dictionaries(
            {},
            optional={
                "seconds": near | anything, "calibration": near.map(lambda rows: [[row[0] for row in rows]]) | anything,
                "cold": anything, "repeats": st.integers(-1, 3) | anything, "settled": anything,
                "memory_mb": anything, "energy": energy | anything, "error": st.text() | anything,
            },
        ),
    },
)  # fmt: skip


@given(lies)
@settings(deadline=None, max_examples=200)
def test_whatever_an_agent_says_there_are_numbers_or_a_reason(said: dict[str, dict[str, object]]) -> None:
    target = RemoteTarget("liar", attempts=1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "Peer", lambda command, greeting: Liar(said))
        try:
            found: Sequence[Measurement | None] = target.measure([model(Path(folder))])
        except TargetError as error:
            assert str(error).isprintable()
            found = error.measurements
    for one in found:
        if one is not None:
            numbers = (one.p10, one.latency_ms, one.p90, one.ci_low, one.ci_high, one.cv, one.memory_mb or 0.0)
            assert all(math.isfinite(value) and value >= 0 for value in numbers)
            assert all(note.isprintable() for note in one.notes)
            assert all((name + value).isprintable() for name, value in one.fingerprint.items())
            assert Measurement.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


def test_a_device_that_became_another_is_noticed(tmp_path: Path) -> None:
    target = scripted()
    target.measure([model(tmp_path)])
    target.command = scripted(describe={"fingerprint": {**target.fingerprint(), "processor": "Slide rule"}}).command
    target.name = f"remote:{target.command}"
    with pytest.raises(TargetError, match="processor was 'Abacus' and is 'Slide rule'; measure all again"):
        target.measure([model(tmp_path)])


def test_threads_are_those_asked_for() -> None:
    target = scripted()
    target.threads = 2
    with pytest.raises(TargetError, match="asked for 2 threads and says '1'"):
        target.fingerprint()


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="'no-such-command' cannot be run: No such file"):
        load_target("remote:no-such-command board").fingerprint()
    target = RemoteTarget(f"{sys.executable} -m no_such_module", attempts=1)
    with pytest.raises(TargetError, match=r"it ended with exit code 1 \(.*No module named no_such_module\)"):
        target.fingerprint()


def test_how_a_remote_target_is_written() -> None:
    target = load_target("remote:int8:ssh board 'my python' agent.py", threads=4)
    assert isinstance(target, RemoteTarget)
    assert (target.precision, target.threads, target.file_name) == ("int8", 4, "model.int8.onnx")
    assert target.name == "remote:int8:ssh board 'my python' agent.py"
    names.check("targets", target.name)
    assert absolute(target.name) == target.name
    assert from_text("remote:ssh board x").command == "ssh board x"
    for wrong, said in (("remote:", "names no command"), ("remote:int8: ", "names no command"), ("remote:'a", "quot")):
        with pytest.raises(ValueError, match=said):
            names.check("targets", wrong)
        with pytest.raises(ValueError, match=said):
            load_target(wrong)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="no precision 'int4'"):
        RemoteTarget("x", "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        RemoteTarget("x", attempts=0)
    with pytest.raises(ValueError, match="0 threads"):
        RemoteTarget("x", threads=0)
    with pytest.raises(ValueError, match="names no command"):
        RemoteTarget(" ")


def test_prepared_in_int8(tmp_path: Path) -> None:
    target = RemoteTarget(AGENT, "int8", seconds=0.01)
    file = target.prepare(SmallNet(), (noise(1),), [noise(8)], tmp_path)
    assert file.path.name == target.file_name
    assert target.runner(file)(noise(2).numpy()).shape == (2, 10)


@pytest.mark.slow
def test_a_search_for_another_machine(tmp_path: Path) -> None:
    here, there = "onnxruntime", f"remote:{AGENT}"
    run = search_for_device("digits", target=[here, there], steps=4, trials=6, baselines=False, out=tmp_path / "run")
    found = [json.loads(path.read_bytes()) for path in run.path.glob("pareto/*/measurement.json")]
    assert found
    for one in found:
        fingerprints = [one["targets"][name]["measurement"]["fingerprint"] for name in (here, there)]
        assert fingerprints[0] == fingerprints[1]
