"""A synthetic run folder for the report's tests: a small MobileNet-like space on a made-up device."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.trial import State, Trial, TrialLog

LIMIT_MS = 0.2
TARGET = "onnxruntime"
STEPS, FINETUNE_STEPS, TRIALS, SAMPLES = 1200, 240, 240, 60
STAGES = {"profile": 21.4, "train": 74.8, "search": 38.2, "baselines": 24.9, "verify": 12.6}
SHARED = {"trained": "shared weights, then tuned", "steps": STEPS, "finetune_steps": FINETUNE_STEPS}
UP_TO = ("started", "profiled", "trained", "searched", "baselines", "verified", "finished")
FINGERPRINT = {
    "processor": "Example CPU 2.1 GHz",
    "runtime": "onnxruntime",
    "version": "1.22.0",
    "threads": "1",
    "dtype": "float32",
}


def choices() -> dict[str, list[Any]]:
    """Return the options of every choice by name."""
    found: dict[str, list[Any]] = {"resolution": [8, 12, 16], "stem.width": [8, 16]}
    for stage, widths in enumerate(([8, 12, 16], [16, 24, 32], [32, 48, 64])):
        found[f"stages.{stage}.width"] = widths
        found[f"stages.{stage}.depth"] = [1, 2, 3]
        for block in range(3):
            found[f"stages.{stage}.blocks.{block}.kernel"] = [3, 5, 7]
            found[f"stages.{stage}.blocks.{block}.expand"] = [2, 4, 6]
            found[f"stages.{stage}.blocks.{block}.se"] = [False, True]
    return found


def gates() -> dict[str, Any]:
    """Return when a block's choices matter: where the stage is deep enough to hold the block."""
    found: dict[str, Any] = {}
    for name in choices():
        _, _, rest = name.partition(".blocks.")
        block = int(rest.split(".")[0]) if rest else 0
        if block:
            depth = name.split(".blocks.")[0] + ".depth"
            found[name] = [[[depth, [count for count in (1, 2, 3) if count > block]]]]
    return found


def accuracy(arch: Mapping[str, Any], noise: float = 0.0) -> float:
    """Return a made-up validation accuracy that saturates with size."""
    capacity = math.log(_work(arch)) + 0.25 * sum(bool(arch[name]) for name in arch if name.endswith(".se")) / 9
    return min(0.996, 0.992 - 0.6 * math.exp(-0.95 * capacity) + noise)


def latency(arch: Mapping[str, Any], noise: float = 0.0) -> float:
    """Return a made-up latency in milliseconds."""
    return (0.035 + 0.0021 * _work(arch)) * (1 + noise)


def sample(rng: random.Random) -> Architecture:
    """Draw an architecture, with inactive choices at their first option."""
    options = choices()
    values = {name: rng.choice(entries) for name, entries in options.items()}
    for name, [[[depth, enough]]] in gates().items():
        if values[depth] not in enough:
            values[name] = options[name][0]
    return Architecture(values)


def write_run(folder: Path, up_to: str = "finished", **changes: Any) -> Path:
    """Write a run that was stopped after the stage `up_to`; `changes` replace top-level parts of run.json."""
    stage, rng = UP_TO.index(up_to), random.Random(0)
    folder.mkdir(parents=True)
    done = list(STAGES.items())[: stage if stage < 5 else stage - 1]
    (folder / "run.json").write_text(json.dumps(run_json(dict(done)) | changes))
    archs = [sample(rng) for _ in range(TRIALS)]
    if stage >= 1:
        _write_latency(folder, archs[:SAMPLES], rng)
    if stage >= 2:
        _write_training(folder, rng)
    trials = _write_trials(folder, archs, rng) if stage >= 3 else []
    if stage >= 4:
        (folder / "baselines" / "largest").mkdir(parents=True)  # exported, and measured with the others
    if stage >= 5:
        front = _front(trials)
        for arch in front[1:]:
            _write_network(folder / "pareto" / arch.id, arch, rng, **SHARED)
        _write_network(folder / "candidates" / front[0].id, front[0], rng, **SHARED)
        _write_baselines(folder, rng)
    if stage >= 6:
        _write_network(folder / "best", front[-1], random.Random(1), **SHARED)
        why = "The highest validation accuracy among the verified networks that keep the limit of 0.2 ms."
        (folder / "best" / "why.txt").write_text(why)
    return folder


