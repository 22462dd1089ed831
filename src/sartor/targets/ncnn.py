# SPDX-License-Identifier: Apache-2.0
"""Target: ncnn on the processor, float32, from files that pnnx converts."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import Run, check_threads, in_batches, measure_artefacts, one_example
from sartor.targets.converted import require_same_outputs
from sartor.targets.machine import processor
from sartor.targets.native import listening

__all__ = ["NcnnTarget"]

CONVERSION_S = 600.0


@dataclass
class NcnnTarget:
    """ncnn on `threads` threads, one sample at a time; at most `seconds` of timing per network.

    float16 and bfloat16, which ncnn would use where the processor has them, are off. ValueError for fewer than
    one thread.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(default="ncnn", init=False)
    file_name: str = field(default="model.ncnn.param", init=False)  # with its weights in `model.ncnn.bin`

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, converter, threads and dtype."""
        return {
            **processor(), "runtime": "ncnn", "version": _ncnn().__version__, "converter": f"pnnx {_pnnx()[1]}",
            "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.ncnn.param` and `model.ncnn.bin` into the folder `path`; calibration is not needed.

        Raises:
            ValueError: an example of more than one sample, for ncnn has no batches.
            ExportError: pnnx does not convert the network, or to one that computes something else.
        """
        inputs, file = one_example(example, floats_for="ncnn"), path / self.file_name
        if len(inputs) != 1:
            raise ValueError(f"ncnn runs one sample at a time: give an example of 1, not {len(inputs)}")
        weights = file.with_suffix(".bin")
        path.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path / "ncnn") as folder:
            export_onnx(model, inputs, folder / "model.onnx")
            _convert(folder, tuple(inputs.shape))
            made = Artefact(folder / file.name, tuple(inputs.shape), ())
            require_same_outputs(self.runner(made), model, inputs, "pnnx")
            (folder / weights.name).replace(weights)
            made.path.replace(file)  # last: where it is, its weights are
        return Artefact(file, tuple(inputs.shape), (file, weights))

    def runner(self, artefact: Artefact) -> Run:
        """Return the files as a function of float32 arrays (N, C, H, W)."""
        net, name, out = self._opened(artefact.path)
        ncnn = _ncnn()

        def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            sample = np.ascontiguousarray(inputs[0])
            extractor = net.create_extractor()
            extractor.input(name, ncnn.Mat(sample))
            return np.array(_extracted(extractor, out))[None]

        return in_batches(run, 1)

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            batch, *shape = artefact.input_shape
            if batch != 1:
                raise ExportError(f"{artefact.path}: ncnn runs one sample at a time, not {batch}")
            net, name, out = self._opened(artefact.path)
            inputs = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            matrix = _ncnn().Mat(inputs)

            def call(_: object = inputs) -> object:  # the matrix does not own the array's memory
                extractor = net.create_extractor()
                extractor.input(name, matrix)
                return _extracted(extractor, out)

            return call

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed, fingerprint=self.fingerprint()
        )

    def _opened(self, path: Path) -> tuple[Any, str, str]:
        """Return the network with the names of its input and output."""
        weights = path.with_suffix(".bin")
        for file in (path, weights):
            if not file.is_file():
                raise ExportError(f"{file}: no such file")
        net = _ncnn().Net()
        net.opt.num_threads = self.threads
        net.opt.use_vulkan_compute = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
        with listening() as said:
            refused = net.load_param(str(path)) or net.load_model(str(weights))
        if refused:
            raise ExportError(f"{path}: ncnn refuses it ({said.first('no reason given')})")
        return net, net.input_names()[0], net.output_names()[0]


def _extracted(extractor: Any, name: str) -> Any:
    failed, out = extractor.extract(name)
    if failed:
        raise ExportError(f"ncnn fails while it runs the network (code {failed})")
    return out


def _convert(folder: Path, shape: tuple[int, ...]) -> None:
    """Write `model.ncnn.param` and `.bin` from `model.onnx` in `folder`, for inputs of `shape`."""
    size = ",".join(map(str, shape))
    command = [str(_pnnx()[0]), "model.onnx", f"inputshape=[{size}]", "fp16=0"]
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CONVERSION_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"pnnx did not convert the network: {error}") from error
    lacking = [name for name in ("model.ncnn.param", "model.ncnn.bin") if not (folder / name).is_file()]
    if ended.returncode or lacking:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        raise ExportError(f"pnnx did not convert the network: {said[-1] if said else f'code {ended.returncode}'}")


def _pnnx() -> tuple[Path, str]:
    """Return the program pnnx and its version; importing its package would change nothing but take time."""
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        raise ImportError("pnnx, which converts networks for ncnn, is missing: pip install 'sartor[ncnn]'")
    program = next(file for file in sorted(Path(found.origin).parent.glob("pnnx*")) if file.stem == "pnnx")
    return program, importlib.metadata.version("pnnx")


def _ncnn() -> Any:
    try:
        import ncnn
    except ImportError as error:
        raise ImportError(f"ncnn is missing ({error}): pip install 'sartor[ncnn]'") from None
    return ncnn
