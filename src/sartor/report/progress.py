# SPDX-License-Identifier: Apache-2.0
"""What was asked, and how the search got there: objectives, best and hypervolume trial by trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sartor.report.reading import Record, mapping, number
from sartor.trial import Trial

Front: TypeAlias = list[tuple[float, float]]  # (latency, error), fastest first


@dataclass(frozen=True)
class Question:
    """The two objectives a report is about, quality (error or accuracy) and latency, and its bound."""

    quality: str = "error"
    latency: str = "latency_ms"
    limit_ms: float | None = None

    def accuracy(self, trial: Trial) -> float | None:
        """Return the estimated validation accuracy as a fraction, or None."""
        value = trial.values.get(self.quality)
        if value is None:
            return None
        return 1 - value if self.quality.endswith("error") else value

    def latency_ms(self, trial: Trial) -> float | None:
        """Return the predicted latency in milliseconds, or None."""
        return trial.values.get(self.latency)


@dataclass(frozen=True)
class Point:
    """One done trial, and the state of the search after it."""

    number: int
    arch: str
    accuracy: float
    latency_ms: float
    within_limit: bool
    best: float | None
    hypervolume: float


def question(record: Record, target: str | None = None) -> Question:
    """Find the two objectives: the latency on a target (the first one's has no suffix); quality is the first other."""
    entries = record.run.get("objectives")
    objectives = [mapping(one) for one in entries] if isinstance(entries, list) else []
    names = [str(one.get("name", "")) for one in objectives]
    further = target is not None and target in record.target_names[1:]
    wanted = f"latency_ms@{target}" if further else next((name for name in names if "latency" in name), "latency_ms")
    quality = next((name for name in names if name and "latency" not in name), Question.quality)
    bounds = (number(one.get("at_most")) for one in objectives if one.get("name") == wanted)
    return Question(quality, wanted, next(bounds, None))


def progress(trials: Sequence[Trial], asked: Question) -> list[Point]:
    """Follow the done trials in the order they were told.

    The hypervolume is the share of the box from (no error, no time) to the worst error among the done trials
    and to the limit (without one: the slowest) that the trials so far dominate.
    """
    done = [(one, asked.accuracy(one), asked.latency_ms(one)) for one in trials if one.state == "done"]
    known = [(one, right, time) for one, right, time in done if right is not None and time is not None]
    slowest = asked.limit_ms or max((latency for _, _, latency in known), default=0.0)
    worst = max((1 - accuracy for _, accuracy, _ in known), default=0.0)
    front: Front = []
    points: list[Point] = []
    best, volume = None, 0.0
    for trial, accuracy, latency in known:
        within = latency <= slowest
        if within:
            best = accuracy if best is None else max(best, accuracy)
            front, grown = _joined(front, (latency, 1 - accuracy))
            volume = _dominated(front, slowest, worst) if grown else volume
        points.append(Point(trial.number, trial.arch.id, accuracy, latency, within, best, volume))
    return points


def _joined(front: Front, point: tuple[float, float]) -> tuple[Front, bool]:
    """Return the front, fastest first, with `point` if no member dominates it, and whether it did join."""
    if any(latency <= point[0] and error <= point[1] for latency, error in front):
        return front, False
    kept = [one for one in front if one[0] < point[0] or one[1] < point[1]]
    return sorted([*kept, point]), True


def _dominated(front: Front, slowest: float, worst: float) -> float:
    """Return the share of the box [0, slowest] x [0, worst] that a front, fastest first, dominates."""
    ends = [latency for latency, _ in front[1:]] + [slowest]
    area = sum((end - latency) * (worst - error) for (latency, error), end in zip(front, ends, strict=True))
    return area / (slowest * worst) if slowest > 0 and worst > 0 else 0.0
