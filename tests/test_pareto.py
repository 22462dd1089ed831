# SPDX-License-Identifier: Apache-2.0
"""Dominance, crowding and hypervolume against brute force, closed forms and pymoo."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sartor.pareto import crowding_distance, hypervolume, non_dominated_sort, pareto_front

Points = NDArray[np.float64]


@st.composite
def clouds(draw: st.DrawFn, most: int = 20) -> Points:
    """Small integer grids, so that ties and equal points are common."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, 4), min_size=width, max_size=width), min_size=1, max_size=most))
    return np.array(rows, dtype=float)


def dominates(a: Points, b: Points) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_sort(points: Points) -> list[list[int]]:
    left, fronts = set(range(len(points))), []
    while left:
        front = sorted(i for i in left if not any(dominates(points[j], points[i]) for j in left))
        fronts.append(front)
        left -= set(front)
    return fronts


@given(clouds())
def test_sort_equals_brute_force_with_ties(points: Points) -> None:
    fronts = non_dominated_sort(points)
    assert [front.tolist() for front in fronts] == brute_sort(points)
    assert pareto_front(points).tolist() == fronts[0].tolist()


@given(clouds())
def test_sort_does_not_depend_on_scale(points: Points) -> None:
    scaled = points * np.arange(1, points.shape[1] + 1) - 7
    assert [f.tolist() for f in non_dominated_sort(points)] == [f.tolist() for f in non_dominated_sort(scaled)]


def test_infinite_points_are_last() -> None:
    points = np.array([[np.inf, np.inf], [1, 2], [np.inf, 0], [np.inf, np.inf]])
    assert [front.tolist() for front in non_dominated_sort(points)] == [[1, 2], [0, 3]]


@given(clouds())
def test_infinities_of_both_signs_are_ordinary_coordinates(points: Points) -> None:
    points = np.where(points == 0, -np.inf, np.where(points == 4, np.inf, points))
    fronts = non_dominated_sort(points)
    assert [front.tolist() for front in fronts] == brute_sort(points)
    assert pareto_front(points).tolist() == fronts[0].tolist()


def test_crowding_by_hand() -> None:
    points = np.array([[0, 4], [1, 2], [3, 1], [4, 0]], dtype=float)
    assert crowding_distance(points).tolist() == [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf]
    assert crowding_distance(np.array([[1.0, 2.0]])).tolist() == [0.0]
    assert crowding_distance(np.array([[1.0], [np.inf], [2.0]])).tolist() == [np.inf, np.inf, 0.0]


@given(clouds())
def test_crowding_ends_are_infinite_and_equal_points_are_not_all_apart(points: Points) -> None:
    distance = crowding_distance(points)
    assert (distance >= 0).all()
    for column in points.T:
        if column.min() < column.max():
            assert np.isinf(distance[column == column.min()]).any()
            assert np.isinf(distance[column == column.max()]).any()


def brute_volume(points: Points, reference: int) -> int:
    cells = itertools.product(range(reference), repeat=points.shape[1])
    return sum(any((point <= cell).all() for point in points) for cell in cells)


@settings(max_examples=60)
@given(clouds(most=8))
def test_hypervolume_counts_the_cells(points: Points) -> None:
    assert hypervolume(points, [5.0] * points.shape[1]) == pytest.approx(brute_volume(points, 5), rel=1e-12)
    assert hypervolume(points, [3.0] * points.shape[1]) == pytest.approx(brute_volume(points, 3), rel=1e-12)


def test_empty_and_wrong_input() -> None:
    assert hypervolume([], [1.0, 1.0]) == 0 and hypervolume(np.empty((0, 3)), [1.0, 1.0, 1.0]) == 0
    assert pareto_front([]).tolist() == [] and non_dominated_sort([]) == [] and len(crowding_distance([])) == 0
    assert hypervolume([[1.0, 0.0]], [1.0, 1.0]) == 0  # on the edge of the box
    assert hypervolume([[-np.inf, 0.0, 0.0], [0.0, 0.5, 0.5]], [1.0, 1.0, 1.0]) == np.inf
    assert hypervolume([[-np.inf, 1.0, 0.0], [0.0, 0.5, 0.5]], [1.0, 1.0, 1.0]) == 0.25
    for wrong in ([[np.nan, 1.0]], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"NaN|shape"):
            pareto_front(wrong)
    with pytest.raises(ValueError, match="is not finite"):
        hypervolume([[1.0]], [np.inf])


@pytest.mark.parametrize("width", [2, 3, 4])
def test_pymoo_agrees(width: int) -> None:
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting")
    indicator = pytest.importorskip("pymoo.indicators.hv")
    crowding = pytest.importorskip("pymoo.operators.survival.rank_and_crowding.metrics")
    points = np.random.default_rng(0).random((60, width))
    fronts = non_dominated_sort(points)
    theirs = sorting.NonDominatedSorting().do(points)
    assert [f.tolist() for f in fronts] == [sorted(f.tolist()) for f in theirs]
    reference = np.full(width, 1.1)
    assert hypervolume(points, reference) == pytest.approx(indicator.HV(ref_point=reference)(points), rel=1e-9)
    ours = crowding_distance(points[fronts[1]])
    np.testing.assert_allclose(ours, width * crowding.calc_crowding_distance(points[fronts[1]]), rtol=1e-9)
