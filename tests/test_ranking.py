# SPDX-License-Identifier: Apache-2.0
"""Rank correlations and what is lost by trusting a ranking, against hand counts and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sartor.ranking import kendall_tau, spearman, top_k_recall, top_k_regret


def test_tau_by_counting_pairs() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)  # 5 concordant, 1 discordant
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))  # tau-b with one tie


def test_spearman_by_its_formula() -> None:
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([10, 20, 30], [1, 100, 101]) == pytest.approx(1)


def test_what_is_all_tied_has_no_correlation() -> None:
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 2, 3], [5, 5, 5]))


def test_regret_and_recall() -> None:
    true, predicted = [70.0, 90.0, 80.0, 60.0], [4.0, 1.0, 3.0, 2.0]
    assert top_k_regret(predicted, true, 1) == 20 and top_k_regret(predicted, true, 2) == 10
    assert top_k_regret(predicted, true, 4) == 0
    assert top_k_regret(predicted, true, 1, goal="min") == 30  # the least predicted is the worst
    assert top_k_recall(predicted, true, 2) == 0.5 and top_k_recall(predicted, true, 4) == 1
    assert top_k_recall(predicted, true, 1, goal="min") == 0


def test_a_random_ranking_has_no_correlation() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 2000))
    assert abs(kendall_tau(first, second)) < 0.05 and abs(spearman(first, second)) < 0.07


@pytest.mark.parametrize(
    ("predicted", "true", "complaint"),
    [
        ([1, 2], [1, 2, 3], "one length"),
        ([1], [1], "no ranking"),
        ([1, math.nan], [1, 2], "NaN"),
        ([[1, 2]], [[1, 2]], "shapes"),
    ],
)
def test_what_cannot_be_ranked(predicted: list[float], true: list[float], complaint: str) -> None:
    for measure in (kendall_tau, spearman):
        with pytest.raises(ValueError, match=complaint):
            measure(predicted, true)


def test_k_and_goal_out_of_range() -> None:
    with pytest.raises(ValueError, match="k is 3"):
        top_k_regret([1, 2], [1, 2], 3)
    with pytest.raises(ValueError, match="goal is 'best'"):
        top_k_recall([1, 2], [1, 2], 1, goal="best")  # type: ignore[arg-type]
