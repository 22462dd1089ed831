# SPDX-License-Identifier: Apache-2.0
"""Target: MNN on the processor, float32."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.atomic import write_bytes
from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import Run, check_threads, measure_artefacts, one_example
from sartor.targets.converted import require_same_outputs
from sartor.targets.machine import processor
from sartor.targets.native import listening

__all__ = ["MnnTarget"]

CONVERSION_S = 600.0
# The command `mnnconvert` would report its use over the network; the library below it does not.
_CONVERTER = "import sys, _tools; _tools.mnnconvert(sys.argv)"

_RANDOM_NAME = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class MnnTarget:
    """MNN's CPU backend on `threads` threads, at high precision, which is float32; at most `seconds` per network.

    A latency includes the change of the input into MNN's own layout, and of the output out of it. ValueError for
    fewer than one thread.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(default="mnn", init=False)
    file_name: str = field(default="model.mnn", init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, precision, threads and dtype."""
        return {
            **processor(), "runtime": "mnn", "version": _mnn().version(), "precision": "high",
            "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.mnn` into the folder `path`; calibration samples are not needed. The file takes any N.

        ExportError if MNN does not convert the network, or to one that computes something else.
        """
        inputs, file = one_example(example, floats_for="MNN"), path / self.file_name
        path.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path / "mnn") as folder:
            export_onnx(model, inputs, folder / "model.onnx")
            _convert(folder)
            made = Artefact(folder / "model.mnn", tuple(inputs.shape), ())
            require_same_outputs(self.runner(made), model, inputs, "MNN")
            write_bytes(file, _named_by_content(made.path.read_bytes()))
        return Artefact(file, tuple(inputs.shape), (file,))

    def runner(self, artefact: Artefact) -> Run:
        """Return the file as a function of float32 arrays (N, C, H, W)."""
        opened = {artefact.input_shape: self._opened(artefact.path, artefact.input_shape)}

        def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            if inputs.shape not in opened:  # the sizes of a session are fixed
                opened[inputs.shape] = self._opened(artefact.path, inputs.shape)
            return opened[inputs.shape](inputs)

        return run

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            run = self._opened(artefact.path, artefact.input_shape)
            inputs = np.random.default_rng(0).standard_normal(artefact.input_shape, dtype=np.float32)
            return lambda: run(inputs)

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed, fingerprint=self.fingerprint()
        )

    def _opened(self, path: Path, shape: tuple[int, ...]) -> Run:
        """Return a session for inputs of `shape`."""
        mnn = _mnn()
        if not path.is_file():
            raise ExportError(f"{path}: no such file")
        with listening() as said:
            try:
                net = mnn.Interpreter(str(path))
            except Exception:
                net = None
        if net is None:
            raise ExportError(f"{path}: MNN refuses it ({said.first('no reason given')})")
        with listening():
            session = net.createSession({"backend": "CPU", "numThread": self.threads, "precision": "high"})
            given = net.getSessionInput(session)
            net.resizeTensor(given, shape)
            net.resizeSession(session)
        out = net.getSessionOutput(session)
        result = np.empty(out.getShape(), np.float32)
        layout, dtype = mnn.Tensor_DimensionType_Caffe, mnn.Halide_Type_Float

        def run(inputs: NDArray[np.float32], _: object = net) -> NDArray[np.float32]:  # the session needs it alive
            given.copyFrom(mnn.Tensor(shape, dtype, np.ascontiguousarray(inputs), layout))
            if code := net.runSession(session):
                raise ExportError(f"MNN fails while it runs the network (code {code})")
            read = mnn.Tensor(result.shape, dtype, result, layout)
            out.copyToHostTensor(read)
            return np.array(read.getNumpyData(), copy=True).reshape(result.shape)

        return run


def _convert(folder: Path) -> None:
    """Write `model.mnn` from `model.onnx` in `folder`; in a process of its own, as the converter may end it."""
    _mnn()
    options = ["-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn", "--bizCode", "sartor"]
    command = [sys.executable, "-W", "ignore", "-c", _CONVERTER, *options]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CONVERSION_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"MNN did not convert the network: {error}") from error
    if ended.returncode or not (folder / "model.mnn").is_file():
        said = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
        raise ExportError(f"MNN did not convert the network: {said[-1] if said else f'code {ended.returncode}'}")


def _named_by_content(model: bytes) -> bytes:
    """Put a name that follows from the content in the place of MNN's random one: equal networks are equal files."""
    if len(found := _RANDOM_NAME.findall(model)) != 1:
        return model
    name = uuid.UUID(bytes=hashlib.sha256(model.replace(found[0], b"")).digest()[:16])
    return model.replace(found[0], str(name).encode())


def _mnn() -> Any:
    try:
        with listening():  # it greets
            import MNN
    except ImportError as error:
        raise ImportError(f"MNN is missing ({error}): pip install 'sartor[mnn]'") from None
    return MNN
