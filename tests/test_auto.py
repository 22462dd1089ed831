# SPDX-License-Identifier: Apache-2.0
"""The default strategy: its surrogate is a Gaussian process, its gains are integrals, and it finds what is best."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, broken, cost, error
from sartor.architecture import Architecture
from sartor.encodings import enumerated, indices, onehot, ordinal
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume, pareto_front
from sartor.protocols import Strategy
from sartor.recipes._auto_gain import Improvement, Scores, Volume
from sartor.recipes._auto_process import Features, Process, _squared
from sartor.recipes.auto import Auto
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies import NSGA2, LocalSearch
from sartor.trial import Trial

HUGE = SearchSpace({f"c{i:02}": tuple(range(5)) for i in range(40)})
SHARED = SearchSpace({"a": ("x", "y", "z"), "b": ("x", "y", "z"), "n": (1, 2, 5)}, {"n": ((("a", ("x", "y")),),)})


def quick(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Learns seldom, so that the many searches of the contract take seconds."""
    return Auto(space, objectives, batch=8, capacity=60)


class TestAuto(StrategyContract):
    make = staticmethod(quick)
    notes_what_runs = True

    def test_failed_and_infeasible_trials(self) -> None:
        """A cheap bound is looked at before an architecture is asked for, so that none is exceeded."""
        objectives = (Objective("error", broken), Objective("cost", cost, at_most=60.0, cheap=True))
        assert {trial.state for trial in search(TOY, quick(TOY, objectives), objectives, trials=80)} == {
            "done",
            "failed",
        }
        objectives = (objectives[0], Objective("cost", cost, at_most=60.0))
        states = {trial.state for trial in search(TOY, quick(TOY, objectives), objectives, trials=80)}
        assert states == {"done", "failed", "infeasible"}


# ---- the surrogate --------------------------------------------------------------------------------------


def test_distances_are_those_of_options_and_counts() -> None:
    table = enumerated(SHARED)
    places, counts = Features(SHARED)(table)
    distances = _squared(places, places)
    row = {tuple(one): place for place, one in enumerate(table.tolist())}
    one = row[0, 0, 0]  # x, x, 1
    assert distances[one, row[0, 1, 0]] == pytest.approx(1)
    assert distances[one, row[0, 0, 1]] == pytest.approx(0.25)  # from 1 to 2, of 1 to 5
    assert distances[one, row[0, 1, 2]] == pytest.approx(2)
    assert distances[one, row[2, 0, 0]] == pytest.approx(1.5)  # the gate switches n off
    assert (_squared(counts, counts)[row[0, 1, 0], row[1, 0, 0]]) == 0  # as many x and y
    assert counts[one].tolist() == [2, 0, 0, 1, 0, 0]


def test_numbers_are_as_far_apart_as_in_the_ordinal_encoding() -> None:
    space = SearchSpace({"width": (8, 16, 64), "depth": (1, 2, 3)})
    archs = [Architecture({"width": w, "depth": d}) for w in (8, 16, 64) for d in (1, 2, 3)]
    places, counts = Features(space)(indices(space, archs))
    levels = ordinal(space, archs)
    assert counts.shape == (9, 0)  # what is counted would be the places again
    assert np.allclose(_squared(places, places), np.abs(levels[:, None] - levels).sum(axis=2), atol=1e-6)


def sampled(space: SearchSpace, count: int) -> tuple[Features, Any, np.ndarray]:
    rng = np.random.default_rng(0)
    table = enumerated(space)
    table = table[rng.choice(len(table), count, replace=False)]
    features = Features(space)
    return features, features(table), rng.normal(size=count)


def test_gradient_of_the_posterior() -> None:
    features, samples, values = sampled(TOY, 20)
    process = Process(features)
    between = np.stack(
        [
            _squared(samples.places[:, features.owners == one], samples.places[:, features.owners == one])
            for one in range(6)
        ]
    )
    rest = (between.astype(float), _squared(samples.counts, samples.counts).astype(float), values)
    start = process._logs + np.linspace(-0.5, 0.5, len(process._logs))
    assert check_grad(lambda x: process._loss(x, *rest)[0], lambda x: process._loss(x, *rest)[1], start) < 1e-4


