# SPDX-License-Identifier: Apache-2.0
"""`model.onnx`: one way to write it, for samples, for what is measured and for what is shipped."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.atomic import write_bytes
from sartor.deploy.parity import ExportError, Run, evaluating, pair, single_line

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "export_onnx", "onnx_runner", "open_session"]

OPSET = 18
INPUT, OUTPUT = "input", "output"


def export_onnx(net: nn.Module, example: Tensor, path: Path, *, classes: Sequence[str] = ()) -> None:
    """Write `net` to `path` for inputs like `example` (N, ...), with any N; class names go into the metadata.

    Token ids (N, T) keep their T: sequences of a file have one length, shorter ones are padded.

    torch's TorchScript exporter comes first: it folds batch norm into convolutions, takes a twentieth of the
    time of the exporter on torch.export (0.1 s against 2.5 s), and ONNX Runtime runs its graphs 5 % faster
    (GlobalAveragePool where the other writes ReduceMean). The other one serves what the first lacks. Which
    one it is depends on the network alone, so a network measured as a sample is the network shipped.
    The file has passed onnx.checker. ExportError if neither exporter takes the network.
    """
    onnx = _import_onnx()
    inputs = pair(example)
    with _silent(), evaluating(net):
        try:
            net(inputs)
        except Exception as error:
            raise ExportError(f"the network fails on {tuple(inputs.shape)}: {single_line(error)}") from error
        try:
            model = _traced(net, inputs)
        except Exception as first:
            model = _captured(net, inputs, first)
    told = {"classes": json.dumps(list(classes)), **({"layout": "NCHW"} if example.is_floating_point() else {})}
    for key, value in told.items() if classes else ():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name, model.producer_version = "sartor", ""
    try:
        onnx.checker.check_model(model)
        data = model.SerializeToString()
    except Exception as error:  # 2 GB and more do not fit into one protobuf
        raise ExportError(f"the exported model is not valid ONNX: {single_line(error)}") from error
    write_bytes(path, data)


def open_session(path: Path, *, threads: int = 1, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> Any:
    """Return an ONNX Runtime session on `threads` threads, whose operators run on the first of `providers`.

    Raises ExportError, one line with the file and the reason, for whatever the runtime refuses; also where it
    would have gone on quietly without the first provider.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is missing ({error}): pip install 'sartor[onnx]'") from None
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what is fatal is raised anyway
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[*providers])
    except Exception as error:
        raise ExportError(f"{path}: {_reason(error)}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise ExportError(f"{path}: ONNX Runtime cannot start {wanted}: check its CUDA and cuDNN libraries")
    return session


def onnx_runner(path: Path, *, threads: int = 1) -> Run:
    """Return the model at `path` as a function of float32 arrays, or of int64 token ids."""
    session = open_session(path, threads=threads)
    name = session.get_inputs()[0].name

    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {name: inputs})[0])

    return run


def _traced(net: nn.Module, inputs: Tensor) -> onnx.ModelProto:
    """Export by tracing. What has no ONNX form falls through as torch's: an error would print the graph."""
    buffer = io.BytesIO()
    axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    torch.onnx.export(
        net, (inputs,), cast(Any, buffer), dynamo=False, opset_version=OPSET,
        input_names=[INPUT], output_names=[OUTPUT], dynamic_axes=axes,
        operator_export_type=torch.onnx.OperatorExportTypes.ONNX_FALLTHROUGH,
    )  # fmt: skip
    model: onnx.ModelProto = _import_onnx().load_from_string(buffer.getvalue())
    lacking = [opset.domain for opset in model.opset_import if opset.domain not in ("", "ai.onnx")]
    if lacking:
        raise ExportError("an operator has no ONNX form in torch's TorchScript exporter")
    return model


def _captured(net: nn.Module, inputs: Tensor, first: Exception) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.onnx.export(
            net, (inputs,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: batch},), verbose=False,
        )  # fmt: skip
    except Exception as second:
        raise ExportError(
            f"torch cannot export the network to ONNX: {single_line(first)}; and: {single_line(second)}"
        ) from second
    assert program is not None
    return program.model_proto


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"onnx is missing ({error}): pip install 'sartor[onnx]'") from None
    return onnx


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime says, without its decoration."""
    text = single_line(error)
    if "INVALID_PROTOBUF" in text or "No graph was found" in text:
        return "not an ONNX file"
    if "external data" in text.lower() or "external_data" in text.lower():
        return f"the file that holds its weights is missing beside it ({text.rpartition(':')[2].strip()})"
    return f"ONNX Runtime refuses it ({text.removeprefix('[ONNXRuntimeError] : ')})"


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what torch's exporters say about themselves from the user; parity is checked on the result."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
