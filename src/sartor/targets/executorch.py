# SPDX-License-Identifier: Apache-2.0
"""Target: ExecuTorch with XNNPACK on the processor, float32, as phones run it."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sartor.atomic import write_bytes
from sartor.deploy.parity import ExportError, evaluating, single_line
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import Conditions, Run, check_threads, in_batches, measure_artefacts, one_example
from sartor.targets.machine import processor
from sartor.targets.native import listening

__all__ = ["ExecuTorchTarget"]


@dataclass
class ExecuTorchTarget:
    """ExecuTorch's runtime on `threads` threads; at most `seconds` of timing per network.

    What XNNPACK takes it runs; the portable kernels run the rest, slowly. ValueError for fewer than one thread.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(default="executorch", init=False)
    file_name: str = field(default="model.pte", init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        check_threads(self.threads)

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, backend, threads and dtype."""
        _part("executorch.runtime")
        return {
            **processor(), "runtime": "executorch", "version": importlib.metadata.version("executorch"),
            "backend": "xnnpack", "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.pte`, for the batch of the example, into the folder `path`; calibration is not needed.

        ExportError if ExecuTorch does not take the network.
        """
        inputs, file = one_example(example, floats_for="ExecuTorch"), path / self.file_name
        exir = _part("executorch.exir")
        xnnpack = _part("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        path.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), evaluating(model):
            warnings.simplefilter("ignore")  # of torch about its own internals
            try:
                program = torch.export.export(model, (inputs.detach().contiguous(),))
                lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
                data = lowered.to_executorch().buffer
            except Exception as error:
                raise ExportError(f"ExecuTorch cannot lower the network: {single_line(error)}") from error
        write_bytes(file, bytes(data))
        return Artefact(file, tuple(inputs.shape), (file,))

    def runner(self, artefact: Artefact) -> Run:
        """Return the file as a function of float32 arrays (N, C, H, W)."""
        method = _method(artefact.path)

        def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.array(method.execute([torch.from_numpy(inputs)])[0].numpy())

        return in_batches(run, artefact.input_shape[0])

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            method = _method(artefact.path)
            inputs = [torch.randn(artefact.input_shape, generator=torch.Generator().manual_seed(0))]
            return lambda: method.execute(inputs)

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed,
            fingerprint=self.fingerprint(), conditions=Conditions(within=self._pool),
        )  # fmt: skip

    @contextmanager
    def _pool(self) -> Iterator[None]:
        """Let ExecuTorch's one pool of threads, which its operators share, have `threads` of them."""
        pool = _part("executorch.extension.pybindings.portable_lib")
        before = pool._threadpool_get_thread_count()
        with listening():
            pool._unsafe_reset_threadpool(self.threads)
        try:
            yield
        finally:
            with listening():
                pool._unsafe_reset_threadpool(before)


def _method(path: Path) -> Any:
    """Return the method `forward` of a program; ExportError if there is none or it was made by something else."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    runtime = _part("executorch.runtime").Runtime.get()
    with listening() as said:
        try:
            method = runtime.load_program(path).load_method("forward")
        except Exception as error:
            method, reason = None, single_line(error)
    if method is None:
        raise ExportError(f"{path}: ExecuTorch refuses it ({said.first(reason)})")
    return method


def _part(name: str) -> Any:
    """Import a part of ExecuTorch, which tells the terminal about what it did not find on this machine."""
    try:
        with listening(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ExecuTorch is missing ({error}): pip install 'sartor[executorch]'") from None
