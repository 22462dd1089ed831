# SPDX-License-Identifier: Apache-2.0
"""The runtimes that an agent can measure ONNX files with. They need numpy, and torch nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUNTIMES", "OnnxRuntime", "OpenVino", "reason"]

Call = Callable[[], object]
_ORT_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32,
}  # fmt: skip


class OnnxRuntime:
    """ONNX Runtime's CPU provider, set as the target `onnxruntime` sets it. ImportError if it is missing."""

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self._library, self._threads = onnxruntime, threads

    def fingerprint(self) -> dict[str, str]:
        """Return runtime, version, provider, optimisation and threads."""
        return {
            "runtime": "onnxruntime", "version": self._library.__version__, "provider": "CPUExecutionProvider",
            "optimisation": "all", "threads": str(self._threads),
        }  # fmt: skip

    def load(self, path: Path, shape: Sequence[int], ids_below: int = 0) -> Call:
        """Return the call that runs the model once on noise of `shape`; () for the shapes that it states.

        ids_below: what the token ids are below that a model reads in the place of floats.
        """
        library = self._library
        options = library.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = session.get_inputs()
        types = {one.name: _ORT_TYPES.get(one.type) for one in given}
        feed = {one.name: _noise(one.name, one.shape, types[one.name], shape, len(given), ids_below) for one in given}
        return lambda: session.run(None, feed)


class OpenVino:
    """OpenVINO on the processor, for latency, in float32. ImportError if it is missing."""

    def __init__(self, threads: int) -> None:
        import openvino

        self._library, self._threads = openvino, threads

    def fingerprint(self) -> dict[str, str]:
        """Return runtime, version, hint, streams and threads."""
        return {
            "runtime": "openvino", "version": self._library.__version__.replace("/", "-"), "hint": "latency",
            "streams": "1", "threads": str(self._threads),
        }  # fmt: skip

    def load(self, path: Path, shape: Sequence[int], ids_below: int = 0) -> Call:
        """Return the call that runs the model once on noise of `shape`; () for the shapes that it states.

        ids_below: what the token ids are below that a model reads in the place of floats.
        """
        core = self._library.Core()
        model = core.read_model(str(path))
        ports: list[Any] = list(model.inputs)
        own = [[d.get_length() if d.is_static else None for d in port.get_partial_shape()] for port in ports]
        known: Mapping[str, Any] = {
            "f32": np.float32, "f64": np.float64, "f16": np.float16, "i64": np.int64, "i32": np.int32,
        }  # fmt: skip
        types = [known.get(port.get_element_type().get_type_name()) for port in ports]
        feed = [
            _noise(f"input {index}", one, kind, shape, len(ports), ids_below)
            for index, (one, kind) in enumerate(zip(own, types, strict=True))
        ]
        model.reshape({port: list(array.shape) for port, array in zip(ports, feed, strict=True)})
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self._threads, "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        inputs = dict(enumerate(feed))
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


RUNTIMES: Mapping[str, type[OnnxRuntime] | type[OpenVino]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
"""What an agent may be told to use, by name."""


def reason(error: Exception) -> str:
    """Return the line of a runtime's complaint that says what is wrong: OpenVINO names its source files above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if lines[0].startswith("Exception from") else lines[0]


def _noise(
    name: str, own: Sequence[Any], kind: Any, shape: Sequence[int], inputs: int, ids_below: int
) -> NDArray[Any]:  # fmt: skip
    """Return noise for an input whose shape `own` may have open dimensions, which are 1 unless `shape` says more."""
    ids = kind in (np.int64, np.int32)
    if kind is None or (ids and not ids_below):
        raise ValueError(f"input {name!r} holds no floating-point numbers: only these can be made up")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in own]
    if shape and inputs > 1:
        raise ValueError(f"it has {inputs} inputs, and one shape was given")
    wanted = tuple(shape) or tuple(size or 1 for size in sizes)
    if len(wanted) != len(sizes) or any(a not in (None, b) for a, b in zip(sizes, wanted, strict=True)):
        raise ValueError(f"{wanted} does not fit input {name!r} of shape {tuple(own)}")
    generator = np.random.default_rng(0)
    found = generator.integers(ids_below, size=wanted) if ids else generator.standard_normal(wanted, dtype=np.float32)
    noise: NDArray[Any] = found.astype(kind)
    return noise