def test_posterior_is_that_of_the_textbook() -> None:
    features, samples, values = sampled(TOY, 30)
    process = Process(features)
    process.tune(samples, values)
    process.condition(samples, values)
    kernel = process.kernel(samples, samples).astype(float)
    noisy = kernel + np.exp(process._logs[-1]) * np.eye(30)
    assert np.allclose(
        process.means(process.kernel(samples, samples)), kernel @ np.linalg.solve(noisy, values), atol=1e-2
    )
    variance = np.diag(kernel - kernel @ np.linalg.solve(noisy, kernel))
    assert np.allclose(process.deviations(process.kernel(samples, samples)), np.sqrt(variance), atol=1e-2)


def test_counts_help_where_options_matter_and_places_do_not() -> None:
    table = enumerated(TOY)
    held = onehot(TOY, [Architecture(dict(zip(TOY.choices, row, strict=True))) for row in table.tolist()])
    values = (held.reshape(len(table), 6, 5).sum(axis=1) @ [0.0, 1, 3, 2, -1]).astype(float)
    values = (values - values.mean()) / values.std()
    features = Features(TOY)
    places = np.random.default_rng(1).choice(len(table), 60, replace=False)
    process = Process(features)
    samples, everything = features(table[places]), features(table)
    process.tune(samples, values[places])
    process.condition(samples, values[places])
    assert np.corrcoef(process.means(process.kernel(everything, samples)), values)[0, 1] > 0.97


# ---- gains ------------------------------------------------------------------------------------------------


def test_scores_are_quantiles_and_go_on() -> None:
    goodness = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    scores = Scores(goodness)
    assert scores.values[1] == scores.values[3] < scores.values[0] < scores.values[2] < scores.values[4]
    assert np.allclose(scores.of(goodness), scores.values)
    assert scores.of(np.array([9.0]))[0] > scores.values.max() and scores.of(np.array([-9.0]))[0] < scores.values.min()
    assert Scores(np.full(4, 2.0)).values.tolist() == [0, 0, 0, 0]


def test_improvement_is_the_mean_over_draws() -> None:
    drawn = np.random.default_rng(0).normal(0.5, 2.0, 400_000)
    expected = Improvement(1.0).of(np.array([[0.5]]), np.array([[2.0]]))
    assert expected[0] == pytest.approx(np.maximum(drawn - 1.0, 0).mean(), rel=0.01)


@pytest.mark.parametrize("objectives", [2, 3])
def test_volume_grows_as_the_hypervolume_does(objectives: int) -> None:
    rng = np.random.default_rng(0)
    told = rng.uniform(size=(40, objectives))
    candidates = rng.uniform(0.5, 1.0, size=(60, objectives))
    gains = Volume(told, rng).of(candidates, np.full(candidates.shape, 1e-3))
    exact = np.array([hypervolume(-np.vstack([told, one]), -told.min(axis=0)) for one in candidates])
    exact -= hypervolume(-told, -told.min(axis=0))
    assert np.corrcoef(gains, exact)[0, 1] > 0.95
    assert gains[exact == 0].max(initial=0) < 0.1 * gains.max()


# ---- the search -------------------------------------------------------------------------------------------


def test_it_finds_the_optimum_with_fewer_trials_than_local_search() -> None:
    best = min(error(Architecture(dict(zip(TOY.choices, row, strict=True)))) for row in enumerated(TOY).tolist())

    def needed(make: Callable[..., Any], seed: int) -> int:
        log = search(TOY, make(TOY, ERROR), ERROR, trials=100, seed=seed)
        return next((place for place, trial in enumerate(log) if trial.values["error"] == best), 100)

    assert max(needed(Auto, seed) for seed in range(2)) < np.mean([needed(LocalSearch, seed) for seed in range(10)])


