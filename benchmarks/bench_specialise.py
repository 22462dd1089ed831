# SPDX-License-Identifier: Apache-2.0
"""One supernet, three targets, five limits each: verdicts, time, and random architectures at thrice the evaluations.

The shared weights are trained once, on MNIST at 28x28 in the elastic MobileNet. `sartor specialise` then serves
PyTorch, ONNX Runtime int8 and OpenVINO, five limits each, spread evenly in ratio between the ends of what was profiled,
and is timed. Beside it, for each limit, the best by validation error with shared weights of `ours`, the trials of the
search within it, and of `random`: three times as many architectures, drawn uniformly, within that predicted latency.
Of both the best by the 2,048 images that searches use are compared again on all 9,000 of the validation split, three
times as many of the random ones; given are the accuracy of the best on the part, which flatters it, and of the best on
all.

SARTOR_MNIST names `mnist.npz`, SARTOR_OUT a folder to keep the runs in.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sartor import recipes
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.costs import CostStore
from sartor.recipes.job import Job
from sartor.recipes.profiling import latency
from sartor.recipes.record import silent
from sartor.recipes.searching import LOOKED_AT
from sartor.recipes.specialise import TRIALS
from sartor.recipes.training import PortableError, train
from sartor.recipes.whole_split import WholeSplitError
from sartor.run import Run
from sartor.targets import load_target
from sartor.task import load_task
from sartor.trial import TrialLog

Row = Mapping[str, str | float | int | None]

DATA = os.environ.get("SARTOR_MNIST", "digits")
TARGETS = ("torch", "onnxruntime:int8", "openvino")
TRAINING_S, LIMITS, MORE = 600.0, 5, 3


def rows(quick: bool) -> Iterator[Row]:
    """A row per target and limit, then the time of all."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("SARTOR_OUT", folder))
        trials = 60 if quick else TRIALS
        weights = out / "net"
        if not (weights / "run.json").is_file():
            recipes.train_supernet(DATA, space="mobilenet", out=weights, budget_s=30.0 if quick else TRAINING_S).close()
        ladder = _limits(weights, out / "profile")
        before, cpu = time.monotonic(), time.process_time()
        recipes.specialise(
            weights, target=TARGETS, latencies_ms=ladder, out=out / "specialised", trials=trials, force=True
        ).close()
        seconds, cpu_s = time.monotonic() - before, time.process_time() - cpu
        yield from _beside_random(out, trials)
        yield {"target": "all", "limit_ms": None, "latency_ms": None, "used": None, "validation": None, "test": None,
               "ours": None, "ours, all images": None, "random": None, "random, all images": None,
               "seconds": seconds, "CPU s": cpu_s}  # fmt: skip


def _limits(weights: Path, out: Path) -> dict[str, list[float]]:
    """Five limits per target, from 1.2 times the least latency of a profile to .9 of the greatest."""
    if not (out / "run.json").is_file():
        recipes.specialise(weights, target=TARGETS, latencies_ms=[1e3], out=out, trials=8, force=True).close()
    found = {}
    for name in TARGETS:
        samples = CostStore(out / "latency.costs").samples(load_target(name).fingerprint())
        known = [measurement.latency_ms for _, measurement in samples]
        found[name] = [float(x) for x in np.geomspace(1.2 * min(known), 0.9 * max(known), LIMITS)]
    return found


def _beside_random(out: Path, trials: int) -> Iterator[Row]:
    """A row per target and limit: the verdict, and the best trial within it beside the best random one."""
    path = out / "specialised"
    with Run.open(path) as run:
        arguments = run.record["arguments"]
        task = load_task(arguments["data"], seed=arguments["seed"])
        targets = tuple(load_target(name) for name in TARGETS)
        job = Job(run, task, targets, silent)
        shared = train(job)
        whole = WholeSplitError(job, shared.serving)
        part = PortableError(job, shared)
        drawn = _drawn(job, part, MORE * trials, out / "random.json")
        with TrialLog(path / "run.sqlite") as log:
            done = {trial.arch: trial.values["error"] for trial in log if trial.state == "done"}
        verdicts = json.loads((path / "specialised.json").read_bytes())["verdicts"]
        for target in targets:
            cost = latency(job, target)
            ms = {arch: cost(arch) for arch in {*drawn, *done}}
            for one in (verdict for verdict in verdicts if verdict["target"] == target.name):
                row = {key: one.get(key) for key in ("target", "limit_ms", "latency_ms", "used")}
                row |= {split: one.get("accuracy", {}).get(split) for split in ("validation", "test")}
                for name, known, count in (("ours", done, LOOKED_AT), ("random", drawn, MORE * LOOKED_AT)):
                    best = sorted((arch for arch in known if ms[arch] <= one["limit_ms"]), key=known.__getitem__)
                    row[name] = 1 - known[best[0]] if best else None
                    row[f"{name}, all images"] = 1 - min(map(whole, best[:count])) if best else None
                yield {**row, "seconds": None, "CPU s": None}


def _drawn(job: Job, measure: PortableError, count: int, kept: Path) -> dict[Architecture, float]:
    """The errors of architectures drawn uniformly, kept beside the shared weights that they are of."""
    if not kept.is_file():
        rng = random.Random("random")
        drawn: dict[Architecture, float] = {}
        while len(drawn) < count:
            arch = job.space.sample(rng)
            drawn[arch] = drawn.get(arch, 0.0) or measure(arch)
        write_json(kept, [[arch.to_json(), error] for arch, error in drawn.items()])
    return {Architecture.from_json(text): error for text, error in json.loads(kept.read_bytes())}
