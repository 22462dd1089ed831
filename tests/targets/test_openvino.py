# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from contracts.target_contract import TargetContract
from sartor.protocols import Artefact
from sartor.targets.artefacts import TargetError
from sartor.targets.openvino import OpenVinoTarget
from toy_networks import SmallNet, noise

openvino = pytest.importorskip("openvino")

SCRIPT = "import openvino; y = openvino.Core().compile_model(path, 'CPU')(x)[0]"


class TestOpenVino(TargetContract):
    target, script = OpenVinoTarget(seconds=0.01), SCRIPT


class TestOpenVinoInt8(TargetContract):
    target, script, tolerance = OpenVinoTarget("int8", seconds=0.01), SCRIPT, 0.1


@pytest.mark.parametrize(("precision", "kind"), [("float32", "f32"), ("int8", "u8")])
def test_convolutions_run_in_the_precision_that_was_asked_for(precision: str, kind: str, tmp_path: Path) -> None:
    target = OpenVinoTarget(precision)  # type: ignore[arg-type]
    made = target.prepare(SmallNet(), (noise(1),), [noise(32, seed=1)], tmp_path)
    ran = target._compiled(made.path, made.input_shape).get_runtime_model().get_ordered_ops()
    told = [{name: value.astype(str) for name, value in operator.get_rt_info().items()} for operator in ran]
    found = {one["runtimePrecision"] for one in told if one["layerType"] == "Convolution"}
    assert found == {kind}


def test_the_batch_belongs_to_the_artefact(tmp_path: Path) -> None:
    one = OpenVinoTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    single, many = OpenVinoTarget(seconds=0.01).measure([one, Artefact(one.path, (64, 1, 8, 8), one.files)])
    assert many.p10 > 2 * single.p10
    assert (single.fingerprint["batch"], many.fingerprint["batch"]) == ("1", "64")


def test_a_shape_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    one = OpenVinoTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    with pytest.raises(TargetError, match=r"model\.xml: OpenVINO refuses it \(.+\)$"):
        OpenVinoTarget(seconds=0.01).measure([Artefact(one.path, (1, 3, 8, 8), one.files)])


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no precision 'int4'"):
        OpenVinoTarget("int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int8 needs calibration samples"):
        OpenVinoTarget("int8").prepare(SmallNet(), (noise(1),), [], tmp_path)
