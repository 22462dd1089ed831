# SPDX-License-Identifier: Apache-2.0
"""The interfaces between the parts, and the two values that targets exchange.

A class joins by having the methods; it inherits nothing and registers nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.trial import Candidate, Trial

if TYPE_CHECKING:
    from torch import Tensor, nn


class NotReady(Exception):
    """Raised by `Strategy.ask` when the next architecture depends on trials that were not told yet."""


@runtime_checkable
class Strategy(Protocol):
    """A black-box search: asked for architectures, told their trials.

    All randomness comes from the `rng` of the call, which is valid during the call only; all state comes
    from `tell`. The same asks and tells then give the same search again, and this is how a search resumes.
    `ask` may be called several times before a `tell` (parallel workers). It may note what it asked for, so as
    not to ask for it again while that runs, if the tell strikes it off: with one worker nothing runs at an ask.
    """

    def ask(self, rng: random.Random) -> Architecture | Candidate:
        """Return the next architecture to evaluate, or raise NotReady while earlier trials are awaited.

        A strategy that chooses budgets returns a Candidate. Where no objective has `fidelity`, every
        evaluation is a full one, and its trial says so (budget 1.0) whatever was asked for.
        """
        ...

    def tell(self, trial: Trial) -> None:
        """Take in a trial that ended: done, infeasible or failed."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """Whatever is saved and restored instead of replayed, such as a strategy that holds a network."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


@runtime_checkable
class Learner(Protocol):
    """Anything trained step by step: supernets, differentiable searches, predictors with networks."""

    def step(self, batch: Any) -> Mapping[str, float]:
        """Run forward, backward and optimiser on one batch; return the scalars to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state: weights, optimiser, counters."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """A surrogate of an objective, with the two verbs of scikit-learn."""

    def fit(self, archs: Sequence[Architecture], values: NDArray[np.float64]) -> Self:
        """Learn from N architectures and their (N,) values; return self."""
        ...

    def predict(self, archs: Sequence[Architecture]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the (N,) means and (N,) standard deviations (zeros where there is no estimate)."""
        ...


@runtime_checkable
class Target(Protocol):
    """A device with a runtime that can run, and therefore measure, an exported network."""

    name: str
    """As the user writes it: "torch", "onnxruntime", "onnxruntime:int8"."""

    def fingerprint(self) -> dict[str, str]:
        """Return what decides a measurement: processor, runtime, version, threads, dtype; no path or host."""
        ...

    def prepare(
        self, model: nn.Module, example: tuple[Tensor, ...], calibration: Sequence[Tensor], path: Path
    ) -> Artefact:
        """Write the files that will be deployed below `path`; `calibration` has samples for int8."""
        ...

    def measure(self, artefacts: Sequence[Artefact]) -> list[Measurement]:
        """Measure the files themselves, in interleaved rounds; one measurement per artefact, in order."""
        ...


@dataclass(frozen=True)
class Artefact:
    """What is on disk and is measured: the main file at `path`, all `files`, and the (N, C, H, W) input.

    The batch N is part of it: a file measured at another N is another artefact. `ids_below` is 0 for a float32 input;
    an input of token ids (N, T), int64, takes all ids from 0 to that number, which is not one of them.
    """

    path: Path
    input_shape: tuple[int, ...]
    files: tuple[Path, ...]
    ids_below: int = 0


@dataclass(frozen=True)
class Measurement:
    """Latency of one artefact in milliseconds (`latency_ms` is the median), with its spread and costs.

    `fingerprint` says under which conditions: that of the target, with the batch and the shape of one sample, as
    ``"batch": "1", "shape": "3x32x32"``. Two latencies are comparable if theirs are equal, see
    `sartor.targets.fingerprint`. `energy_mj` is None unless a counter measured it.
    """

    latency_ms: float
    p10: float
    p90: float
    p95: float
    p99: float
    minimum: float
    runs: int
    rounds: int
    ci_low: float  # bootstrap 95 % interval of the median
    ci_high: float
    cv: float  # standard deviation of the rounds' medians over their mean
    noisy: bool
    notes: tuple[str, ...]
    size_mb: float
    memory_mb: float | None
    energy_mj: float | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can carry; `from_dict` reads it back."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` returned; ValueError names the fields that are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if wrong := names - {"energy_mj", "fingerprint"} - set(values) | set(values) - names:
            raise ValueError(f"not a measurement: {', '.join(sorted(wrong))} missing or unknown")
        return cls(**{**values, "notes": tuple(values["notes"])})
