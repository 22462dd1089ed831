# SPDX-License-Identifier: Apache-2.0
"""How long calls take, on a machine that other work shares.

Run after run of one candidate and then of the next, which is the obvious way, ranks candidates by the moment
at which each was measured. Here all candidates take turns in shuffled rounds, so that a slow moment falls on
all of them; a calibration kernel is timed in every round; whatever made the numbers doubtful is said beside
them. The clock is an argument: tests simulate one.

Two steps of common protocols are left out on purpose. Threads are not pinned to cores: on a shared machine a
pinned thread waits behind a neighbour that a free one evades, and with 0 to 2 busy neighbours on 2 cores
pinning changed neither medians nor spread. Numbers are not divided by the calibration kernel, only told
beside it: the quotient has the noise of both, and no user can hold a limit in it.

Nothing here needs torch: the file also runs on devices that have numpy and a runtime only.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Timing", "calibration_kernel", "different", "interval", "percentiles", "rounds", "wilcoxon"]

Call = Callable[[], object]
Clock = Callable[[], float]

RUNS = 10  # timed blocks of a candidate in a round
FEWEST_ROUNDS = 6  # that can show a difference with p < 0.05
ENOUGH_ROUNDS = 8  # that can with p < 0.01
MOST_ROUNDS = 400
_LOOKS = (
    ENOUGH_ROUNDS,
    12,
    18,
    27,
    41,
    62,
    93,
    140,
    210,
    315,
)  # who looks often finds luck
PRECISION = 0.02  # relative half-width of the interval of the median at which measuring stops
WARM_UP_RUNS = 10
WARM_UP_S = 0.3  # of all candidates together: it is the processor that has to wake up
SETTLED = 0.05
_WARM_UP_BLOCK = 5  # runs whose median is one of the `_WARM_UP_BLOCKS` that must agree
_WARM_UP_BLOCKS = 5
_WARM_UP_MOST_S = 1.0
_WARM_UP_MOST_BLOCKS = 100
_TICKS = 1000  # a timed block is at least so many of the clock's steps: 0.1 % is lost to reading it
_MOST_REPEATS = 10_000
_RESAMPLES = 300
_BLOCK = 64  # of the calibration kernel's matrices


@dataclass(frozen=True)
class Timing:
    """What was measured of one candidate: `seconds` (rounds, runs) per call, and how.

    `calibration` (rounds,) holds the seconds of the calibration kernel in the same rounds. A run is the mean
    of `repeats` calls, more than one only where a call is too short for the clock. `cold` is the first call.
    `settled` tells whether the warm-up ended by its criterion and not by its bound.
    """

    seconds: NDArray[np.float64]
    calibration: NDArray[np.float64]
    cold: float
    repeats: int = 1
    settled: bool = True

    @property
    def medians(self) -> NDArray[np.float64]:
        """The median of each round, (rounds,), in seconds."""
        return np.asarray(np.median(self.seconds, axis=1))

    @property
    def ratio(self) -> float:
        """The median over rounds of the latency in units of the calibration kernel of the same round."""
        return float(np.median(self.medians / self.calibration))


@dataclass(frozen=True)
class _Warm:
    cold: float
    repeats: int
    settled: bool


def calibration_kernel(size: int = 512) -> Call:
    """Return a fixed amount of arithmetic: the multiplications of a float32 product of two `size` x `size` matrices.

    They are done in blocks of 64, too small for a BLAS library to share out among threads, so the kernel runs on
    one core whatever the number of threads: it asks how fast the machine is, and a kernel on every core would
    also ask whether they are free.
    """
    rng, blocks = np.random.default_rng(0), max(1, size // _BLOCK)
    a = rng.standard_normal((blocks * blocks, _BLOCK, _BLOCK), dtype=np.float32)
    b = rng.standard_normal((_BLOCK, _BLOCK), dtype=np.float32)
    out = np.empty_like(a)

    def kernel() -> None:
        for _ in range(blocks):
            np.matmul(a, b, out=out)

    return kernel


def rounds(
    calls: Sequence[Call],
    *,
    budget_s: float,
    seed: int,
    clock: Clock = time.perf_counter,
    calibrate: Call | None = None,
    runs: int = RUNS,
) -> list[Timing]:
    """Time all `calls` in interleaved, shuffled rounds of `runs` runs each; one Timing per call, in order.

    Stops after at least 8 rounds once the 95 % interval of every median is within 2 %, or after at least
    6 rounds once `budget_s` seconds are spent on rounds; the warm-up takes at most as long before. All calls
    stop together: a call that went home early would have seen another hour of the machine than its rivals.
    Whatever a call raises is passed on. ValueError for a budget or a number of runs that is not positive.
    """
    if not (budget_s > 0 and runs >= 1):
        raise ValueError(f"cannot measure for {budget_s} s with {runs} runs a round: both must be positive")
    if not calls:
        return []
    calibrate = calibrate or calibration_kernel()
    order, rng = list(range(len(calls))), random.Random(seed)
    seconds: list[list[list[float]]] = [[] for _ in calls]
    calibration: list[float] = []
    with _undisturbed():
        warm = _warmed_up(calls, clock, min(_WARM_UP_MOST_S, budget_s / len(calls)))
        _run(calibrate, 1, 2, clock)
        start = clock()
        while not _enough(seconds, clock() - start, budget_s):
            calibration.append(float(np.median(_run(calibrate, 1, 3, clock))))
            rng.shuffle(order)
            for index in order:
                seconds[index].append(_run(calls[index], warm[index].repeats, runs, clock))
    kernel = np.array(calibration)
    return [
        Timing(np.array(samples), kernel, w.cold, w.repeats, w.settled)
        for samples, w in zip(seconds, warm, strict=True)
    ]


def percentiles(timing: Timing) -> tuple[float, float, float, float, float]:
    """Return the 10th, 50th, 90th, 95th and 99th percentile over all runs, in seconds."""
    p10, p50, p90, p95, p99 = (float(p) for p in np.percentile(timing.seconds, (10, 50, 90, 95, 99)))
    return p10, p50, p90, p95, p99


def interval(seconds: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap 95 % interval of the median of (rounds, runs) samples.

    Whole rounds are drawn, not runs: the runs of a round share its moment, and taking them for independent
    would promise more than is known.
    """
    count = len(seconds)
    drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    medians = np.median(seconds[drawn].reshape(_RESAMPLES, -1), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    middle = np.median(seconds)
    return float(min(low, middle)), float(max(high, middle))


def different(a: Timing, b: Timing) -> bool:
    """Tell whether two candidates of one `rounds` call differ: Wilcoxon over their rounds, p < 0.05.

    Disjoint intervals alone are not taken as a difference, since the rounds are paired and intervals know
    nothing of it. Under no difference the test errs in at most 5 % of cases whatever the noise. ValueError if
    the two were not measured together.
    """
    if not np.array_equal(a.calibration, b.calibration):
        raise ValueError("cannot compare timings of different rounds: measure both in one call")
    return wilcoxon(a.medians - b.medians) < 0.05


def wilcoxon(differences: NDArray[np.float64]) -> float:
    """Return the exact two-sided p of Wilcoxon's signed-rank test; zeros are dropped, ties share ranks."""
    values = differences[differences != 0]
    if not len(values):
        return 1.0
    _, inverse, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (2 * ends - counts + 1)[inverse]  # twice the mean rank, so that shared ranks stay whole
    chance = np.zeros(int(ranks.sum()) + 1)  # chance[s]: that the ranks of positive signs add up to s
    chance[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(chance)
        moved[rank:] = chance[:-rank]
        chance = (chance + moved) / 2
    positive = int(ranks[values > 0].sum())
    least = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(chance[: least + 1].sum()))


def _enough(seconds: Sequence[Sequence[list[float]]], spent: float, budget_s: float) -> bool:
    """Tell whether the rounds so far, of every candidate, are precise enough or all that can be afforded."""
    done = len(seconds[0])
    if done >= MOST_ROUNDS or (done >= FEWEST_ROUNDS and spent >= budget_s):
        return True
    return done in _LOOKS and all(_precise(np.array(samples)) for samples in seconds)


def _precise(seconds: NDArray[np.float64]) -> bool:
    low, high = interval(seconds)
    return (high - low) / 2 <= PRECISION * float(np.median(seconds))


def _run(call: Call, repeats: int, runs: int, clock: Clock) -> list[float]:
    """Return the seconds per call of `runs` blocks of `repeats` calls."""
    taken = []
    for _ in range(runs):
        start = clock()
        for _ in range(repeats):
            call()
        taken.append((clock() - start) / repeats)
    return taken


def _warmed_up(calls: Sequence[Call], clock: Clock, most_s: float) -> list[_Warm]:
    """Call every candidate until it and the processor have settled, or for `most_s` seconds each."""
    shortest = _TICKS * _step(clock)
    cold, repeats = [], []
    for call in calls:
        cold.append(_run(call, 1, 1, clock)[0])
        quick = min(_run(call, 1, 3, clock))
        repeats.append(min(_MOST_REPEATS, math.ceil(shortest / quick)) if quick > 0 else 1)
    start = clock()
    for _ in range(_MOST_REPEATS):
        if clock() - start >= WARM_UP_S:
            break
        for call in calls:
            call()
    settled = [_settled(call, count, clock, most_s) for call, count in zip(calls, repeats, strict=True)]
    return [_Warm(*values) for values in zip(cold, [max(1, n) for n in repeats], settled, strict=True)]


def _settled(call: Call, repeats: int, clock: Clock, most_s: float) -> bool:
    """Run until the last medians agree; False if the bound came first."""
    start, medians = clock(), list[float]()
    while len(medians) < _WARM_UP_MOST_BLOCKS:
        medians.append(float(np.median(_run(call, max(1, repeats), _WARM_UP_BLOCK, clock))))
        last = medians[-_WARM_UP_BLOCKS:]
        if len(last) == _WARM_UP_BLOCKS and max(last) <= (1 + SETTLED) * min(last):
            return True
        if len(medians) * _WARM_UP_BLOCK >= WARM_UP_RUNS and clock() - start >= most_s:
            break
    return False


def _step(clock: Clock) -> float:
    """Return the smallest step that the clock shows, the cost of reading it included; 0 if it shows none."""
    readings = np.array([clock() for _ in range(100)])
    steps = np.diff(readings)
    return float(min(steps[steps > 0], default=0.0))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep garbage collection out of the timed loops, and denormals, slow on some processors, at zero.

    numpy has no switch for denormals; torch has one, and is asked where the process has loaded it anyway.
    """
    collected = gc.isenabled()
    torch: Any = sys.modules.get("torch")
    flushed = torch is not None and bool(torch.tensor(1e-310, dtype=torch.float64) * 1 == 0)
    gc.collect()
    gc.disable()
    if torch is not None:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_flush_denormal(flushed)
        if collected:
            gc.enable()
