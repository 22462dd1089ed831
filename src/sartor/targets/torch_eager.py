# SPDX-License-Identifier: Apache-2.0
"""Target: PyTorch itself, running the exported program `model.pt2` eagerly or compiled, on processor or CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sartor.deploy.program import export_pt2, load_pt2, pt2_runner
from sartor.protocols import Artefact, Measurement
from sartor.targets import cuda
from sartor.targets.artefacts import (
    Conditions,
    Run,
    check_threads,
    ids_below,
    made_up,
    measure_artefacts,
    one_example,
)
from sartor.targets.machine import processor

__all__ = ["TorchTarget"]


@dataclass
class TorchTarget:
    """PyTorch in float32 on `threads` threads; at most `seconds` of timing per network.

    `mode` "compile" hands the loaded program to `torch.compile` for the artefact's shape, which takes a C++
    compiler and some seconds per network, outside the timing. `device` "cuda" is the current CUDA device, without
    TF32; input and output stay on it. ValueError for another mode or device, or fewer than one thread.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    mode: Literal["eager", "compile"] = "eager"
    device: Literal["cpu", "cuda"] = "cpu"
    name: str = field(init=False)
    file_name: str = field(default="model.pt2", init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.mode not in ("eager", "compile") or self.device not in ("cpu", "cuda"):
            raise ValueError(f"PyTorch does not run {self.mode!r} on {self.device!r}: eager or compile, cpu or cuda")
        variant = "-".join([*["cuda"] * (self.device == "cuda"), *["compile"] * (self.mode == "compile")])
        self.name = f"torch:{variant}" if variant else "torch"

    def fingerprint(self) -> dict[str, str]:
        """Return processor or card, system, runtime, version, mode, threads and dtype."""
        machine = processor() if self.device == "cpu" else {**cuda.card(), "tf32": "no"}
        return {
            **machine, "runtime": "torch", "version": torch.__version__, "mode": self.mode,
            "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.pt2` into the folder `path`; calibration samples are not needed."""
        inputs, file = one_example(example), path / self.file_name
        path.mkdir(parents=True, exist_ok=True)
        export_pt2(model, inputs, file)
        return Artefact(file, tuple(inputs.shape), (file,), ids_below(inputs))

    def runner(self, artefact: Artefact) -> Run:
        """Return the program as a function of float32 arrays (N, C, H, W); PyTorch runs it on the processor."""
        return pt2_runner(artefact.path)

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""

        def load(artefact: Artefact) -> Callable[[], object]:
            module = load_pt2(artefact.path, device=self.device)
            noise = torch.randn(artefact.input_shape, generator=torch.Generator().manual_seed(0))
            inputs = (torch.from_numpy(made_up(artefact)) if artefact.ids_below else noise).to(self.device)
            run: Any = torch.compile(module, dynamic=False) if self.mode == "compile" else module
            return lambda: run(inputs)

        return measure_artefacts(
            artefacts, load, threads=self.threads, seconds=self.seconds, seed=self.seed,
            fingerprint=self.fingerprint(), conditions=self._conditions(),
        )  # fmt: skip

    def _conditions(self) -> Conditions:
        if self.device == "cpu":
            return Conditions(within=self._settings)
        return cuda.conditions(within=self._settings, memory=cuda.torch_memory)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Let PyTorch use `threads` threads, and no gradients."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode(), cuda.whole_float32() if self.device == "cuda" else nullcontext():
                yield
        finally:
            torch.set_num_threads(before)
