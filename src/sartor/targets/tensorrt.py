# SPDX-License-Identifier: Apache-2.0
"""Target: TensorRT on CUDA, float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.atomic import write_bytes
from sartor.deploy.onnx import export_onnx
from sartor.deploy.parity import ExportError
from sartor.deploy.scratch import scratch_beside
from sartor.protocols import Artefact, Measurement
from sartor.targets import cuda
from sartor.targets.artefacts import Run, check_threads, in_batches, measure_artefacts, one_example
from sartor.targets.native import listening

__all__ = ["TensorRtTarget"]


@dataclass
class TensorRtTarget:
    """TensorRT on the current CUDA device without TF32; at most `seconds` of timing per network.

    An engine is chosen by timing kernels on the card, so equal networks may give unequal files, and runs on that
    card and version of TensorRT only. It holds machine code: open none from people you do not trust. PyTorch's
    tensors and events feed and time it. `threads` is the host's, of which one launches; ValueError for fewer.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(default="tensorrt", init=False)
    file_name: str = field(default="model.engine", init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def fingerprint(self) -> dict[str, str]:
        """Return processor, card, driver, system, runtime, version, threads and dtype."""
        return {
            **cuda.card(), "tf32": "no", "runtime": "tensorrt", "version": _tensorrt().__version__,
            "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.engine`, for the batch of the example, into the folder `path`; calibration is not needed.

        ExportError if TensorRT does not take the network, TargetError without a card.
        """
        inputs, file = one_example(example, floats_for="TensorRT"), path / self.file_name
        cuda.require_cuda()
        path.mkdir(parents=True, exist_ok=True)
        with scratch_beside(path / "tensorrt") as folder:
            export_onnx(model, inputs, folder / "model.onnx")
            engine = _built((folder / "model.onnx").read_bytes(), tuple(inputs.shape))
        write_bytes(file, engine)
        return Artefact(file, tuple(inputs.shape), (file,))

    def runner(self, artefact: Artefact) -> Run:
        """Return the engine as a function of float32 arrays (N, C, H, W), copied to the card and back."""
        launch, given, out = _opened(artefact)

        def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            given.copy_(torch.from_numpy(inputs))
            launch()
            return np.asarray(out.cpu().numpy())  # the copy waits for the stream

        return in_batches(run, artefact.input_shape[0])

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the engines and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            launch, given, _ = _opened(artefact)
            given.copy_(torch.randn(artefact.input_shape, generator=torch.Generator().manual_seed(0)))
            return launch

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed,
            fingerprint=self.fingerprint(),
            conditions=cuda.conditions(within=cuda.own_stream, memory=cuda.card_memory),
        )  # fmt: skip


def _built(model: bytes, shape: tuple[int, ...]) -> bytes:
    """Return an engine for the ONNX model, whose one input gets `shape`; ExportError with TensorRT's reason."""
    trt = _tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        raise ExportError(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    with listening() as said:
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT cannot build the network: {said.first('no reason given')}")
    return bytes(engine)


def _opened(artefact: Artefact) -> tuple[Callable[[], object], Tensor, Tensor]:
    """Return the launch of an engine on the current stream, with its input and output on the card."""
    if not artefact.path.is_file():
        raise ExportError(f"{artefact.path}: no such file")
    trt = _tensorrt()
    cuda.require_cuda()
    with listening() as said:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(artefact.path.read_bytes())
    if engine is None:
        raise ExportError(f"{artefact.path}: TensorRT refuses it ({said.first('no reason given')})")
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    given, out = sorted(names, key=lambda name: engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT)
    if not context.set_input_shape(given, artefact.input_shape):
        raise ExportError(f"{artefact.path}: the engine is for another shape than {artefact.input_shape}")
    tensors = {name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in (given, out)}
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())

    def launch(_: object = (runtime, engine, tensors)) -> object:  # the context needs them alive
        return context.execute_async_v3(torch.cuda.current_stream().cuda_stream)

    return launch, tensors[given], tensors[out]


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise ImportError(f"TensorRT is missing ({error}): pip install 'sartor[tensorrt]'") from None
    return tensorrt
