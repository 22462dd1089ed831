# SPDX-License-Identifier: Apache-2.0
"""Target: ONNX Runtime on the processor, in float32 or statically quantised to int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, nn

from sartor.deploy.onnx import export_onnx, open_session
from sartor.deploy.quantize import quantize_onnx
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import measure_artefacts, one_example
from sartor.targets.machine import processor

__all__ = ["OnnxRuntimeTarget"]


@dataclass
class OnnxRuntimeTarget:
    """ONNX Runtime's CPU provider on `threads` threads; at most `seconds` of timing per network.

    `precision` "int8" quantises from the calibration samples of `prepare`; weights and activations then have
    8 bits, inputs and outputs stay float32. ValueError for another precision or fewer than one thread.
    """

    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(init=False)
    file_name: str = field(init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "int8"):
            raise ValueError(f"ONNX Runtime has no precision {self.precision!r} here: use float32 or int8")
        if self.threads < 1:
            raise ValueError(f"cannot run on {self.threads} threads: use 1 or more")
        int8 = self.precision == "int8"
        self.name = "onnxruntime:int8" if int8 else "onnxruntime"
        self.file_name = "model.int8.onnx" if int8 else "model.onnx"

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, provider, optimisation, threads and dtype."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"ONNX Runtime is missing ({error}): pip install 'sartor[onnx]'") from None
        return {
            **processor(), "runtime": "onnxruntime", "version": onnxruntime.__version__,
            "provider": "CPUExecutionProvider", "optimisation": "all", "threads": str(self.threads),
            "dtype": self.precision,
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.onnx` or `model.int8.onnx` into the folder `path`.

        `calibration` holds batches (N, C, H, W) of training data; float32 does not need it.
        """
        inputs, file = one_example(example), path / self.file_name
        path.mkdir(parents=True, exist_ok=True)
        if self.precision == "float32":
            export_onnx(model, inputs, file)
        else:
            with scratch_beside(path / "float32") as folder:
                export_onnx(model, inputs, folder / "model.onnx")
                quantize_onnx(folder / "model.onnx", calibration, file)
        return Artefact(file, tuple(inputs.shape), (file,))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            session = open_session(artefact.path, threads=self.threads)
            inputs = np.random.default_rng(0).standard_normal(artefact.input_shape, dtype=np.float32)
            feed = {session.get_inputs()[0].name: inputs}
            return lambda: session.run(None, feed)

        return measure_artefacts(artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed)