def run_json(stages: Mapping[str, float]) -> dict[str, Any]:
    """Return the run's description."""
    return {
        "format": 1,
        "created": "2026-03-14T09:26:53+00:00",
        "command": [
            "sartor",
            "search",
            "digits",
            "--target",
            TARGET,
            "--latency",
            "0.2ms",
            "--out",
            "runs/demo",
        ],
        "arguments": {"data": "digits", "target": TARGET, "latency": "0.2ms", "out": "runs/demo"},
        "seed": 0,
        "plan": {
            "steps": STEPS,
            "batch_size": 64,
            "finetune_steps": FINETUNE_STEPS,
            "trials": TRIALS,
            "verified": 20,
        },
        "objectives": [
            {"name": "error", "goal": "min"},
            {"name": "latency_ms", "goal": "min", "at_most": LIMIT_MS},
        ],
        "task": {
            "source": "digits",
            "seed": 0,
            "sizes": {"train": 1167, "validation": 270, "test": 360},
            "classes": [str(digit) for digit in range(10)],
            "metric_name": "accuracy",
            "preprocessing": {
                "channels": 1,
                "height": 8,
                "width": 8,
                "mean": [0.3],
                "std": [0.37],
                "scale": 16,
            },
            "warnings": [],
        },
        "space": {"name": "mobilenet", "size": 1_350_000_000, "choices": choices(), "gates": gates()},
        "targets": [{"name": TARGET, "fingerprint": FINGERPRINT}],
        "environment": {
            "python": "3.11.9",
            "torch": "2.13.0",
            "sartor": "0.1.0",
            "numpy": "2.4.6",
            "processor": "Example CPU 2.1 GHz",
            "cores": 2,
        },
        "stages": dict(stages),
    }


def _work(arch: Mapping[str, Any]) -> float:
    """Return a made-up measure of the computation of the active blocks."""
    total = arch["stem.width"] / 8
    for stage in range(3):
        for block in range(arch[f"stages.{stage}.depth"]):
            prefix = f"stages.{stage}.blocks.{block}"
            grown = (
                arch[f"{prefix}.expand"] * (1 + arch[f"{prefix}.kernel"] / 6) * (1.15 if arch[f"{prefix}.se"] else 1)
            )
            total += grown * arch[f"stages.{stage}.width"] / (12 * 2**stage)
    return float(total * (arch["resolution"] / 12) ** 1.2)


def _front(trials: list[tuple[Architecture, float, float]]) -> list[Architecture]:
    """Return the architectures within the limit that no other one beats, fastest first."""
    front: list[Architecture] = []
    best = math.inf
    for arch, error, milliseconds in sorted(trials, key=lambda trial: trial[2]):
        if error < best and milliseconds <= LIMIT_MS:
            front, best = [*front, arch], error
    return front[::-3][::-1]  # every third, with the last: as many as a search would verify


def _write_latency(folder: Path, archs: list[Architecture], rng: random.Random) -> None:
    pairs = []
    connection = sqlite3.connect(folder / "latency.costs")
    connection.execute("CREATE TABLE samples (arch_id TEXT, arch TEXT, fingerprint TEXT, measurement TEXT)")
    connection.execute("CREATE TABLE meta (key TEXT, value TEXT)")
    for index, arch in enumerate(archs):
        measured = latency(arch, rng.gauss(0, 0.02))
        pair = {
            "id": arch.id,
            "predicted_ms": latency(arch),
            "measured_ms": measured,
            "held_out": index >= 48,
        }
        pairs.append(pair)
        row = (arch.id, arch.to_json(), json.dumps(FINGERPRINT), json.dumps({"latency_ms": measured}))
        connection.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    quality = {"mape": 0.0163, "spearman": 0.9951, "kendall": 0.9542}
    model = {"samples": SAMPLES, "held_out": SAMPLES - 48, **quality, "pairs": pairs, "choice_effects_ms": {}}
    (folder / "latency_model.json").write_text(json.dumps(model))


