# SPDX-License-Identifier: Apache-2.0
"""The measuring protocol, on a simulated clock: nothing here depends on how fast this machine is."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wilcoxon as scipy_wilcoxon

from sartor.targets import timing
from sartor.targets.artefacts import measurement
from sartor.targets.timing import Timing, calibration_kernel, different, interval, percentiles, rounds, wilcoxon

TICK = 2.0**-20  # about a microsecond; sums of it are exact


class Machine:
    """A machine whose clock moves only by what its calls take, in whole ticks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, ticks: float, noise: float = 0.0, seed: int = 0) -> Callable[[], None]:
        """A call that takes `ticks`, at times more: every call has its own stream of noise."""
        rng = random.Random(f"{name}/{seed}")

        def run() -> None:
            self.log.append(name)
            spike = 3.0 if noise and rng.random() < 0.05 else 1.0
            self.now += TICK * round(ticks * spike * rng.lognormvariate(0.0, noise))

        return run

    def rounds(self, *calls: Callable[[], object], budget_s: float = 1.0, seed: int = 0) -> list[Timing]:
        kernel = self.call("kernel", 3000)
        return rounds(calls, budget_s=budget_s, seed=seed, clock=self.clock, calibrate=kernel)


@pytest.fixture(scope="module", autouse=True)
def no_collection() -> Iterator[None]:
    """Collecting the garbage of a process with torch in it takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)
        yield


def timing_of(seconds: object, calibration: float = 1.0) -> Timing:
    samples = np.asarray(seconds, dtype=np.float64)
    return Timing(samples, np.full(len(samples), calibration), cold=1.0)


samples = st.lists(st.lists(st.floats(1e-9, 1e3), min_size=4, max_size=4), min_size=1, max_size=12)


@given(samples)
@settings(deadline=None, max_examples=60)
def test_percentiles_are_ordered_and_inside_the_interval(seconds: list[list[float]]) -> None:
    one = timing_of(seconds)
    p10, p50, p90, p95, p99 = percentiles(one)
    assert one.seconds.min() <= p10 <= p50 <= p90 <= p95 <= p99 <= one.seconds.max()
    low, high = interval(one.seconds)
    assert low <= p50 <= high


@given(st.permutations(range(4)), st.integers(0, 5))
@settings(deadline=None, max_examples=15)
def test_the_order_of_candidates_does_not_change_results(order: list[int], seed: int) -> None:
    ticks = (7_000, 10_000, 13_000, 50_000)

    def measured(order: list[int]) -> dict[int, Timing]:
        machine = Machine()
        calls = [machine.call(str(index), ticks[index], noise=0.1, seed=seed) for index in order]
        return dict(zip(order, machine.rounds(*calls), strict=True))

    expected, found = measured(list(range(4))), measured(order)
    for index in range(4):
        np.testing.assert_array_equal(expected[index].seconds, found[index].seconds)


def test_more_rounds_do_not_widen_the_interval_on_average() -> None:
    def width(count: int) -> float:
        draws = (np.random.default_rng(seed).lognormal(0, 0.2, (count, 10)) for seed in range(40))
        return float(np.mean([high - low for low, high in map(interval, draws)]))

    widths = [width(count) for count in (5, 10, 20, 40)]
    assert widths == sorted(widths, reverse=True)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Rounds with a level of their own: an interval that drew single runs would be far too narrow."""
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        low, high = interval(rng.normal(10, 1, (20, 1)) + rng.normal(0, 0.1, (20, 10)))
        hits += low <= 10 <= high
    assert hits >= 0.88 * 200


def test_a_model_does_not_differ_from_itself_but_from_a_slower_one() -> None:
    false, true, trials = 0, 0, 100
    for seed in range(trials):
        machine = Machine()
        a, again, wider = machine.rounds(
            machine.call("a", 20_000, noise=0.1, seed=seed),
            machine.call("again", 20_000, noise=0.1, seed=seed),
            machine.call("wider", 25_000, noise=0.1, seed=seed),
            budget_s=5.0,
            seed=seed,
        )
        false += different(a, again)
        true += different(a, wider)
    assert false <= 0.05 * trials
    assert true >= 0.95 * trials


def test_rounds_are_interleaved_shuffled_and_timed_with_the_kernel() -> None:
    machine = Machine()
    timings = machine.rounds(machine.call("a", 1000), machine.call("b", 1000), machine.call("c", 1000))
    assert [one.seconds.shape for one in timings] == [(8, 10)] * 3
    body = machine.log[-8 * 33 :]
    turns = [body[at : at + 33] for at in range(0, len(body), 33)]
    assert all(turn[:3] == ["kernel"] * 3 for turn in turns)
    orders = [tuple(turn[3::10]) for turn in turns]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1
    assert all(len({*turn[at : at + 10]}) == 1 for turn in turns for at in (3, 13, 23))
    assert timings[0].ratio == pytest.approx(1 / 3)


def test_a_quiet_machine_stops_early_and_a_noisy_one_at_the_budget() -> None:
    machine = Machine()
    quiet, noisy = machine.rounds(machine.call("a", 1000), machine.call("b", 1000, noise=1.0), budget_s=0.3)
    assert len(quiet.seconds) == len(noisy.seconds) > timing.FEWEST_ROUNDS
    assert len(machine.rounds(machine.call("a", 1000))[0].seconds) == timing.ENOUGH_ROUNDS
    assert len(machine.rounds(machine.call("a", 10**6), budget_s=0.1)[0].seconds) == timing.FEWEST_ROUNDS
    assert machine.rounds() == []


