# SPDX-License-Identifier: Apache-2.0
"""The agent: what it does with networks that are not well behaved, and with clients that are not."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sartor.targets import _runtimes
from sartor.targets._onnx_file import reason_against
from sartor.targets._peer import Inbox
from sartor.targets._protocol import CHUNK, FRAME, GREETING, ProtocolError, clean, frame, parse, read, rows, shape
from sartor.targets.agent import RUNTIMES, Agent, Limits, main

WORKER = Path(__file__).with_name("scripted_worker.py")


def small(*nodes: onnx.NodeProto, weights: Sequence[onnx.TensorProto] = (), dtype: int = TensorProto.FLOAT) -> bytes:
    """An ONNX model of (1, 4) numbers, by default without any operator but Relu."""
    values = [helper.make_tensor_value_info(name, dtype, (1, 4)) for name in ("x", "y")]
    nodes = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [*weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def endless() -> bytes:
    """A model whose loop has a condition that stays true, and no number of turns."""
    flag = numpy_helper.from_array(np.array(True), "go")
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["v"], ["w"])], "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, (1, 4)),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, (1, 4)),
        ],
    )  # fmt: skip
    return small(helper.make_node("Loop", ["", "go", "x"], ["y"], body=body), weights=[flag])


def greedy() -> bytes:
    """A model of some hundred bytes that asks for 40 GB."""
    sizes = numpy_helper.from_array(np.array([100_000, 100_000], np.int64), "sizes")
    return small(
        helper.make_node("ConstantOfShape", ["sizes"], ["big"]),
        helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
        weights=[sizes],
    )


def external(where: str = "../../etc/passwd") -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, where)
    tensor.ClearField("raw_data")
    return tensor


class Client:
    """An agent in a process of its own, spoken to in lock-step."""

    def __init__(self, *options: str) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "sartor.targets.agent", *options]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, cast(BinaryIO, self.process.stdout)
        assert self.stdout.read(len(GREETING)) == GREETING

    def ask(self, **request: Any) -> dict[str, Any]:
        self.stdin.write(frame(request))
        self.stdin.flush()
        while "working" in (reply := read(self.stdout)):
            pass
        return reply

    def send(self, data: bytes, sizes: Sequence[int] = ()) -> dict[str, Any]:
        reply = self.ask(do="model", bytes=len(data), shape=list(sizes))
        return reply if "error" in reply else self.ask(do="data", data=base64.b64encode(data).decode())

    def measure(self, limit: float = 20.0) -> dict[str, Any]:
        return self.ask(do="measure", threads=1, seconds=0.01, seed=0, limit=limit)

    def close(self) -> int:
        self.stdin.close()
        code = self.process.wait(timeout=20)
        self.stdout.close()
        return code


@pytest.fixture
def client() -> Iterator[Client]:
    one = Client("--memory", "500", "--networks", "8", "--size", "1")
    yield one
    assert one.close() == 0


def test_networks_that_hang_eat_memory_or_are_none_cost_no_other(client: Client) -> None:
    good = small()
    for data in (good, endless(), greedy(), b"#!/bin/sh\nreboot\n", small(weights=[external()]), good):
        assert client.send(data) == {"left": 0}
    first, hangs, eats, script, outside, last = client.measure(limit=1.5)["reasons"]
    assert first == last == ""
    assert hangs == "its process failed: it took longer than 1.5 s and was stopped"
    assert "alloc" in eats
    assert script.startswith("not an ONNX file")
    assert outside == "its weights are in another file: save them inside the model"
    for index in (0, 1):
        result = client.ask(do="result", index=index)
        assert len(result["seconds"]) == len(result["calibration"][0]) >= 6
        assert result["memory_mb"] >= 0
    assert "error" in client.ask(do="result", index=2)


def test_what_a_runtime_refuses_is_said_without_the_places_of_the_device(client: Client) -> None:
    client.send(small(helper.make_node("Frobnicate", ["x"], ["y"])))
    client.send(small(helper.make_node("Abs", ["x"], ["y"]), dtype=TensorProto.INT64))
    client.send(small(), sizes=[1, 5])
    unknown, whole, misfit = client.measure()["reasons"]
    assert "Frobnicate" in unknown
    assert "/tmp" not in unknown
    assert whole == "input 'x' holds no floating-point numbers: only these can be made up"
    assert misfit == "(1, 5) does not fit input 'x' of shape (1, 4)"


def test_limits_and_requests_that_make_no_sense_are_answered(client: Client) -> None:
    assert (
        "1.2 MB of networks exceed the agent's limit of 1 MB"
        in client.ask(do="model", bytes=1_200_000, shape=[])["error"]
    )
    assert "no complete model" in client.measure()["error"]
    assert client.ask(do="model", bytes=10, shape=[])["index"] == 0
    assert "the model before is not complete" in client.ask(do="model", bytes=10, shape=[])["error"]
    assert "more data than was announced" in client.ask(do="data", data=base64.b64encode(bytes(11)).decode())["error"]
    assert "not base 64" in client.ask(do="data", data="&&")["error"]
    assert "answers describe" in client.ask(do="eval", code="1 + 1")["error"]
    assert "'threads' is no whole number" in client.ask(do="describe", threads="1")["error"]
    client.ask(do="data", data=base64.b64encode(bytes(10)).decode())
    for _ in range(7):
        client.ask(do="model", bytes=1, shape=[])
        client.ask(do="data", data="AA==")
    assert "8 networks are the limit" in client.ask(do="model", bytes=1, shape=[])["error"]


@pytest.mark.parametrize("way", ["close", "SIGTERM", "SIGKILL"])
def test_what_an_agent_runs_ends_with_it_however_that_ends(way: str, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "sartor.targets.agent"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.read(len(GREETING))
    data = endless()
    for request in (
        {"do": "model", "bytes": len(data), "shape": []},
        {"do": "data", "data": base64.b64encode(data).decode()},
        {"do": "measure", "threads": 1, "seconds": 1.0, "seed": 0, "limit": 100.0},
    ):
        process.stdin.write(frame(request))
    process.stdin.flush()
    answers = cast(BinaryIO, process.stdout)
    for _ in range(2):
        read(answers)
    assert read(answers) == {"working": True}
    workers = children(process.pid)
    assert workers
    if way == "close":
        process.stdin.close()
    else:
        process.send_signal(signal.Signals[way])
    process.wait(timeout=20)
    for stream in (process.stdin, process.stdout):
        stream.close()
    while [pid for pid in workers if is_running(pid)]:  # the test's time limit ends this, if nothing else does
        os.sched_yield()
    assert bool([*tmp_path.glob("sartor-*")]) == (way == "SIGKILL")


def is_running(pid: str) -> bool:
    """Tell whether a process exists and is more than a memory of one that ended."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_an_agent_that_nobody_asks_ends_as_a_process_too() -> None:
    one = Client("--idle", "0.1")
    assert read(one.stdout) == {"error": "nothing was asked for 0.1 s"}
    assert one.process.wait(timeout=20) == 1
    one.stdin.close()
    one.stdout.close()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def agent(data: bytes, folder: Path, *script: str, **limits: Any) -> tuple[int, list[dict[str, Any]]]:
    """Serve `data` in this process, with a scripted worker; return the exit code and the answers."""
    out = io.BytesIO()
    worker = [sys.executable, "-S", str(WORKER), *script] if script else ["/no/such/worker"]
    code = Agent(Inbox(io.BytesIO(data)), out, folder, lambda _: worker, Limits(**limits)).serve()
    out.seek(0)
    answers = []
    while out.tell() < len(out.getvalue()):
        answers.append(read(out))
    return code, answers


