# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contracts.target_contract import TargetContract
from sartor.deploy.parity import ExportError
from sartor.protocols import Artefact
from sartor.targets import cuda, tensorrt
from sartor.targets.artefacts import TargetError
from sartor.targets.tensorrt import TensorRtTarget
from targets.fake_cuda import FakeCard
from toy_networks import SmallNet, noise

ON_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('tensorrt')", reason="no TensorRT"),
]
SCRIPT = """
from sartor.protocols import Artefact
from sartor.targets.tensorrt import TensorRtTarget
from pathlib import Path
y = TensorRtTarget().runner(Artefact(Path(path), (1, *x.shape[1:]), ()))(x)"""


class TestTensorRt(TargetContract):
    target, script, runs = TensorRtTarget(seconds=0.01), SCRIPT, cuda.RUNS
    pytestmark = ON_CARD

    def test_equal_networks_give_equal_files(self, *_: Any) -> None:
        """Kernels are chosen by timing them, so they need not."""


class FakeTensorRt(SimpleNamespace):
    """What the target calls, for a network that doubles (2, 3); an engine is the bytes "engine"."""

    __version__ = "10.9"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    def __init__(self, card: FakeCard, *, parses: bool = True, builds: bool = True) -> None:
        super().__init__(card=card, parses=parses, builds=builds, shapes=[], cleared=[], addresses={}, streams=[])

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None: ...

    def Builder(self, logger: Any) -> Any:
        profile = SimpleNamespace(set_shape=lambda *given: self.shapes.append(given))
        config = SimpleNamespace(clear_flag=self.cleared.append, add_optimization_profile=lambda _: 0)
        network = SimpleNamespace(get_input=lambda _: SimpleNamespace(name="x"))
        return SimpleNamespace(
            logger=logger, create_network=lambda flags: network, create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda *_: b"engine" if self.builds else None,
        )  # fmt: skip

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        reason = SimpleNamespace(desc=lambda: "no such operator")
        return SimpleNamespace(parse=lambda model: self.parses, get_error=lambda _: reason)

    def Runtime(self, logger: Any) -> Any:
        def opened(data: bytes) -> Any:
            names = ["y", "x"]
            return None if data != b"engine" else SimpleNamespace(
                num_io_tensors=2, get_tensor_name=lambda index: names[index],
                get_tensor_mode=lambda name: "input" if name == "x" else "output",
                create_execution_context=lambda: self,
            )  # fmt: skip

        return SimpleNamespace(deserialize_cuda_engine=opened)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return name == "x" and shape == (2, 3)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (2, 3)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        self.card.seconds += 2e-3
        self.tensors["y"].copy_(2 * self.tensors["x"])
        return True


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    card = FakeCard().install(monkeypatch)
    fake, made, empty = FakeTensorRt(card), list[torch.Tensor](), torch.empty

    def on_card(shape: tuple[int, ...], *, device: str) -> torch.Tensor:
        assert device == "cuda"
        made.append(empty(shape))
        fake.tensors = dict(zip(("x", "y"), made[-2:], strict=False))
        return made[-1]

    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch, "empty", on_card)
    monkeypatch.setattr(cuda, "_kernel", lambda: lambda: setattr(card, "seconds", card.seconds + 1e-3))
    monkeypatch.setattr(cuda, "_meter", lambda: None)
    return fake


def artefact(folder: Path, content: bytes = b"engine", shape: tuple[int, ...] = (2, 3)) -> Artefact:
    path = folder / "model.engine"
    path.write_bytes(content)
    return Artefact(path, shape, (path,))


def test_an_engine_is_built_for_the_shape_of_the_example_without_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt(FakeCard().install(monkeypatch))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    made = TensorRtTarget().prepare(SmallNet(), (noise(2),), [], tmp_path / "new")
    assert made.path.read_bytes() == b"engine"
    assert [*made.path.parent.iterdir()] == [made.path]
    assert fake.shapes == [("x", *[(2, 1, 8, 8)] * 3)]
    assert fake.cleared == ["tf32"]


@pytest.mark.parametrize(
    ("lacking", "reason"), [("parses", "cannot read the network: no such operator"), ("builds", "cannot build")]
)
def test_a_network_that_it_does_not_take_is_an_export_error(
    lacking: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt(FakeCard().install(monkeypatch), **{lacking: False})
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with pytest.raises(ExportError, match=reason):
        TensorRtTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)


def test_engines_run_on_the_stream_that_is_timed(runtime: FakeTensorRt, tmp_path: Path) -> None:
    (one,) = TensorRtTarget(seconds=0.01).measure([artefact(tmp_path)])
    assert one.latency_ms == pytest.approx(2.0, rel=1e-3)
    assert set(runtime.streams) == {42}
    assert set(runtime.addresses) == {"x", "y"}
    assert one.fingerprint["runtime"] == "tensorrt"


def test_an_engine_is_run_for_any_number_of_samples(runtime: FakeTensorRt, tmp_path: Path) -> None:
    inputs = torch.arange(15.0).reshape(5, 3)
    found = TensorRtTarget().runner(artefact(tmp_path))(inputs.numpy())
    assert torch.equal(torch.from_numpy(found), 2 * inputs)


@pytest.mark.parametrize(
    ("content", "shape", "reason"),
    [(b"else", (2, 3), "TensorRT refuses it"), (b"engine", (4, 3), r"for another shape than \(4, 3\)")],
)
def test_engines_that_do_not_fit_are_refused(
    content: bytes, shape: tuple[int, ...], reason: str, runtime: FakeTensorRt, tmp_path: Path
) -> None:
    missing = Artefact(tmp_path / "none.engine", (2, 3), ())
    with pytest.raises(TargetError, match=reason) as caught:
        TensorRtTarget(seconds=0.01).measure([artefact(tmp_path, content, shape), missing])
    assert "none.engine: no such file" in caught.value.reasons[1]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCard().install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"TensorRT is missing .*sartor\[tensorrt\]"):
        tensorrt.TensorRtTarget().fingerprint()
