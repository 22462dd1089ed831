# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from contracts.target_contract import TargetContract
from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError
from sartor.protocols import Artefact
from sartor.targets import mnn as module
from sartor.targets.mnn import MnnTarget
from toy_networks import SmallNet, noise

pytest.importorskip("_mnncengine")  # MNN itself greets on import

SCRIPT = """
import MNN
net = MNN.nn.load_module_from_file(path, ['input'], ['output'])
given = MNN.expr.placeholder(x.shape, MNN.expr.NCHW)
given.write(x)
y = np.array(MNN.expr.convert(net.forward([given])[0], MNN.expr.NCHW).read())"""


class TestMnn(TargetContract):
    target, script = MnnTarget(seconds=0.01), SCRIPT


def test_the_batch_belongs_to_the_artefact(tmp_path: Path) -> None:
    one = MnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    single, many = MnnTarget(seconds=0.01).measure([one, Artefact(one.path, (64, 1, 8, 8), one.files)])
    assert many.p10 > 2 * single.p10


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = MnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    MnnTarget(seconds=0.01).measure([one])
    assert capfd.readouterr() == ("", "")


def test_a_network_converted_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SmallNet(seed=1)

    def wrong(net: nn.Module, example: Tensor, path: Path) -> None:
        export_onnx(other, example, path)

    monkeypatch.setattr(module, "export_onnx", wrong)
    with pytest.raises(ExportError, match="what MNN made of the network differs from torch"):
        MnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)


def test_a_converter_that_dies_is_an_export_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONVERTER", "import sys; print('no such operator'); sys.exit(3)")
    with pytest.raises(ExportError, match="MNN did not convert the network: no such operator"):
        MnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    monkeypatch.setattr(module, "CONVERSION_S", 0.01)
    with pytest.raises(ExportError, match=r"timed out"):
        MnnTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
