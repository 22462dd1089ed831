"""Whether a second measurement ranks networks as the first did, under load: our rounds beside naive timing.

40 networks of NAS-Bench-201 (seed 0, those whose output does not depend on the input left out) for 3x32x32 images, as
the files that each target deploys. Each is measured twice, by interleaved rounds with 0.5 s per network, and by what is
usual: one call to warm up, then the mean of ten consecutive calls, one network after the other. Meanwhile two
processes that never wait keep the cores busy. The figures are Spearman's rank correlations of the two measurements,
each first with its interval of 95 % (bootstrap over networks).
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sartor.protocols import Artefact
from sartor.ranking import spearman
from sartor.spaces.nasbench201 import NASBench201
from sartor.spaces.nasbench201_cell import is_connected
from sartor.supernet import extract, search_space
from sartor.targets import load_target

Row = Mapping[str, str | float | int | None]
Values = NDArray[np.float64]

TARGETS = ("onnxruntime", "torch", "openvino:int8")
NAIVE_RUNS = 10


def rows(quick: bool) -> Iterator[Row]:
    """A row per target, load and way of measuring."""
    networks, seconds, targets = (8, 0.05, TARGETS[:1]) if quick else (40, 0.5, TARGETS)
    for name in targets:
        with tempfile.TemporaryDirectory() as folder:
            target: Any = load_target(name)
            target.seconds = seconds
            artefacts = prepared(target, networks, Path(folder))
            for busy in (2,) if quick else (0, 2):
                with busy_processes(busy):
                    yield from _rows(target, artefacts, busy)


def prepared(target: Any, count: int, folder: Path) -> list[Artefact]:
    """Write the files of `count` networks that compute something, drawn with seed 0."""
    rng, torch_rng = random.Random(0), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NASBench201().eval()
    space, example = search_space(net), torch.randn(1, 3, 32, 32, generator=torch_rng)
    calibration = [torch.randn(16, 3, 32, 32, generator=torch_rng)]
    artefacts: list[Artefact] = []
    while len(artefacts) < count:
        arch = space.sample(rng)
        if is_connected(arch):
            path = folder / str(len(artefacts))
            artefacts.append(target.prepare(extract(net, arch).eval(), (example,), calibration, path))
    return artefacts


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that never wait."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def naive(target: Any, artefacts: Sequence[Artefact]) -> Values:
    """Return the mean seconds of ten consecutive calls of each network, one network after the other."""
    inputs = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    found = []
    for artefact in artefacts:
        run = target.runner(artefact)
        run(inputs)
        start = time.perf_counter()
        for _ in range(NAIVE_RUNS):
            run(inputs)
        found.append((time.perf_counter() - start) / NAIVE_RUNS)
    return np.array(found)


def _rows(target: Any, artefacts: Sequence[Artefact], busy: int) -> Iterator[Row]:
    taken = []
    measured = []
    for seed in (0, 1):
        target.seed, start = seed, time.perf_counter()
        measured.append(target.measure(artefacts))
        taken.append(time.perf_counter() - start)
    ways: dict[str, Callable[[Any], float]] = {
        "rounds, median": lambda one: float(one.latency_ms),
        "rounds, p10": lambda one: float(one.p10),
    }
    for way, value in ways.items():
        first, second = (np.array([value(one) for one in each]) for each in measured)
        noisy = sum(one.noisy for each in measured for one in each) / (2 * len(artefacts))
        yield _row(target.name, busy, way, (first, second), sum(taken) / 2, noisy)
    start = time.perf_counter()
    pair = naive(target, artefacts), naive(target, artefacts)
    yield _row(target.name, busy, "naive", pair, (time.perf_counter() - start) / 2, None)


def _row(name: str, busy: int, way: str, pair: tuple[Values, Values], seconds: float, noisy: float | None) -> Row:
    first, second = pair
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(first), size=len(first)) for _ in range(1000)]
    low, high = np.nanpercentile([spearman(first[one], second[one]) for one in drawn], (2.5, 97.5))
    return {
        "target": name,
        "busy processes": busy,
        "way": way,
        "spearman": spearman(first, second),
        "low": float(low),
        "high": float(high),
        "level of the second": float(np.median(second / first)),
        "seconds": seconds,
        "marked noisy": noisy,
    }
