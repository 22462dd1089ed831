"""The statistics, against cases computed by hand, published tables and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.bench.statistics import (
    average_ranks,
    band,
    bootstrap_band,
    expected_best,
    friedman,
    holm,
    nemenyi_difference,
    queries_to_reach,
    ranking,
    reach,
    relative_improvement,
    smallest_p,
    t_band,
    two_standard_errors,
    wilcoxon,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_t_band_by_hand() -> None:
    mean, low, high = t_band([[1.0], [2.0], [3.0], [4.0], [5.0]])
    half = 2.7764451 * math.sqrt(2.5 / 5)  # t of 4 degrees of freedom, 97.5 %
    assert (mean[0], low[0], high[0]) == pytest.approx((3, 3 - half, 3 + half))
    assert np.isnan(band([[1.0, 2.0]])[1]).all(), "one seed has no interval"


def test_bootstrap_band_is_seeded_and_covers_the_mean_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        mean, low, high = bootstrap_band(rng.exponential(size=(40, 1)), resamples=400)
        inside += bool(low[0] <= 1.0 <= high[0])
        assert low[0] <= mean[0] <= high[0]
    assert 0.86 <= inside / 200 <= 0.98
    rows = rng.normal(size=(12, 3))
    assert all(np.array_equal(a, b) for a, b in zip(bootstrap_band(rows), bootstrap_band(rows), strict=True))


def test_relative_improvement_is_that_of_yang_et_al() -> None:
    """Two of the means of 8 runs that the authors publish: independent of the unit, signed."""
    assert relative_improvement(np.array([97.0, 97.2]), 96.6) == pytest.approx(100 * 0.5 / 96.6)
    assert relative_improvement(np.array([0.97, 0.972]), 0.966) == pytest.approx(100 * 0.5 / 96.6)
    assert relative_improvement(np.array([90.0]), 100.0) == pytest.approx(-10)
    with pytest.raises(ValueError, match="average of random architectures is 0"):
        relative_improvement(np.array([1.0]), 0.0)


def test_expected_best_by_hand_and_by_simulation() -> None:
    # Two architectures: after q draws the worse is held with chance 1/2^q.
    assert expected_best([1, 2], [10, 20], 3) == pytest.approx([15, 17.5, 18.75])
    assert expected_best([1, 2], [10, 20], 3, "min") == pytest.approx([15, 12.5, 11.25])
    rng = np.random.default_rng(1)
    signal, reported = rng.normal(size=30), rng.normal(size=30)
    draws = rng.integers(30, size=(20_000, 8))
    held = reported[np.take_along_axis(draws, signal[draws].argmax(1)[:, None], 1)[:, 0]]
    assert expected_best(signal, reported, 8)[-1] == pytest.approx(held.mean(), abs=0.02)


def test_queries_to_reach_and_censoring() -> None:
    curves = [[1, 2, 3, 3], [2, 2, 2, 2], [3, 3, 3, 3], [0, 0, 0, 3]]
    assert queries_to_reach(curves, 3).tolist() == [3, math.inf, 1, 4]
    found = reach(curves, 3)
    assert (found.share, found.lower, found.median, found.upper) == (0.75, 1, 3, 4)
    assert found.expected == (3 + 4 + 1 + 4) / 3, "the seed that failed spent its four queries too"
    never = reach(curves, 9)
    assert (never.share, never.median, never.expected) == (0, math.inf, math.inf)
    assert queries_to_reach([[5, 4, 1]], 4, "min").tolist() == [2]


def test_a_missing_value_reaches_nothing() -> None:
    assert queries_to_reach([[np.nan, np.nan, 7]], 5).tolist() == [3]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


@given(P_VALUES)
def test_holm_corrects_upwards_keeps_the_order_and_rejects_no_more_than_each_alone(values: list[float]) -> None:
    corrected = holm(values)
    assert (corrected >= np.array(values) - 1e-15).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(values, kind="stable")]) >= 0).all()
    assert (corrected <= np.minimum(1, len(values) * np.array(values)) + 1e-15).all(), "never beyond Bonferroni's"


def test_wilcoxon_by_hand() -> None:
    # All six differences have one sign: 2 of 2^6 sign patterns are as extreme.
    assert wilcoxon([2, 4, 6, 8, 10, 12], [1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert smallest_p(6) == 2 / 64
    assert wilcoxon([1, 2, 3], [1, 2, 3]) == 1.0
    # W = 1 (the difference of rank 1 is negative), n = 5: patterns with W <= 1 are 2 of 32, two-sided 4 of 32.
    assert wilcoxon([-1, 2, 3, 4, 5], [0, 0, 0, 0, 0]) == pytest.approx(4 / 32)


def test_average_ranks_share_ties() -> None:
    assert average_ranks([[3, 2, 1], [1, 1, 0]]).tolist() == [1.25, 1.75, 3.0]


def test_friedman_by_hand() -> None:
    # Four seeds in perfect agreement about three entries: chi squared = 8, two degrees of freedom.
    assert friedman([[3, 2, 1]] * 4) == pytest.approx(math.exp(-4))
    assert friedman([[1, 1, 1]] * 4) == 1.0
    with pytest.raises(ValueError, match="3 entries or more"):
        friedman([[1, 2]])


@pytest.mark.parametrize(("entries", "quantile"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_those_of_demsars_table(entries: int, quantile: float) -> None:
    """Demsar, JMLR 7, 2006, Table 5 (a), alpha 0.05."""
    expected = quantile * math.sqrt(entries * (entries + 1) / (6 * 14))
    assert nemenyi_difference(entries, 14) == pytest.approx(expected, rel=5e-4)


def test_a_ranking_says_who_differs() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.1, size=(30, 4))
    found = ranking(noise + np.array([0.0, 5.0, 5.0, 1.0]))
    assert found.friedman is not None and found.friedman < 1e-6
    assert found.groups == ((1, 2),) or found.groups == ((2, 1),), "only the two equal ones are joined"
    assert {(pair.one, pair.other) for pair in found.pairs if pair.corrected > 0.05} == {(1, 2)}
    by_pair = {(pair.one, pair.other): pair for pair in found.pairs}
    assert by_pair[0, 1].difference == pytest.approx(-5, abs=0.1)
    assert found.ranks[0] == 4.0


def test_equal_entries_are_one_group_whatever_single_pairs_say() -> None:
    found = ranking(np.zeros((8, 3)))
    assert [set(group) for group in found.groups] == [{0, 1, 2}] and found.friedman == 1.0


def test_two_entries_are_compared_without_friedman() -> None:
    found = ranking(np.column_stack([np.arange(12.0), np.arange(12.0) + np.linspace(1, 2, 12)]))
    assert found.friedman is None and found.groups == () and found.ranks == (2.0, 1.0)
    with pytest.raises(ValueError, match="2 entries"):
        ranking(np.zeros((4, 1)))


def test_false_positives_stay_below_the_level() -> None:
    """Entries that are alike are called different in at most about 5 % of comparisons, all pairs together."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        found = ranking(rng.normal(size=(8, 4)))
        wrong += sum(len(group) for group in found.groups) < 4
    assert wrong / 200 <= 0.08


@given(st.integers(2, 6), st.integers(2, 12), st.integers(0, 1000))
def test_groups_hold_only_pairs_that_do_not_differ(entries: int, seeds: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(seeds, entries)) + np.arange(entries)
    found = ranking(scores)
    differ = {(pair.one, pair.other) for pair in found.pairs if pair.corrected < found.alpha}
    if found.friedman is not None and found.friedman >= found.alpha:
        differ = set()
    for group in found.groups:
        assert not differ & {(min(a, b), max(a, b)) for a in group for b in group}
        ranks = [found.ranks[entry] for entry in group]
        assert ranks == sorted(ranks)


def test_two_standard_errors() -> None:
    same = two_standard_errors((94.0, 0.3, 100), (94.0, 0.3, 100))
    apart = two_standard_errors((94.0, 0.3, 100), (94.0 + 2 * math.sqrt(2) * 0.03, 0.3, 100))
    assert same == 1.0 and apart == pytest.approx(0.0455, abs=1e-4)
    assert two_standard_errors((1.0, 0.0, 5), (1.0, 0.0, 5)) == 1.0
    assert two_standard_errors((1.0, 0.0, 5), (2.0, 0.0, 5)) == 0.0
