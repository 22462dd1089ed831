# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from contracts.target_contract import TargetContract
from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError
from sartor.protocols import Artefact
from sartor.targets import ncnn as module
from sartor.targets.artefacts import TargetError
from sartor.targets.ncnn import NcnnTarget
from toy_networks import SmallNet, noise

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

SCRIPT = """
import ncnn
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(path), net.load_model(path.replace('.param', '.bin'))
def run(sample):
    extractor = net.create_extractor()
    extractor.input('in0', ncnn.Mat(sample).clone())
    return np.array(extractor.extract('out0')[1])
y = np.stack([run(sample) for sample in x])"""


class TestNcnn(TargetContract):
    target, script = NcnnTarget(seconds=0.01), SCRIPT


def test_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one sample at a time: give an example of 1, not 2"):
        NcnnTarget().prepare(SmallNet(), (noise(2),), [], tmp_path)
    one = NcnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    with pytest.raises(TargetError, match=r"one sample at a time, not 4"):
        NcnnTarget(seconds=0.01).measure([Artefact(one.path, (4, 1, 8, 8), one.files)])


class Sorted(nn.Module):
    """ncnn has no such operator."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sort(dim=1).values


def test_a_network_that_cannot_be_converted_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"pnnx|ncnn"):
        NcnnTarget().prepare(Sorted(), (noise(1),), [], tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_network_converted_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SmallNet(seed=1)

    def wrong(net: nn.Module, example: Tensor, path: Path) -> None:
        export_onnx(other, example, path)

    monkeypatch.setattr(module, "export_onnx", wrong)
    with pytest.raises(ExportError, match="what pnnx made of the network differs from torch"):
        NcnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_conversion_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "_pnnx", lambda: (program, "0"))
    monkeypatch.setattr(module, "CONVERSION_S", 0.05)
    with pytest.raises(ExportError, match=r"pnnx did not convert the network: .*timed out"):
        NcnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path / "out")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    one = NcnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    one.files[1].unlink()
    with pytest.raises(TargetError, match=r"model\.ncnn\.bin: no such file"):
        NcnnTarget(seconds=0.01).measure([Artefact(one.path, one.input_shape, one.files[:1])])
