# SPDX-License-Identifier: Apache-2.0
"""A device that is arithmetic: it fuses, has a level that changes from session to session, and refuses on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from sartor.costs import Profile
from sartor.costs import profile as profiles
from sartor.costs.fitting import Make, candidates
from sartor.costs.ledger import Ledger
from sartor.protocols import Artefact, Measurement
from sartor.recipes import profile_device as recipe
from sartor.recipes.profile_device import profile_device
from sartor.targets.artefacts import TargetError
from sartor.workload import Op, macs, trace

CALL_MS = 0.004
QUICK = ("operators", "additive", "workload", "ridge", "flops", "parameters")


def use_quick_models(patch: pytest.MonkeyPatch) -> None:
    """Profile with the models that take no seconds to fit, and with few candidates."""

    def quick(*given: Any, **named: Any) -> dict[str, Make]:
        return {name: make for name, make in candidates(*given, **named).items() if name in QUICK}

    patch.setattr(recipe, "candidates", quick)
    patch.setattr(profiles, "candidates", quick)
    patch.setattr(recipe, "POOL", 72)
    patch.setattr(recipe, "PLANNED", 12)
    patch.setattr(recipe, "OPERATORS_AT_A_TIME", 64)


def op_ms(op: Op) -> float:
    """Return what an operator takes alone."""
    moved = math.prod(op.output) + sum(map(math.prod, op.inputs))
    return 0.001 + macs((op,)) * 2e-7 + moved * 5e-8


def network_ms(ops: Sequence[Op]) -> float:
    """Return what a network takes: batch norm and ReLU behind a convolution are free."""
    total, head = CALL_MS, ""
    for op in ops:
        if head == "conv" and op.kind in ("batch_norm", "relu"):
            continue
        total, head = total + op_ms(op), op.kind
    return total


@dataclass
class SimulatedTarget:
    """A target of which every session is slower by `drift`, and every measurement off by up to `noise`."""

    threads: int = 1
    name: str = "simulated"
    drift: float = 0.1
    noise: float = 0.0
    factor: float = 1.0
    file_name: str = "model.json"
    refuses: str = ""  # the kind of operator that is not known here
    dies_at: int = -1  # the session in which the power fails
    sessions: int = field(default=0, init=False)
    prepared: list[str] = field(default_factory=list, init=False)

    def fingerprint(self) -> dict[str, str]:
        return {"processor": self.name, "threads": str(self.threads)}

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        assert calibration[0].shape[1:] == example[0].shape[1:]
        ops = trace(model, *example, live=True)
        file = path / self.file_name
        file.write_text(json.dumps({"ms": self.factor * network_ms(ops), "kinds": [op.kind for op in ops]}))
        self.prepared.append(path.name)
        return Artefact(file, tuple(example[0].shape), (file,))

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        if self.sessions == self.dies_at:
            raise KeyboardInterrupt
        level = (1.0 + self.drift) ** self.sessions
        rng = np.random.default_rng(self.sessions)
        self.sessions += 1
        read = [json.loads(artefact.path.read_text()) for artefact in artefacts]
        found = [self._measurement(one["ms"] * level * float(rng.uniform(1, 1 + self.noise))) for one in read]
        reasons = {place: f"no {self.refuses} here" for place, one in enumerate(read) if self.refuses in one["kinds"]}
        if reasons:
            kept = [None if place in reasons else one for place, one in enumerate(found)]
            raise TargetError("; ".join(reasons.values()), reasons, kept)
        return found

    def _measurement(self, ms: float) -> Measurement:
        return Measurement(
            latency_ms=ms, p10=ms, p90=ms, p95=ms, p99=ms, minimum=ms, runs=60, rounds=6, ci_low=ms, ci_high=ms, cv=0.0,
            noisy=False, notes=(), size_mb=0.1, memory_mb=None, fingerprint={**self.fingerprint(), "shape": "any"},
        )  # fmt: skip


class Leaving(SimulatedTarget):
    """Is out of reach in one session, and says so as a remote device does: with a reason for each network."""

    gone_in = -1

    def measure(self, artefacts: Any) -> Any:
        if self.sessions == self.gone_in:
            self.sessions += 1
            reasons = {place: f"{one.path}: no route to host" for place, one in enumerate(artefacts)}
            raise TargetError("no route to host", reasons, [None] * len(artefacts))
        return super().measure(artefacts)


MOBILENET: dict[str, Any] = {"space": "mobilenet", "size": 8, "channels": 1, "samples": 20, "tests": 8}


@dataclass
class Setup:
    """A device that stands for every target, and a run of the recipe on it."""

    path: Path
    device: SimulatedTarget

    def run(self, **given: Any) -> Profile:
        return profile_device(**{**MOBILENET, "target": "simulated", "out": self.path, **given})

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

    @property
    def kinds(self) -> list[str]:
        return [session.kind for session in self.ledger.sessions(self.ledger.entries()[0])]

    @classmethod
    def on(cls, path: Path, patch: pytest.MonkeyPatch) -> Setup:
        """Let the device stand for every target, and quick models for all."""
        made = cls(path, SimulatedTarget())
        patch.setattr(recipe, "load_target", lambda text, threads: made.device)
        use_quick_models(patch)
        return made


def value(profile: Profile, measure: str) -> float:
    found = profile.errors[measure].value
    assert found is not None
    return found
