# SPDX-License-Identifier: Apache-2.0
"""The process that runs models for an agent, here without a process of its own."""

from __future__ import annotations

import io
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sartor.deploy.onnx import export_onnx
from sartor.targets import _worker, agent
from sartor.targets._protocol import GREETING, frame, read
from sartor.targets._runtimes import RUNTIMES, reason
from sartor.targets._worker import Worker
from sartor.targets.energy import MeterError
from toy_networks import SmallNet, noise


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "net.onnx"
    export_onnx(SmallNet(), noise(1), path)
    return path


class Meter:
    """A counter that rises by a joule whenever it is read."""

    source, window_s = "RAPL", 0.0

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        self.total += 1.0
        return self.total


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_is_tried_loaded_and_timed(runtime: str, net: Path) -> None:
    pytest.importorskip(runtime)
    worker = Worker(RUNTIMES[runtime](1), 1)
    place = {"path": str(net), "shape": [1, 1, 8, 8]}
    assert worker.answer({"do": "probe", **place})["call_s"] > 0
    assert worker.answer({"do": "load", **place}) == {}
    assert worker.answer({"do": "load", "path": str(net), "shape": []}) == {}
    assert worker.answer({"do": "rounds", "seconds": 0.01, "seed": 0})["notes"] == []
    for index in (0, 1):
        result = worker.answer({"do": "result", "index": index})
        assert len(result["seconds"]) == len(result["calibration"][0]) >= 6
        assert result["energy"] is None
    with pytest.raises(ValueError, match=r"\(1, 9\) does not fit input"):
        worker.answer({"do": "load", "path": str(net), "shape": [1, 9]})
    with pytest.raises(ValueError, match="'index' is 2"):
        worker.answer({"do": "result", "index": 2})


def test_energy_is_measured_where_it_is_counted(monkeypatch: pytest.MonkeyPatch, net: Path) -> None:
    worker = Worker(RUNTIMES["onnxruntime"](1), 1)
    worker.answer({"do": "load", "path": str(net), "shape": []})
    monkeypatch.setattr("sartor.targets.energy.IDLE_S", 0.0)
    monkeypatch.setattr(_worker, "rapl", Meter)
    worker.answer({"do": "rounds", "seconds": 0.01, "seed": 0})
    energy = worker.answer({"do": "result", "index": 0})["energy"]
    assert energy is None or energy["source"] == "RAPL"

    def unreadable() -> Meter:
        raise MeterError("only root may read it")

    monkeypatch.setattr(_worker, "rapl", unreadable)
    notes = worker.answer({"do": "rounds", "seconds": 0.01, "seed": 0})["notes"]
    assert notes == ["energy not measured: only root may read it"]


def test_openvino_says_its_reason_last() -> None:
    assert (
        reason(RuntimeError("Exception from src/core.cpp:3:\n\nCheck failed\n  no such operator \n"))
        == "no such operator"
    )
    assert reason(RuntimeError(" first \n second")) == "first"
    assert reason(MemoryError()) == "MemoryError"


def test_the_process_answers_until_its_input_ends(monkeypatch: pytest.MonkeyPatch, net: Path) -> None:
    requests = frame({"do": "probe", "path": str(net), "shape": []}) + frame({"do": "probe", "path": "no.onnx"})
    limits: list[Any] = []
    monkeypatch.setattr(_worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, sizes: limits.append(sizes))
    answers = spoken(monkeypatch, requests, "onnxruntime", "1", "50")
    assert answers[0]["fingerprint"]["runtime"] == "onnxruntime"
    assert answers[0]["limited"] == bool(limits)
    assert answers[1]["call_s"] > 0
    assert "'shape' is no list" in answers[2]["error"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (told,) = spoken(monkeypatch, b"", "onnxruntime", "1", "0")
    assert told["error"].endswith("pip install onnxruntime there")


def spoken(monkeypatch: pytest.MonkeyPatch, requests: bytes, *arguments: str) -> list[dict[str, Any]]:
    out = io.BytesIO()
    monkeypatch.setattr(_worker, "private_stdout", lambda: out)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(requests)))
    _worker.main(arguments)
    return answers(out.getvalue())


def answers(said: bytes) -> list[dict[str, Any]]:
    stream, found = io.BytesIO(said), []
    while stream.tell() < len(said):
        found.append(read(stream))
    return found


def test_the_command_of_the_agent_greets_and_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = io.BytesIO()
    (tmp_path / "requests").write_bytes(frame({"do": "model", "bytes": 3, "shape": []}) + frame({"do": "nothing"}))
    monkeypatch.setattr(agent, "private_stdout", lambda: out)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with (tmp_path / "requests").open("rb") as file:
        monkeypatch.setattr("os.dup", lambda number: file.fileno())
        monkeypatch.setattr("os.fdopen", lambda number, mode: file)
        assert agent.main(["--networks", "3"]) == 0
    assert out.getvalue().startswith(GREETING)
    first, second = answers(out.getvalue().removeprefix(GREETING))
    assert first == {"index": 0}
    assert "answers describe" in second["error"]
