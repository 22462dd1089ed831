# SPDX-License-Identifier: Apache-2.0
"""Target: OpenVINO on the processor, in float32 or statically quantised to int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError, single_line
from sartor.deploy.quantize import quantize_onnx
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import Run, check_threads, ids_below, made_up, measure_artefacts, one_example
from sartor.targets.machine import processor

__all__ = ["OpenVinoTarget"]


@dataclass
class OpenVinoTarget:
    """OpenVINO's CPU plugin on `threads` threads with one stream; at most `seconds` of timing per network.

    `precision` "int8" quantises from the calibration samples of `prepare` as for ONNX Runtime; the plugin runs
    convolutions and products in 8 bits where it finds them quantised on both sides. Float32 is float32: bfloat16,
    the plugin's default on some processors, is off. ValueError for another precision or fewer than one thread.
    """

    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(init=False)
    file_name: str = field(init=False)  # in the folder given to `prepare`, with its weights in `.bin` beside it

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "int8"):
            raise ValueError(f"OpenVINO has no precision {self.precision!r} here: use float32 or int8")
        check_threads(self.threads)
        int8 = self.precision == "int8"
        self.name = "openvino:int8" if int8 else "openvino"
        self.file_name = "model.int8.xml" if int8 else "model.xml"

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, hint, streams, threads and dtype."""
        return {
            **processor(), "runtime": "openvino", "version": _openvino().__version__.replace("/", "-"),
            "hint": "latency", "streams": "1", "threads": str(self.threads), "dtype": self.precision,
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.xml` and `model.bin`, or `model.int8.xml` and `.bin`, into the folder `path`.

        `calibration` holds batches (N, C, H, W) of training data; float32 does not need it. The files take any N.
        """
        inputs, file = one_example(example), path / self.file_name
        weights = file.with_suffix(".bin")
        path.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path / "openvino") as folder:
            source = folder / "model.onnx"
            export_onnx(model, inputs, source)
            if self.precision == "int8":
                quantize_onnx(source, calibration, folder / "int8.onnx")
                source = folder / "int8.onnx"
            _convert(source, folder / file.name)
            (folder / weights.name).replace(weights)
            (folder / file.name).replace(file)  # last: where it is, its weights are
        return Artefact(file, tuple(inputs.shape), (file, weights), ids_below(inputs))

    def runner(self, artefact: Artefact) -> Run:
        """Return the files as a function of float32 arrays (N, C, H, W)."""
        request = self._compiled(artefact.path, None).create_infer_request()

        def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
            return np.array(request.infer({0: inputs})[0])

        return run

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            request = self._compiled(artefact.path, artefact.input_shape).create_infer_request()
            inputs = made_up(artefact)
            # Bound once: the dictionaries of the Python interface cost as much as a small network.
            request.set_input_tensor(_openvino().Tensor(inputs, shared_memory=True))

            def call(_: object = inputs) -> object:  # the tensor does not own the array's memory
                return request.infer(share_outputs=True)

            return call

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed, fingerprint=self.fingerprint()
        )

    def _compiled(self, path: Path, shape: tuple[int, ...] | None) -> Any:
        """Return the model compiled for inputs of `shape`; None leaves the batch open."""
        openvino = _openvino()
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        if not path.is_file():
            raise ExportError(f"{path}: no such file")
        try:
            core = openvino.Core()
            model = core.read_model(path)
            if shape is not None:
                model.reshape(list(shape))
            return core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise ExportError(f"{path}: OpenVINO refuses it ({_reason(error)})") from error


def _convert(source: Path, path: Path) -> None:
    """Write the ONNX file `source` as `path` (.xml) and its .bin, weights in their own precision.

    The C++ reader does it: the converter in Python would report its use over the network. Operators are named by
    their place, for OpenVINO's own names count on through a process, and equal networks should be equal files.
    """
    openvino = _openvino()
    try:
        model = openvino.Core().read_model(source)
        for place, operator in enumerate(model.get_ordered_ops()):
            operator.set_friendly_name(f"{operator.get_type_name()}_{place}")
        openvino.save_model(model, path, compress_to_fp16=False)
    except Exception as error:
        raise ExportError(f"OpenVINO cannot convert the network: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the last line that OpenVINO says: those above name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else single_line(error)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"OpenVINO is missing ({error}): pip install 'sartor[openvino]'") from None
    return openvino
