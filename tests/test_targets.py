# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contracts.target_contract import TargetContract
from sartor.deploy.onnx import export_onnx
from sartor.protocols import Artefact, Target
from sartor.targets import TARGETS, artefacts, load_target
from sartor.targets.artefacts import TargetError
from sartor.targets.measure import measure_onnx
from sartor.targets.onnxruntime import OnnxRuntimeTarget
from sartor.targets.timing import rounds
from sartor.targets.torch_eager import TorchTarget
from toy_networks import SmallNet, noise

ORT = "import onnxruntime; y = onnxruntime.InferenceSession(path).run(None, {'input': x})[0]"
TORCH = "import torch; y = torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()"


class TestTorch(TargetContract):
    target, script = TorchTarget(seconds=0.01), TORCH


@pytest.mark.slow
class TestTorchCompiled(TargetContract):
    target, script = TorchTarget(seconds=0.01, mode="compile"), TORCH


class TestOnnxRuntime(TargetContract):
    target, script = OnnxRuntimeTarget(seconds=0.01), ORT


class TestOnnxRuntimeInt8(TargetContract):
    target, script, tolerance = OnnxRuntimeTarget("int8", seconds=0.01), ORT, 0.1


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_loaded_by_their_names_whether_their_runtime_is_here_or_not(name: str) -> None:
    target = load_target(name, threads=2)
    assert isinstance(target, Target)
    assert target.name == name
    assert target.threads == 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="0 threads"):
        type(target)(threads=0)  # type: ignore[call-arg]


def test_all_artefacts_go_into_the_same_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = OnnxRuntimeTarget(seconds=0.01)
    files = [target.prepare(SmallNet(w), (noise(1),), [], tmp_path / str(w)) for w in (4, 8)]
    together: list[int] = []

    def spy(calls: Sequence[Callable[[], object]], **settings: Any) -> object:
        together.append(len(calls))
        return rounds(calls, **settings)

    monkeypatch.setattr(artefacts, "rounds", spy)
    target.measure(files)
    assert together == [2]


def test_the_batch_belongs_to_the_artefact(tmp_path: Path) -> None:
    target = OnnxRuntimeTarget(seconds=0.01)
    one = target.prepare(SmallNet(), (noise(1),), [], tmp_path)
    many = Artefact(one.path, (64, 1, 8, 8), one.files)
    single, batch = target.measure([one, many])
    assert batch.p10 > 2 * single.p10


def test_an_unprepared_shape_is_refused_by_name(tmp_path: Path) -> None:
    one = OnnxRuntimeTarget().prepare(SmallNet(), (noise(1),), [], tmp_path)
    with pytest.raises(TargetError, match=r"model\.onnx: .*Got invalid dimensions"):
        OnnxRuntimeTarget(seconds=0.01).measure([Artefact(one.path, (1, 3, 8, 8), one.files)])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="no precision 'int4'"):
        OnnxRuntimeTarget("int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not run int8 on 'cuda'"):
        OnnxRuntimeTarget("int8", device="cuda")
    with pytest.raises(ValueError, match="does not run 'fast' on 'cpu'"):
        TorchTarget(mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 threads"):
        load_target("torch", threads=0)
    with pytest.raises(ValueError, match=r"no target is named 'tflite': use torch, .*tensorrt"):
        load_target("tflite")


def test_int8_needs_calibration_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8 needs calibration samples"):
        OnnxRuntimeTarget("int8").prepare(SmallNet(), (noise(1),), [], tmp_path)


def test_naming_targets_imports_neither_torch_nor_a_runtime() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "numpy"}
    code = f"import sys; import sartor.targets; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


OWN = """
class Slow:
    name = "slow"
    def __init__(self, threads): self.threads = threads
    def fingerprint(self): return {}
    def prepare(self, model, example, calibration, path): ...
    def measure(self, artefacts): return []

class Half:
    def __init__(self, threads): pass
    name = "half"

class Rigid:
    pass
"""


def test_a_target_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    target = load_target(f"{tmp_path}/mine.py:Slow", threads=3)
    assert target.name == "slow"
    assert target.threads == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"mine\.py:Half is no target: it has no fingerprint, prepare, measure"):
        load_target(f"{tmp_path}/mine.py:Half")
    with pytest.raises(ValueError, match=r"mine\.py:Rigid cannot be made with threads=1"):
        load_target(f"{tmp_path}/mine.py:Rigid")


def foreign(
    path: Path,
    operator: str = "Relu",
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """A model of someone else: one operator on (n, 3)."""
    shape = ("n", 3)
    given = helper.make_tensor_value_info("x", dtype, shape)
    out = helper.make_tensor_value_info("y", dtype, shape)
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [given], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_any_onnx_file_is_measured(tmp_path: Path) -> None:
    export_onnx(SmallNet(), noise(1), tmp_path / "net.onnx")
    double = foreign(tmp_path / "double.onnx", dtype=TensorProto.DOUBLE)
    net, relu = measure_onnx([tmp_path / "net.onnx", str(double)], seconds=0.01)
    assert net.latency_ms > relu.latency_ms
    assert net.fingerprint["shape"] == "1x8x8"
    assert relu.fingerprint["shape"] == "3"
    assert net.size_mb == (tmp_path / "net.onnx").stat().st_size / 1e6


def test_open_dimensions_can_be_given(tmp_path: Path) -> None:
    model = foreign(tmp_path / "wide.onnx", operator="Softmax")
    (small,) = measure_onnx([model], seconds=0.01)
    (large,) = measure_onnx([model], seconds=0.01, shapes={"x": (100_000, 3)})
    assert large.p10 > 3 * small.p10
    with pytest.raises(TargetError, match=r"wide\.onnx: \(2, 4\) does not fit input 'x'"):
        measure_onnx([model], shapes={"x": (2, 4)})


def broken_models(folder: Path) -> dict[str, Path]:
    (folder / "text.onnx").write_text("hello " * 100)
    (folder / "empty.onnx").write_bytes(b"")
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [out], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    external = folder / "external.onnx"
    onnx.save(model, external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()
    return {
        "no such file": folder / "none.onnx",
        "not an ONNX file": folder / "text.onnx",
        "not an ONNX file.?": folder / "empty.onnx",
        "the file that holds its weights is missing": external,
        "ONNX Runtime refuses it .*Frobnicate": foreign(folder / "operator.onnx", operator="Frobnicate"),
        r"input 'x' is tensor\(int64\)": foreign(folder / "int.onnx", dtype=TensorProto.INT64, operator="Abs"),
    }


def test_models_that_cannot_be_measured_are_named_with_their_reasons(tmp_path: Path) -> None:
    good = foreign(tmp_path / "good.onnx")
    broken = broken_models(tmp_path)
    with pytest.raises(TargetError) as caught:
        measure_onnx([good, *broken.values()], seconds=0.01)
    assert caught.value.measurements[0] is not None
    assert caught.value.measurements[1:] == (None,) * len(broken)
    for index, (reason, path) in enumerate(broken.items(), start=1):
        said = caught.value.reasons[index]
        assert said.startswith(f"{path}: ")
        assert "\n" not in said
        assert re.search(reason, said), said
