# SPDX-License-Identifier: Apache-2.0
"""Target: ONNX Runtime, on the processor in float32 or statically quantised to int8, or on CUDA in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from sartor.deploy.onnx import export_onnx, onnx_runner, open_session
from sartor.deploy.quantize import quantize_onnx
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import (
    PROCESSOR,
    Conditions,
    Run,
    TargetError,
    check_threads,
    ids_below,
    made_up,
    measure_artefacts,
    one_example,
)  # fmt: skip
from sartor.targets.machine import processor

__all__ = ["OnnxRuntimeTarget"]


@dataclass
class OnnxRuntimeTarget:
    """ONNX Runtime on `threads` threads; at most `seconds` of timing per network.

    `precision` "int8" quantises from the calibration samples of `prepare`; weights and activations then have
    8 bits, inputs and outputs stay float32. `device` "cuda" is the current CUDA device in float32 without TF32;
    input and output stay on it. It needs onnxruntime-gpu in place of onnxruntime, and a CUDA build of PyTorch,
    whose events time it. ValueError for another precision or device, or fewer than one thread.
    """

    precision: Literal["float32", "int8"] = "float32"
    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    name: str = field(init=False)
    file_name: str = field(init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "int8"):
            raise ValueError(f"ONNX Runtime has no precision {self.precision!r} here: use float32 or int8")
        if self.device != "cpu" and (self.device, self.precision) != ("cuda", "float32"):
            raise ValueError(f"ONNX Runtime does not run {self.precision} on {self.device!r} here: use cpu")
        check_threads(self.threads)
        variant = "cuda" if self.device == "cuda" else "int8" if self.precision == "int8" else ""
        self.name = f"onnxruntime:{variant}" if variant else "onnxruntime"
        self.file_name = "model.int8.onnx" if self.precision == "int8" else "model.onnx"

    def fingerprint(self) -> dict[str, str]:
        """Return processor or card, system, runtime, version, provider, optimisation, threads and dtype."""
        runtime = _runtime()
        if self.device == "cuda":
            from sartor.targets import cuda

            machine, provider = {**cuda.card(), "tf32": "no"}, "CUDAExecutionProvider"
            if provider not in runtime.get_available_providers():
                raise TargetError("this ONNX Runtime has no CUDA: put onnxruntime-gpu in the place of onnxruntime")
        else:
            machine, provider = processor(), "CPUExecutionProvider"
        return {
            **machine, "runtime": "onnxruntime", "version": runtime.__version__,
            "provider": provider, "optimisation": "all", "threads": str(self.threads),
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
        return Artefact(file, tuple(inputs.shape), (file,), ids_below(inputs))

    def runner(self, artefact: Artefact) -> Run:
        """Return the file as a function of float32 arrays (N, C, H, W), run on the processor."""
        return onnx_runner(artefact.path, threads=self.threads)

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""
        return measure_artefacts(
            artefacts, self._on_card if self.device == "cuda" else self._on_processor, threads=self.threads,
            seconds=self.seconds, seed=self.seed, fingerprint=self.fingerprint(), conditions=self._conditions(),
        )  # fmt: skip

    def _conditions(self) -> Conditions:
        if self.device == "cpu":
            return PROCESSOR
        from sartor.targets import cuda

        return cuda.conditions(within=cuda.own_stream, memory=cuda.card_memory)

    def _on_processor(self, artefact: Artefact) -> Callable[[], object]:
        session = open_session(artefact.path, threads=self.threads)
        feed = {session.get_inputs()[0].name: made_up(artefact)}
        return lambda: session.run(None, feed)

    def _on_card(self, artefact: Artefact) -> Callable[[], object]:
        """Bind tensors on the card, and the stream on which PyTorch records its events."""
        import torch

        index, stream = torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream
        settings = {"device_id": str(index), "use_tf32": "0", "user_compute_stream": str(stream)}
        providers = [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
        session = open_session(artefact.path, threads=self.threads, providers=providers)
        noise = torch.randn(artefact.input_shape, generator=torch.Generator().manual_seed(0))
        inputs = (torch.from_numpy(made_up(artefact)) if artefact.ids_below else noise).to("cuda")
        kind = np.int64 if artefact.ids_below else np.float32
        binding = session.io_binding()
        binding.bind_input(
            session.get_inputs()[0].name, "cuda", index, kind, [*inputs.shape], inputs.data_ptr()
        )  # fmt: skip
        binding.bind_output(session.get_outputs()[0].name, "cuda", index)
        options = _runtime().RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the event waits
        kept = inputs  # the binding holds its address only
        return lambda: (session.run_with_iobinding(binding, options), kept)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is missing ({error}): pip install 'sartor[onnx]'") from None
    return onnxruntime
