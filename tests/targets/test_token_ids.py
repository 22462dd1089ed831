# SPDX-License-Identifier: Apache-2.0
"""Networks that read token ids, through every target that takes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sartor.costs.gemm import elements
from sartor.costs.memory_tiers import chain
from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import compare, outputs, pair
from sartor.deploy.quantize import quantize_onnx
from sartor.protocols import Artefact
from sartor.targets._protocol import ProtocolError, ids_below
from sartor.targets._runtimes import RUNTIMES
from sartor.targets.artefacts import made_up
from sartor.targets.executorch import ExecuTorchTarget
from sartor.targets.mnn import MnnTarget
from sartor.targets.ncnn import NcnnTarget
from sartor.targets.onnxruntime import OnnxRuntimeTarget
from sartor.targets.openvino import OpenVinoTarget
from sartor.targets.remote import RemoteTarget
from sartor.targets.tensorrt import TensorRtTarget
from sartor.targets.torch_eager import TorchTarget
from sartor.workload import macs, trace

VOCABULARY = 11


class Words(nn.Module):
    """The mean of embeddings, mixed by a product of activations as attention has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.last = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.embedding(ids))
        mixed: Tensor = self.last(((x @ x.mT).softmax(-1) @ x).mean(1))
        return mixed


def ids(rows: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, 6), generator=torch.Generator().manual_seed(rows))


TARGETS: dict[str, Callable[[], Any]] = {
    "torch": lambda: TorchTarget(seconds=0.01),
    "onnxruntime": lambda: OnnxRuntimeTarget(seconds=0.01),
    "onnxruntime:int8": lambda: OnnxRuntimeTarget("int8", seconds=0.01),
    "openvino": lambda: OpenVinoTarget(seconds=0.01),
    "openvino:int8": lambda: OpenVinoTarget("int8", seconds=0.01),
}
NEEDED = {name: name.partition(":")[0] for name in TARGETS if name != "torch"}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_prepares_runs_and_measures_a_network_of_ids(name: str, tmp_path: Path) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    target, network = TARGETS[name](), Words().eval()
    artefact = target.prepare(network, (ids(),), [], tmp_path)
    assert artefact.input_shape == (1, 6) and artefact.ids_below == int(ids().max()) + 1
    found = compare(target.runner(artefact), outputs(network, ids(5)), ids(5))
    assert found.max_rel_error < (0.02 if name.endswith("int8") else 1e-5)
    (measured,) = target.measure([artefact])
    assert measured.latency_ms > 0 and measured.fingerprint["shape"] == "6"


def test_what_is_made_up_for_a_network_of_ids_is_in_its_vocabulary() -> None:
    found = made_up(Artefact(Path("m"), (4, 50), (), ids_below=7))
    assert found.dtype == np.int64 and {*found.flatten().tolist()} == {*range(7)}
    floats = made_up(Artefact(Path("m"), (4, 50), ()))
    assert floats.dtype == np.float32


@pytest.mark.parametrize(
    ("target", "said"),
    [(NcnnTarget, "ncnn"), (MnnTarget, "MNN"), (ExecuTorchTarget, "ExecuTorch"), (TensorRtTarget, "TensorRT")],
)
def test_other_targets_refuse_ids_in_one_line(target: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{said} takes no token ids here: measure text on torch"):
        target().prepare(Words(), (ids(),), [], tmp_path)


def test_int8_of_ids_is_dynamic_and_leaves_products_of_activations_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export_onnx(Words().eval(), ids(), tmp_path / "m.onnx")
    quantize_onnx(tmp_path / "m.onnx", [], tmp_path / "q.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 2 and kinds.count("MatMul") == 2 and "QuantizeLinear" not in kinds


def test_an_example_is_of_floats_or_of_int64() -> None:
    assert pair(ids()).shape == (2, 6)
    with pytest.raises(RuntimeError, match=r"torch.int32 cannot be exported.*token ids \(1, T\) of int64"):
        pair(ids().int())


def test_an_agents_runtime_makes_up_ids_only_if_it_is_told_their_number(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export_onnx(Words().eval(), ids(), tmp_path / "m.onnx")
    runtime = RUNTIMES["onnxruntime"](1)
    runtime.load(tmp_path / "m.onnx", (1, 6), VOCABULARY)()
    with pytest.raises(ValueError, match="holds no floating-point numbers"):
        runtime.load(tmp_path / "m.onnx", (1, 6))
    assert ids_below({"do": "model"}) == 0 and ids_below({"ids_below": 5}) == 5  # an older client says nothing
    with pytest.raises(ProtocolError, match="ids_below"):
        ids_below({"ids_below": -1})


def test_costs_read_of_a_table_of_embeddings_no_more_than_its_rows() -> None:
    work = trace(Words(), ids())
    assert work[0].kind == "embedding" and elements(work[0]) == 2 * 6 * 16 + 6
    first = chain(work)[0]
    assert (first.received, first.sent) == (6 * 4, 6 * 16 * 4)
    assert macs(work) == 6 * 16 * 16 + 2 * 6 * 6 * 16 + 16 * 3


@pytest.mark.slow
def test_an_agent_measures_a_network_of_ids(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = RemoteTarget(f"{sys.executable} -m sartor.targets.agent --runtime onnxruntime", seconds=0.01)
    (measured,) = target.measure([target.prepare(Words().eval(), (ids(),), [], tmp_path)])
    assert measured.latency_ms > 0