def _write_training(folder: Path, rng: random.Random) -> None:
    with (folder / "train.jsonl").open("w") as file:
        for step in range(0, STEPS, 4):
            loss = 0.12 + 2.2 * math.exp(-step / 210) + abs(rng.gauss(0, 0.05))
            rate = 0.05 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            entry = {
                "step": step,
                "seconds": step * 0.0622,
                "loss": loss,
                "samples_per_s": 1029.0,
                "learning_rate": rate,
            }
            file.write(json.dumps(entry) + "\n")


def _write_trials(
    folder: Path, archs: list[Architecture], rng: random.Random
) -> list[tuple[Architecture, float, float]]:
    told = []
    log = TrialLog(folder / "run.sqlite")
    for index, arch in enumerate(archs):
        predicted = latency(arch)
        values, note = {"latency_ms": predicted}, ""
        state: State = "done"
        if index in (31, 118):
            state, note = "failed", "RuntimeError: not enough memory: asked for 512 MB"
        elif index == 77:
            state, note = "failed", "error is nan"
        elif predicted > 1.2 * LIMIT_MS:
            state, note = "infeasible", f"latency_ms {predicted:.3g} exceeds at_most 0.2"
        else:
            values["error"] = 1 - accuracy(arch, rng.gauss(0, 0.003))
            told.append((arch, values["error"], predicted))
        log.append(Trial(index, arch, values, 1.0, state, note, 0.15))
    log.close()
    return told


def _write_network(folder: Path, arch: Architecture, rng: random.Random, **extra: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.json").write_text(arch.to_json())
    (folder / "measurement.json").write_text(json.dumps(measurement(arch, rng) | extra))


def measurement(arch: Architecture, rng: random.Random) -> dict[str, Any]:
    """Return a measurement.json: float32 and int8 on the same processor."""
    targets = {}
    for name, factor, loss in ((TARGET, 1.0, 0.0), (f"{TARGET}:int8", 0.71, 0.004)):
        p50 = latency(arch, rng.gauss(0, 0.015)) * factor
        validation = round((accuracy(arch) - loss) * 270) / 270
        test = round((accuracy(arch, rng.gauss(-0.004, 0.003)) - loss) * 360) / 360
        timing = {
            "latency_ms": p50, "p10": p50 * 0.975, "p90": p50 * 1.06, "p95": p50 * 1.09, "p99": p50 * 1.3,
            "minimum": p50 * 0.95, "runs": 1000, "rounds": 5, "ci_low": p50 * 0.995, "ci_high": p50 * 1.006,
            "cv": 0.03, "noisy": False, "notes": [], "memory_mb": None, "energy_mj": None,
            "size_mb": 0.012 * _work(arch) * factor,
        }  # fmt: skip
        targets[name] = {
            "fingerprint": FINGERPRINT,
            "measurement": timing,
            "accuracy": {"validation": validation, "test": test},
            "predicted_ms": latency(arch),
            "limit_ms": LIMIT_MS,
            "within_limit": p50 <= LIMIT_MS,
            "parity": {"max_abs_error": 2.4e-6, "samples": 64},
        }
    work = _work(arch)
    return {
        "targets": targets,
        "params": int(2900 * work),
        "macs": int(41_000 * work),
        "size_mb": 0.012 * work,
    }


def _write_baselines(folder: Path, rng: random.Random) -> None:
    for name, index in (("largest", -1), ("middle", 1), ("smallest", 0)):
        arch = Architecture({choice: options[index] for choice, options in choices().items()})
        scratch = {"trained": "from scratch", "steps": STEPS + FINETUNE_STEPS}
        _write_network(folder / "baselines" / name, arch, rng, **scratch)
