"""MNIST at equal wall-clock: the verified front of a search against random networks trained from scratch.

For each seed a search runs with a wall-clock budget. Then random architectures of the same space are trained from
scratch, one after the other with the same recipe, in equal shares of the time that the whole search took (its
latency samples, its verification and its exports included; it trains no hand-made networks to compare with).
Exporting and measuring the random networks is not counted. All networks are measured together in interleaved rounds.
The hypervolume is of test error and measured latency, as a fraction of the box between zero and the reference point:
20 % error and 1.1 times the largest network's latency. The test split decides nothing in either; "best" is the test
accuracy of the network best on validation.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from sartor import recipes
from sartor.architecture import Architecture
from sartor.fit import fit
from sartor.pareto import hypervolume
from sartor.recipes.fronts import read_entries
from sartor.recipes.job import Job
from sartor.recipes.training import Trained, supervised_learner
from sartor.recipes.verification import measure_members, read_member, write_member
from sartor.supernet import extract, recalibrate_batchnorm
from sartor.targets import load_target
from sartor.task import load_task

Row = Mapping[str, str | float | None]

DATA = os.environ.get("SARTOR_MNIST", "mnist.npz")
REFERENCE_ERROR = 0.2


def rows(quick: bool) -> Iterator[Row]:
    """A row per seed and number of random networks, then the means."""
    budget_s, seeds = (60.0, 1) if quick else (float(os.environ.get("SARTOR_BUDGET", "240")), 3)
    found = [row for seed in range(seeds) for row in _compared(seed, budget_s, (8,))]
    yield from found
    for column in sorted({str(row["networks"]) for row in found}):
        ours, theirs = (
            [_number(row[key]) for row in found if str(row["networks"]) == column] for key in ("search HV", "random HV")
        )
        yield {
            "seed": "mean",
            "networks": column,
            "seconds": float(np.mean([_number(r["seconds"]) for r in found])),
            "search HV": float(np.mean(ours)),
            "random HV": float(np.mean(theirs)),
            "difference": float(np.mean(np.subtract(ours, theirs))),
            "spread": float(np.std(np.subtract(ours, theirs), ddof=1)) if len(ours) > 1 else 0.0,
            "search best": None,
            "random best": None,
            "front": None,
        }


def _compared(seed: int, budget_s: float, counts: tuple[int, ...]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        run = recipes.search_for_device(DATA, out=Path(folder) / "run", budget_s=budget_s, seed=seed, baselines=False)
        seconds = time.monotonic() - started
        job = Job(run, load_task(DATA, seed=seed), (load_target("onnxruntime"),), lambda line: None)
        job.use_threads()
        rows = [_row(job, Path(folder), count, seconds) for count in counts]
        run.close()
        return rows


def _row(job: Job, folder: Path, count: int, seconds: float) -> Row:
    rng = random.Random(f"{job.seed}/random baseline")
    members = []
    for arch in [job.space.sample(rng) for _ in range(count)]:
        train = partial(_trained_for, job, arch, seconds / count)
        members.append(write_member(job, folder / f"random-{count}" / arch.id, arch, train))
    front = [read_member(path) for path in sorted((job.path / "pareto").iterdir())]
    arch = job.space.largest()  # for its latency alone: untrained
    largest = write_member(job, folder / "largest", arch, lambda: (extract(job.network().eval(), arch), {}))
    measure_members(job, [*front, *members, largest], {})
    scale = 1.1 * _point(job, largest.folder)[1]
    ours, theirs = (np.array([_point(job, m.folder) for m in group]) for group in (front, members))
    volumes = [hypervolume(points / [REFERENCE_ERROR, scale], [1.0, 1.0]) for points in (ours, theirs)]
    return {
        "seed": str(job.seed),
        "networks": count,
        "seconds": seconds,
        "search HV": volumes[0],
        "random HV": volumes[1],
        "difference": volumes[0] - volumes[1],
        "spread": None,
        "search best": _incumbent(job, [m.folder for m in front]),
        "random best": _incumbent(job, [m.folder for m in members]),
        "front": len(front),
    }


def _trained_for(job: Job, arch: Architecture, seconds: float) -> Trained:
    """One network trained from scratch for a wall-clock share; the steps are planned from the first few."""
    size, started = job.plan["batch_size"], time.monotonic()
    trial = supervised_learner(job, arch, steps=1000, batch_size=size)
    trial.step(job.task.train.batch(0, size, augment=True))
    timed = time.monotonic()
    for step in range(1, 6):
        trial.step(job.task.train.batch(step, size, augment=True))
    step_s = (time.monotonic() - timed) / 5
    steps = max(1, int((seconds - (time.monotonic() - started)) / step_s))
    learner = supervised_learner(job, arch, steps=steps, batch_size=size)
    fit(learner, job.task.train, steps=steps, batch_size=size, seed=job.seed)
    recalibrate_batchnorm(learner.net, job.calibration)
    return learner.net.eval(), {}


def _incumbent(job: Job, folders: Iterable[Path]) -> float:
    """Test accuracy of the network that is best on validation."""
    entries = [read_entries(folder)[job.target.name]["accuracy"] for folder in folders]
    best: float = max(entries, key=lambda accuracy: accuracy["validation"])["test"]
    return best


def _point(job: Job, folder: Path) -> tuple[float, float]:
    entry = read_entries(folder)[job.target.name]
    return 1.0 - entry["accuracy"]["test"], entry["measurement"]["latency_ms"]


def _number(value: str | float | None) -> float:
    assert value is not None
    return float(value)
