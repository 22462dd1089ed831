# SPDX-License-Identifier: Apache-2.0
"""Target: PyTorch itself on the processor, running the exported program `model.pt2`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sartor.deploy.program import export_pt2, load_pt2
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import measure_artefacts, one_example
from sartor.targets.machine import processor

__all__ = ["TorchTarget"]


@dataclass
class TorchTarget:
    """PyTorch in eager mode, float32, on `threads` threads; at most `seconds` of timing per network.

    ValueError for fewer than one thread.
    """

    threads: int = 1
    seconds: float = 1.0
    seed: int = 0
    name: str = field(default="torch", init=False)
    file_name: str = field(default="model.pt2", init=False)  # in the folder given to `prepare`

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"cannot run on {self.threads} threads: use 1 or more")

    def fingerprint(self) -> dict[str, str]:
        """Return processor, system, runtime, version, threads and dtype."""
        return {
            **processor(), "runtime": "torch", "version": torch.__version__, "mode": "eager",
            "threads": str(self.threads), "dtype": "float32",
        }  # fmt: skip

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write `model.pt2` into the folder `path`; calibration samples are not needed."""
        inputs, file = one_example(example), path / self.file_name
        path.mkdir(parents=True, exist_ok=True)
        export_pt2(model, inputs, file)
        return Artefact(file, tuple(inputs.shape), (file,))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Load the files and time them in interleaved rounds; TargetError names those that do not run."""
        return measure_artefacts(artefacts, _load, threads=self.threads, seconds=self.seconds, seed=self.seed)


def _load(artefact: Artefact) -> Callable[[], object]:
    module = load_pt2(artefact.path)
    inputs = torch.randn(artefact.input_shape, generator=torch.Generator().manual_seed(0))
    return lambda: module(inputs)