def test_the_warm_up_waits_until_a_call_has_settled() -> None:
    machine = Machine()
    count = 0

    def cold_start() -> None:
        nonlocal count
        count += 1
        machine.now += TICK * (200_000 if count == 1 else max(400, 20_000 - 200 * count))

    (one,) = machine.rounds(cold_start)
    assert one.settled
    assert one.cold == 200_000 * TICK
    assert np.median(one.seconds) == one.seconds.min() == 400 * TICK
    restless = iter(range(10**9))

    def never() -> None:
        machine.now += TICK * (10_000 + 10_000 * (next(restless) // 5 % 2))

    assert not machine.rounds(never)[0].settled


def test_calls_too_short_for_the_clock_are_timed_in_blocks() -> None:
    machine = Machine()

    def coarse() -> float:
        machine.now += TICK  # reading this clock takes a tick
        return machine.now

    def short() -> None:
        machine.now += 2 * TICK

    (one,) = rounds([short], budget_s=1.0, seed=0, clock=coarse, calibrate=machine.call("kernel", 3000))
    assert one.repeats >= 300
    assert np.median(one.seconds) == pytest.approx(2 * TICK, rel=0.01)


def test_garbage_is_not_collected_meanwhile_and_all_is_restored() -> None:
    machine = Machine()
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        machine.now += 1000 * TICK

    machine.rounds(call)
    assert not any(seen)
    assert gc.isenabled()

    def broken() -> None:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        machine.rounds(broken)
    assert gc.isenabled()


@given(st.lists(st.integers(-40, 40).filter(bool), min_size=1, max_size=14, unique_by=abs))
@settings(deadline=None, max_examples=40)
def test_wilcoxon_is_exact(differences: list[int]) -> None:
    expected = scipy_wilcoxon(differences, method="exact").pvalue
    assert wilcoxon(np.array(differences, dtype=np.float64)) == pytest.approx(expected, rel=1e-9)


def test_wilcoxon_without_or_with_equal_differences() -> None:
    assert wilcoxon(np.zeros(5)) == 1.0
    assert wilcoxon(np.ones(6)) == pytest.approx(2 / 64)
    assert wilcoxon(np.array([1.0, 1.0, -1.0, -1.0])) == 1.0


def test_the_statistics_of_a_measurement() -> None:
    seconds = np.tile(np.linspace(1e-3, 1.02e-3, 10), (8, 1))
    found = measurement(timing_of(seconds, 4e-3), size_mb=0.5, memory_mb=None, fingerprint={})
    assert (found.runs, found.rounds, found.size_mb, found.memory_mb, found.energy_mj) == (
        80,
        8,
        0.5,
        None,
        None,
    )
    assert found.latency_ms == pytest.approx(1.01)
    assert found.minimum == pytest.approx(1.0)
    assert found.ci_low <= found.latency_ms <= found.ci_high
    assert not found.noisy
    assert any("calibration kernel (4 ms)" in note for note in found.notes)


def test_what_makes_a_measurement_noisy_is_said() -> None:
    steady = np.full((8, 10), 1e-3)
    drifting = Timing(steady, np.array([1.0] + [1.3] * 7), cold=1.0)
    found = measurement(drifting, size_mb=0, memory_mb=None, fingerprint={})
    assert found.noisy
    assert "drifted by 30%" in found.notes[0]
    loaded = measurement(timing_of(steady), size_mb=0, memory_mb=None, fingerprint={}, doubts=("others at work",))
    assert loaded.noisy
    assert loaded.notes[0] == "others at work"
    wide = measurement(
        timing_of(np.random.default_rng(0).lognormal(0, 1, (5, 10))), size_mb=0, memory_mb=None, fingerprint={}
    )
    assert wide.noisy
    assert any("known to" in note for note in wide.notes)
    assert any(note.startswith("spread") for note in wide.notes)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        rounds([], budget_s=0.0, seed=0)
    with pytest.raises(ValueError, match="measure both in one call"):
        different(timing_of(np.ones((5, 1)), 1.0), timing_of(np.ones((5, 1)), 2.0))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from sartor.targets.timing import calibration_kernel, rounds
(one,) = rounds([lambda: sum(range(100))], budget_s=0.01, seed=0, calibrate=calibration_kernel(128))
assert one.seconds.shape[1] == 10 and (one.seconds > 0).all() and (one.calibration > 0).all()
assert not {"scipy", "onnxruntime"} & set(sys.modules)
"""


def test_it_runs_where_torch_cannot_be_imported() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, timeout=60)


def test_the_calibration_kernel_does_all_its_products_and_no_thread_is_started() -> None:
    products: list[tuple[int, ...]] = []

    def matmul(a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        products.extend((len(block), *b.shape) for block in a)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", matmul)
        calibration_kernel()()
    assert sum(m * k * n for m, k, n in products) == 512**3
    assert max(products) == (64, 64, 64)  # which OpenBLAS leaves to one thread