def conversation(networks: int) -> bytes:
    data = small()
    one = frame({"do": "model", "bytes": len(data), "shape": []})
    one += frame({"do": "data", "data": base64.b64encode(data).decode()})
    return one * networks + frame({"do": "measure", "threads": 1, "seconds": 1, "seed": 0, "limit": 60})


@pytest.mark.parametrize(
    ("script", "reasons"),
    [
        (["probe 1 crash"], ["", "its process failed: it was killed by SIGKILL", ""]),
        (["probe 0 error"], ["no", "", ""]),
        (["probe 0 slow"], ["it takes 9 s, and 90 times that exceeds the limit of 60 s", "", ""]),
        (["load 2 crash"], ["", "", "it does not run beside the others: its process failed: it was killed by SIGKILL"]),
        (["load 0 error"], ["it does not run beside the others: no", "", ""]),
        (["rounds crash"], ["the measurement failed: its process failed: it was killed by SIGKILL"] * 3),
        (["rounds garbage"], ["the measurement failed: its process failed: it sends a JSON list"] * 3),
        ([f"{do} {index} crash" for do in ("probe", "load") for index in (0, 1)], None),
    ],
)
def test_one_process_dies_and_the_others_go_on(script: list[str], reasons: list[str] | None, tmp_path: Path) -> None:
    code, answers = agent(conversation(3), tmp_path, *script)
    assert code == 0
    found = answers[-1]["reasons"]
    if reasons is None:
        assert [bool(reason) for reason in found] == [True, True, False]
        return
    for said, expected in zip(found, reasons, strict=True):
        assert said.startswith(expected)
        assert bool(said) == bool(expected)


