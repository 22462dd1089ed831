"""A user's own space and target, as `path.py:Class` names them: small, and with latencies that repeat exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from sartor.choice import Choice
from sartor.nn import BatchNorm2d, Conv2d, Linear, Repeat
from sartor.protocols import Artefact, Measurement
from sartor.targets.artefacts import TargetError
from sartor.workload import macs, parameters, trace

LARGEST_MS = 0.02


class TinyNetwork(nn.Module):
    """Two convolutions of searched width and a searched number of blocks between them."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.width = Choice([4, 8, 12])
        self.stem = nn.Sequential(Conv2d(channels, self.width, 3, 2, 1), BatchNorm2d(self.width), nn.ReLU())
        blocks = [nn.Sequential(Conv2d(self.width, self.width, 3, 1, 1), nn.ReLU()) for _ in range(2)]
        self.blocks = Repeat(*blocks, depth=Choice([1, 2]))
        self.head = Linear(self.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class CountingTarget:
    """A device whose latency is exactly one nanosecond for each multiply-accumulate."""

    name = "counting"

    def __init__(self, *, threads: int = 1) -> None:
        self.threads = threads

    def fingerprint(self) -> dict[str, str]:
        """Return what decides a measurement here."""
        return {"processor": "counting", "threads": str(self.threads)}

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write the count into a file."""
        file = path / "model.count"
        file.write_text(json.dumps(macs(trace(model, *example))))
        return Artefact(file, tuple(example[0].shape), (file,))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Read the counts back."""
        return [_measurement(json.loads(artefact.path.read_text()) * 1e-6) for artefact in artefacts]


class ParameterTarget(CountingTarget):
    """Another device, which takes a nanosecond for each parameter, and a microjoule and a kilobyte with it."""

    name = "parameters"

    def fingerprint(self) -> dict[str, str]:
        """Return what decides a measurement here."""
        return {"processor": "parameters", "threads": str(self.threads)}

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write the count into a file."""
        file = path / "model.parameters"
        file.write_text(json.dumps(parameters(trace(model, *example))))
        return Artefact(file, tuple(example[0].shape), (file,))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Read the counts back."""
        found = [1e-3 * json.loads(artefact.path.read_text()) for artefact in artefacts]
        return [replace(_measurement(one), energy_mj=one, memory_mb=one) for one in found]


class PickyTarget(CountingTarget):
    """The same device, which refuses to run the widest networks."""

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Read the counts back, but for those of networks above 5 microseconds."""
        found = [_measurement(json.loads(artefact.path.read_text()) * 1e-6) for artefact in artefacts]
        kept = [None if one.latency_ms > LARGEST_MS else one for one in found]
        refused = {i: "too wide for this device" for i, one in enumerate(kept) if one is None}
        if refused:
            raise TargetError("too wide for this device", refused, kept)
        return found


def _measurement(ms: float) -> Measurement:
    return Measurement(
        latency_ms=ms, p10=ms, p90=ms, p95=ms, p99=ms, minimum=ms, runs=1, rounds=1, ci_low=ms, ci_high=ms, cv=0.0,
        noisy=False, notes=(), size_mb=0.0, memory_mb=None,
    )  # fmt: skip