def test_it_finds_more_hypervolume_than_nsga2() -> None:
    for seed in range(1):
        logs = [search(TOY, make(TOY, OBJECTIVES), OBJECTIVES, trials=100, seed=seed) for make in (Auto, NSGA2)]
        ours, theirs = (hypervolume([costs(trial, OBJECTIVES) for trial in log], [90.0, 120.0]) for log in logs)
        assert ours > theirs


def test_it_keeps_a_bound_that_it_learns() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", cost, at_most=20.0))
    states = [trial.state for trial in search(TOY, Auto(TOY, objectives), objectives, trials=80)]
    assert states[:10].count("done") <= 5 and states[40:].count("done") >= 20


def test_it_asks_for_nothing_beyond_a_cheap_bound() -> None:
    objectives = (OBJECTIVES[0], Objective("cost", cost, at_most=40.0, cheap=True))
    assert {trial.state for trial in search(TOY, Auto(TOY, objectives), objectives, trials=40)} == {"done"}


def test_it_measures_no_cheap_objective_without_a_bound() -> None:
    """A table's objectives are all cheap: to look would be a query."""
    calls = []

    def counted(arch: Architecture) -> float:
        calls.append(arch)
        return error(arch)

    objectives = (Objective("error", counted, cheap=True), Objective("cost", cost, cheap=True))
    search(TOY, Auto(TOY, objectives), objectives, trials=30)
    assert len(calls) == 30


def test_it_asks_for_nothing_twice_while_there_is_something_new() -> None:
    log = search(
        GATED, Auto(GATED, ERROR), [Objective("error", lambda arch: float(len(arch.to_json())))], trials=GATED.size
    )
    assert len({trial.arch for trial in log}) == GATED.size


def test_workers_are_given_different_architectures() -> None:
    strategy = Auto(TOY, ERROR)
    for number in range(20):
        arch = strategy.ask(random.Random(number))
        strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
    asked = [strategy.ask(random.Random(number)) for number in range(8)]
    assert len(set(asked)) == 8


def test_candidates_for_several_objectives_are_neighbours_of_the_front() -> None:
    log = search(TOY, Auto(TOY, OBJECTIVES, batch=1), OBJECTIVES, trials=60)
    for place in range(10, 60):
        told = [costs(trial, OBJECTIVES) for trial in log[:place]]
        near = {other for one in pareto_front(told).tolist() for other in TOY.neighbours(log[one].arch)}
        assert log[place].arch in near


def test_where_all_neighbours_are_known_it_takes_the_others() -> None:
    space = SearchSpace({"a": ("x", "y", "z")}, constraint=None)
    objectives = (Objective("one", lambda arch: 1.0), Objective("two", lambda arch: 2.0))
    wide = SearchSpace({"a": (0, 1, 2), "b": (0, 1, 2)}, constraint=lambda arch: (arch["a"] == 0) == (arch["b"] == 0))
    for one in (space, wide):
        log = search(one, Auto(one, objectives, initial=2), objectives, trials=3 if one is space else 5)
        assert len({trial.arch for trial in log}) == len(log)


def test_a_space_that_cannot_be_listed() -> None:
    def distance(arch: Architecture) -> float:
        return float(sum(abs(int(str(option)) - place % 5) for place, option in enumerate(arch.values())))

    objectives = (Objective("distance", distance),)
    drawn = [distance(HUGE.sample(random.Random(seed))) for seed in range(100)]
    log = search(HUGE, Auto(HUGE, objectives, batch=5), objectives, trials=100)
    assert min(trial.values["distance"] for trial in log) < 0.7 * min(drawn)


def test_it_learns_from_no_more_than_its_capacity() -> None:
    log = search(TOY, Auto(TOY, ERROR, capacity=30, batch=10), ERROR, trials=150)
    assert min(trial.values["error"] for trial in log) <= 6 and all(math.isfinite(t.values["error"]) for t in log)


@pytest.mark.parametrize("wrong", [{"initial": 1}, {"batch": 0}, {"capacity": 9}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 2, 1 and 10"):
        Auto(TOY, ERROR, **wrong)