def test_a_worker_that_cannot_be_started_is_an_answer(tmp_path: Path) -> None:
    _, answers = agent(conversation(1) + frame({"do": "describe", "threads": 1}), tmp_path)
    assert answers[-2]["reasons"] == ["the device cannot start a process: No such file or directory"]
    assert "cannot start a process" in answers[-1]["error"]


def test_an_agent_that_nobody_asks_ends(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    out = io.BytesIO()
    with os.fdopen(readable, "rb") as stream, os.fdopen(writable, "wb"):
        inbox = Inbox(stream)
        assert Agent(inbox, out, tmp_path, lambda _: [], Limits(idle_s=0.05)).serve() == 1
    inbox.thread.join()
    assert b"nothing was asked for 0.05 s" in out.getvalue()


words = st.sampled_from(["do", "threads", "bytes", "shape", "data", "seconds", "seed", "limit", "index"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
    | st.sampled_from(["describe", "model", "data", "measure", "result", "AAAA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
plausible = st.fixed_dictionaries(
    {"do": st.sampled_from(["describe", "model", "data", "measure", "result"])},
    optional={
        "threads": st.integers(-1, 3) | values, "bytes": st.integers(-1, 9) | values, "shape": values,
        "data": st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode()) | values,
        "seconds": st.just(0.1) | values, "seed": st.just(0) | values, "limit": st.just(1) | values,
        "index": st.integers(-2, 2) | values,
    },
)  # fmt: skip
frames = (plausible | st.dictionaries(words, values, max_size=5)).map(frame)
streams = st.lists(frames | st.binary(max_size=20), max_size=8).map(b"".join)


@given(streams | st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_whatever_comes_in_is_answered_or_ends_it(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        code, answers = agent(data, Path(folder))
        assert code in (0, 1)
        assert {path.suffix for path in Path(folder).iterdir()} <= {".onnx"}
    known = {"error", "index", "left", "reasons"}
    assert all(known & set(answer) for answer in answers)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_in_the_process_ends_by_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.bytes(int(rng.integers(0, 200_000)))
    data = [noise, b"[" * 5000, frame({"do": "describe"}) + noise, (FRAME).to_bytes(4, "big") + b"[" * FRAME][seed]
    command = [sys.executable, "-m", "sartor.targets.agent"]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode in (0, 1)
    assert done.stdout.startswith(GREETING)
    assert not done.stderr


@given(st.binary(max_size=80), st.binary(max_size=4))
@settings(deadline=None, max_examples=200)
def test_frames_are_read_or_refused(data: bytes, head: bytes) -> None:
    for stream in (head + data, len(data).to_bytes(4, "big") + data):
        try:
            assert isinstance(read(io.BytesIO(stream)), dict)
        except (ProtocolError, EOFError) as error:
            assert "\n" not in str(error)


@given(st.binary(max_size=60), st.binary(max_size=30))
@settings(deadline=None, max_examples=100)
def test_an_inbox_gives_messages_and_then_says_why_no_more(noise: bytes, data: bytes) -> None:
    inbox = Inbox(io.BytesIO(noise + GREETING + data), GREETING)
    with pytest.raises((EOFError, ProtocolError)):
        while True:
            assert isinstance(inbox.get(20.0), dict)
    with pytest.raises((EOFError, ProtocolError)):  # and does so whenever it is asked
        inbox.get(0.0)
    inbox.thread.join()


@given(st.dictionaries(st.text(), values))
def test_what_is_sent_is_what_is_read(message: dict[str, Any]) -> None:
    assert read(io.BytesIO(frame(message))) == message


@given(st.text())
def test_what_is_shown_steers_no_terminal(said: str) -> None:
    assert clean(said).isprintable()
    assert len(clean(said)) <= 1000


def test_what_is_no_number_is_refused() -> None:
    for text in ("1e999", "NaN", "-Infinity", "9" * 5000, '"1"', "true", "null", "{}"):
        with pytest.raises(ProtocolError):
            rows(parse(f'{{"a": [[{text}]]}}'.encode()), "a", most_rows=1, most_columns=1)
    with pytest.raises(ProtocolError, match="is too long"):
        frame({"a": "x" * FRAME})
    with pytest.raises(ValueError, match="JSON compliant"):
        frame({"a": float("nan")})
    assert len(frame({"do": "data", "data": base64.b64encode(bytes(CHUNK)).decode()})) < FRAME
    assert shape({"shape": [1, 3]}, "shape") == (1, 3)


def models_with(tensor: onnx.TensorProto) -> dict[str, onnx.ModelProto]:
    """Every place of an ONNX model that can hold a tensor."""
    model = onnx.load_from_string(small())
    found: dict[str, onnx.ModelProto] = {}
    for place in ("initializer", "sparse", "attribute", "tensors", "graph", "function", "training"):
        one = onnx.ModelProto()
        one.CopyFrom(model)
        attribute = one.graph.node[0].attribute.add(name="value")
        inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
        match place:
            case "initializer":
                one.graph.initializer.append(tensor)
            case "sparse":
                one.graph.sparse_initializer.add().values.CopyFrom(tensor)
            case "attribute":
                attribute.t.CopyFrom(tensor)
            case "tensors":
                attribute.tensors.append(tensor)
            case "graph":
                attribute.g.CopyFrom(inner)
            case "function":
                one.functions.add(name="f", domain="d").node.append(inner.node[0])
            case "training":
                one.training_info.add().algorithm.CopyFrom(inner)
        found[place] = one
    return found


@pytest.mark.parametrize("place", models_with(numpy_helper.from_array(np.ones(1, np.float32))))
def test_weights_in_another_file_are_found_wherever_they_are_named(place: str, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    inside, outside = (numpy_helper.from_array(np.ones(4, np.float32), "w"), external("/etc/passwd"))
    inside.data_location = TensorProto.DEFAULT
    file.write_bytes(models_with(inside)[place].SerializeToString())
    assert reason_against(file) == ""
    file.write_bytes(models_with(outside)[place].SerializeToString())
    assert reason_against(file) == "its weights are in another file: save them inside the model"


def test_a_tag_that_readers_understand_differently_is_refused(tmp_path: Path) -> None:
    """Field 0x2000000e, which a reader that keeps 32 bits takes for 14, the place of a tensor's data."""
    file = tmp_path / "a.onnx"
    tag, number = bytearray(), (0x2000000E << 3) | 0
    while number > 127:
        tag.append(number & 127 | 128)
        number >>= 7
    file.write_bytes(bytes([*tag, number, 1]))
    assert "is too large" in reason_against(file)


def test_a_model_that_stands_for_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(small(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")))
    assert reason_against(file) == "it refers to a compiled model in another file"
    file.write_bytes(b"")
    assert reason_against(file) == "the file is empty"
    file.write_bytes(b"\x08\x09")
    assert reason_against(file) == "not an ONNX file (it has no graph)"


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_no_file_is_too_odd_to_be_looked_into(tmp_path_factory: Any, data: bytes, place: int, byte: int) -> None:
    file = tmp_path_factory.getbasetemp() / "odd.onnx"
    whole = bytearray(small(weights=[external()]))
    whole[place % len(whole)] = byte
    for content in (data, bytes(whole)):
        file.write_bytes(content)
        assert isinstance(reason_against(file), str)


def test_the_command_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "Measure ONNX networks on this device" in capsys.readouterr().out


def test_help_needs_no_library_at_all() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'onnxruntime', 'onnx']))\n"
        "import sartor.targets.agent as agent; agent.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--runtime {onnxruntime,openvino}" in done.stdout
    assert RUNTIMES == tuple(_runtimes.RUNTIMES)
