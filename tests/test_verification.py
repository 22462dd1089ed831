# SPDX-License-Identifier: Apache-2.0
"""Which trials of a search are worth training and measuring."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.recipes.searching import worth_verifying
from sartor.trial import Trial


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.integers(1, 12))
def test_candidates_are_as_many_as_asked_and_keep_both_ends(points: list[tuple[int, int]], count: int) -> None:
    goals = [Objective("error", len), Objective("latency_ms", len)]
    trials = [
        Trial(i, Architecture({"n": i}), {"error": float(e), "latency_ms": float(ms)}, state="done")
        for i, (e, ms) in enumerate(points)
    ]
    chosen = worth_verifying(trials, goals, count)
    assert len(chosen) == min(count, len(trials)) == len({trial.number for trial in chosen})
    if count >= 2:
        assert min(e for e, _ in points) == min(trial.values["error"] for trial in chosen)
        assert min(ms for _, ms in points) == min(trial.values["latency_ms"] for trial in chosen)


def test_candidates_are_the_best_of_each_band_of_latency() -> None:
    """Four bands, 1 to 1.7, to 2.8, to 4.8 and to 8 ms; the slowest has a place though a faster one has less error."""
    goals = [Objective("error", len), Objective("latency_ms", len)]
    values = [(0.5, 1.0), (0.2, 1.9), (0.4, 3.0), (0.3, 3.9), (0.35, 7.0), (0.25, 8.0), (0.6, 6.0)]
    trials = [
        Trial(i, Architecture({"n": i}), {"error": error, "latency_ms": ms}, state="done")
        for i, (error, ms) in enumerate(values)
    ]
    assert [trial.number for trial in worth_verifying(trials, goals, 4)] == [0, 1, 3, 5]
