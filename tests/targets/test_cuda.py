# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from contracts.target_contract import TargetContract
from sartor.deploy.program import load_pt2
from sartor.protocols import Artefact
from sartor.targets import cuda, load_target, torch_eager
from sartor.targets import onnxruntime as ort
from sartor.targets.artefacts import TargetError
from sartor.targets.cuda import EventClock
from sartor.targets.onnxruntime import OnnxRuntimeTarget
from sartor.targets.torch_eager import TorchTarget
from targets.fake_cuda import FakeCard
from toy_networks import SmallNet, noise

ON_CARD = [pytest.mark.gpu, pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no card")]
ORT = "import onnxruntime; y = onnxruntime.InferenceSession(path).run(None, {'input': x})[0]"
TORCH = "import torch; y = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()"


class OnCard(TargetContract):
    runs = cuda.RUNS
    pytestmark = ON_CARD


class TestTorchCuda(OnCard):
    target, script = TorchTarget(seconds=0.01, device="cuda"), TORCH


class TestTorchCudaCompiled(OnCard):
    target, script = TorchTarget(seconds=0.01, device="cuda", mode="compile"), TORCH


class TestOnnxRuntimeCuda(OnCard):
    target, script = OnnxRuntimeTarget(seconds=0.01, device="cuda"), ORT


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    return FakeCard().install(monkeypatch)


@pytest.mark.parametrize("name", ["torch:cuda", "torch:cuda-compile", "onnxruntime:cuda"])
def test_without_a_card_it_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="sees no CUDA device: check nvidia-smi"):
        load_target(name).measure([])


def test_the_clock_waits_for_the_card_and_stays_exact_for_hours(card: FakeCard) -> None:
    clock = EventClock()
    card.events.clear()
    card.seconds += 1e4
    assert clock() == pytest.approx(1e4)
    assert card.events == ["record", "synchronize"]
    start = clock()
    card.seconds += 1e-6
    assert clock() - start == pytest.approx(1e-6, rel=1e-3)  # a float32 of 10,000 s has steps of a millisecond


def test_the_fingerprint_names_card_and_driver(card: FakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "version"
    told.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:00:00 UTC 2025\nGCC 12.3\n"
    )
    monkeypatch.setattr(cuda, "_DRIVER", told)
    found = TorchTarget(device="cuda", mode="compile").fingerprint()
    assert (found["gpu"], found["driver"], found["capability"]) == ("Fake 100", "570.124.06", "9.0")
    assert (found["mode"], found["tf32"], found["dtype"]) == ("compile", "no", "float32")
    monkeypatch.setattr(cuda, "_DRIVER", tmp_path / "missing")
    assert cuda.card()["driver"] == "unknown"
    told.write_text("NVRM version: something else")
    monkeypatch.setattr(cuda, "_DRIVER", told)
    assert cuda.card()["driver"] == "unknown"


def test_memory_is_the_rise_of_the_peak(card: FakeCard) -> None:
    card.allocated, card.peak, card.free = 5_000_000, 90_000_000, 10**9
    with cuda.torch_memory() as grown:
        card.peak = 25_000_000
    assert grown.mb == 20.0
    with cuda.card_memory() as taken:
        card.free -= 3_000_000
    assert taken.mb == 3.0


def test_products_are_whole_float32_for_the_measurement_only() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with cuda.whole_float32():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_energy_is_that_of_the_card(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cuda, "nvml", asked.append)
    assert cuda.conditions(within=cuda.own_stream, memory=cuda.card_memory).meter() is None
    assert asked == ["GPU-ab-cd"]


def test_networks_are_timed_by_events_around_batches_of_launches(
    card: FakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network runs on the processor here, where each launch passes a millisecond on the card's clock."""
    net = SmallNet().eval()

    def loaded(path: Path, *, device: str) -> Any:
        assert device == "cuda"

        def launch(inputs: torch.Tensor) -> Any:
            card.seconds += 1e-3
            return net(inputs)

        return launch

    monkeypatch.setattr(torch_eager, "load_pt2", loaded)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    monkeypatch.setattr(cuda, "_kernel", lambda: lambda: setattr(card, "seconds", card.seconds + 1e-3))
    monkeypatch.setattr(cuda, "_meter", lambda: None)
    (one,) = TorchTarget(seconds=0.01, device="cuda").measure([Artefact(tmp_path, (1, 1, 8, 8), ())])
    assert one.latency_ms == pytest.approx(1.0, rel=1e-3)
    assert any("runs of 20 calls" in note for note in one.notes)
    assert one.fingerprint["gpu"] == "Fake 100"


def test_programs_move_to_the_device_with_all_their_tensors(tmp_path: Path) -> None:
    """The meta device stands for a card: an operation across devices fails on both."""
    target = TorchTarget(device="cuda")
    made = target.prepare(SmallNet(), (noise(1),), [], tmp_path)
    net = load_pt2(made.path, device="meta")
    assert net(noise(3).to("meta")).shape == (3, 10)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: list[Any] = []

    def bind_input(self, *values: Any) -> None:
        self.bound.append(values)

    def bind_output(self, *values: Any) -> None:
        self.bound.append(values)


def test_onnx_runtime_works_on_the_card_and_on_the_stream_that_is_timed(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding, opened = FakeBinding(), dict[str, Any]()
    session = SimpleNamespace(
        io_binding=lambda: binding, run_with_iobinding=lambda *given: given,
        get_inputs=lambda: [SimpleNamespace(name="input")], get_outputs=lambda: [SimpleNamespace(name="output")],
    )  # fmt: skip

    def opening(path: Path, **given: Any) -> Any:
        opened.update(given)
        return session

    monkeypatch.setattr(ort, "open_session", opening)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    call: Any = OnnxRuntimeTarget(device="cuda")._on_card(Artefact(Path("m"), (2, 1, 8, 8), ()))
    name, settings = opened["providers"][0]
    assert name == "CUDAExecutionProvider"
    assert settings == {"device_id": "0", "use_tf32": "0", "user_compute_stream": "42"}
    assert binding.bound[0][:5] == ("input", "cuda", 0, np.float32, [2, 1, 8, 8])
    assert binding.bound[1] == ("output", "cuda", 0)
    assert call()[0][0] is binding


def test_an_onnx_runtime_without_cuda_says_so(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(__version__="1", get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(TargetError, match="this ONNX Runtime has no CUDA: put onnxruntime-gpu"):
        OnnxRuntimeTarget(device="cuda").fingerprint()
