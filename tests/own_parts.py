"""A user's own spaces, targets and methods, as `path.py:Class` names them: small, with latencies that repeat."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.nn import BatchNorm2d, Conv2d, Linear, OneOf, Repeat
from sartor.protocols import Artefact, Measurement
from sartor.space import SearchSpace
from sartor.supernet import activated
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


class FixedWidth(nn.Module):
    """A network of which the depth alone is searched."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU())
        self.blocks = Repeat(*(nn.Conv2d(4, 4, 3, 1, 1) for _ in range(2)), depth=Choice([1, 2]))
        self.head = nn.Linear(4, classes)

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


class TrialAndError:
    """A method: it trains networks that it draws, and prefers the options of those with a small loss."""

    needs = "single"

    def __init__(self, net: nn.Module, space: SearchSpace, loss: Any, *, steps: int, seed: int) -> None:
        self.net, self.space, self.loss, self.seed, self.done = net, space, loss, seed, 0
        self.scores = {name: torch.zeros(len(options)) for name, options in space.choices.items()}
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, float]:
        """Train a network drawn uniformly for a step."""
        arch = self.space.sample(random.Random(f"{self.seed}/{self.done}"))
        with activated(self.net, arch):
            self.net.train()
            self.optimizer.zero_grad()
            loss = self.loss(self.net(batch[0]), batch[1])
            loss.backward()
            self.optimizer.step()
        for name, options in self.space.choices.items():
            self.scores[name][options.index(arch[name])] -= 0.1 * loss.item() - 0.2
        self.done += 1
        return {"loss": loss.item(), "entropy": 1.0 / self.done}

    def probabilities(self) -> dict[str, list[float]]:
        """Return how much each option is preferred."""
        return {name: row.softmax(0).tolist() for name, row in self.scores.items()}

    def architecture(self) -> Architecture:
        """Return the preferred options."""
        return self.space.canonical({n: o[int(self.scores[n].argmax())] for n, o in self.space.choices.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        return {"net": self.net.state_dict(), "scores": self.scores, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.net.load_state_dict(state["net"])
        self.scores, self.done = {name: row.clone() for name, row in state["scores"].items()}, state["done"]


class Blind:
    """A learner that has no architecture to tell."""

    def step(self, batch: object) -> Mapping[str, float]:
        """Do nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""


class TwoForms(nn.Module):
    """A space whose evaluation form has a layer more, under choices of the same names."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int], *, form: str = "search") -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, 2, 1)
        self.operation = OneOf({"skip": nn.Identity(), "conv": nn.Conv2d(4, 4, 3, 1, 1)}, name="operation")
        self.last = nn.Conv2d(4, 4, 1) if form == "evaluation" else nn.Identity()
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        return self.head(self.last(self.operation(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]
