"""Limits of costs: what each form tells a strategy, and what it finds."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sartor.architecture import Architecture
from sartor.limits import FORMS, Lagrangian, exponent, penalty, under_limits, unlimited
from sartor.objective import Objective
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies.nasnet_controller import NASNetController
from sartor.strategies.nsga2 import NSGA2
from sartor.strategies.random_search import RandomSearch
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.trial import Trial, TrialLog

SPACE = SearchSpace({"a": tuple(range(10)), "b": tuple(range(10))})


def cost(arch: Architecture) -> float:
    a, b = (float(str(arch[name])) for name in "ab")
    return 1.0 + a + b


def error(arch: Architecture) -> float:
    """More of either helps, and b twice as much: the best within cost <= 8 is a=0, b=7."""
    a, b = (float(str(arch[name])) for name in "ab")
    return 1.0 - (a + 2 * b) / 30


GOALS = [Objective("error", error), Objective("cost", cost, cheap=True, at_most=8.0)]


class Told:
    """Asks at random, and remembers what it is told."""

    def __init__(self, space: SearchSpace, objectives: list[Objective]) -> None:
        self.space, self.objectives, self.trials = space, list(objectives), list[Trial]()

    def ask(self, rng: random.Random) -> Architecture:
        return self.space.sample(rng)

    def tell(self, trial: Trial) -> None:
        self.trials.append(trial)


def told(form: str, **settings: float) -> tuple[Told, list[float], list[tuple[float, float]]]:
    """Search; return the strategy, what it was told, and the raw values."""
    made: list[Told] = []

    def make(space: SearchSpace, objectives: list[Objective]) -> Told:
        made.append(Told(space, objectives))
        return made[0]

    strategy, goals = under_limits(make, SPACE, GOALS, form, **settings)  # type: ignore[arg-type]
    log = search(SPACE, strategy, goals, trials=40, seed=0)
    raw = [(trial.values["error"], trial.values["cost"]) for trial in log if trial.state == "done"]
    return made[0], [trial.values.get("error", -1.0) for trial in made[0].trials], raw


@pytest.mark.parametrize("form", FORMS)
def test_the_log_keeps_the_raw_values(form: str) -> None:
    _, _, raw = told(form)
    assert all(value == pytest.approx(1 - (c - 1) / 30, abs=0.4) and c == round(c) for value, c in raw)


def test_hard_limits_make_infeasible_what_is_beyond_them() -> None:
    strategy, _, raw = told("hard")
    assert all(c <= 8 for _, c in raw)
    assert {trial.state for trial in strategy.trials} == {"done", "infeasible"}


def test_pareto_searches_with_the_cost_as_an_objective_and_no_bound() -> None:
    strategy, values, raw = told("pareto")
    assert [one.name for one in strategy.objectives] == ["error", "cost"]
    assert not any(one.bounded for one in strategy.objectives)
    assert len(raw) == 40 and values == [value for value, _ in raw]


def test_a_penalty_is_what_is_beyond_the_limit_times_its_strength() -> None:
    _, values, raw = told("penalty", strength=3.0)
    assert values == pytest.approx([e + 3.0 * max(0.0, c / 8 - 1) for e, c in raw])


def test_the_exponent_is_that_of_mnasnet_for_an_error_rate() -> None:
    """ACC * (LAT / T) ** w, w = -0.07: half the accuracy's 5 % for twice the latency."""
    _, values, raw = told("exponent", ceiling=1.0)
    assert values == pytest.approx([-(1 - e) * (c / 8) ** -0.07 for e, c in raw])
    assert exponent(1.05, [2.0]) == pytest.approx(exponent(1.0, [1.0]), rel=1e-3)


def test_the_exponent_of_an_accuracy_and_of_a_loss() -> None:
    goals = [Objective("accuracy", lambda arch: 1 - error(arch), goal="max"), GOALS[1]]
    arch = Architecture({"a": 3, "b": 9})
    seen = Told(SPACE, goals)
    strategy, _ = under_limits(lambda *_: seen, SPACE, goals, "exponent")
    strategy.tell(Trial(0, arch, {"accuracy": 0.7, "cost": 13.0}, state="done"))
    assert seen.trials[0].values == {"accuracy": pytest.approx(0.7 * (13 / 8) ** -0.07)}
    loss = Told(SPACE, GOALS)
    strategy, _ = under_limits(lambda *_: loss, SPACE, GOALS, "exponent")
    strategy.tell(Trial(0, arch, {"error": 0.3, "cost": 13.0}, state="done"))
    assert loss.trials[0].values == {"error": pytest.approx(0.3 * (13 / 8) ** 0.07)}


def test_multipliers_rise_while_a_limit_is_exceeded_and_fall_while_it_is_kept() -> None:
    lagrangian = Lagrangian([0.0], rate=0.5)
    lagrangian.update([3.0])
    assert lagrangian.multipliers == [1.0] and lagrangian(2.0, [1.5]) == 2.5
    lagrangian.update([0.0])
    lagrangian.update([0.0])
    assert lagrangian.multipliers == [0.0]


@pytest.mark.parametrize("form", FORMS)
def test_evolution_finds_the_best_network_within_the_limit_under_every_form(form: str) -> None:
    def make(space: SearchSpace, objectives: list[Objective]) -> RegularizedEvolution:
        return RegularizedEvolution(space, objectives, population=20, tournament=8)

    settings = {"power": -1.0, "ceiling": 1.0} if form == "exponent" else {}
    kind = NSGA2 if form == "pareto" else make  # several objectives need a strategy that has them
    strategy, goals = under_limits(kind, SPACE, GOALS, form, **settings)  # type: ignore[arg-type]
    log = search(SPACE, strategy, goals, trials=300, seed=1)
    within = [trial for trial in log if trial.state == "done" and trial.values["cost"] <= 8]
    assert min(trial.values["error"] for trial in within) <= error(Architecture({"a": 0, "b": 7})) + 1 / 30


def test_a_strategy_with_saved_state_keeps_its_multipliers() -> None:
    strategy, goals = under_limits(NASNetController, SPACE, GOALS, "lagrangian")
    whole = search(SPACE, strategy, goals, trials=30, seed=3)
    log = TrialLog()
    search(SPACE, under_limits(NASNetController, SPACE, GOALS, "lagrangian")[0], goals, trials=12, seed=3, log=log)
    resumed = search(
        SPACE, under_limits(NASNetController, SPACE, GOALS, "lagrangian")[0], goals, trials=30, seed=3, log=log
    )
    assert [trial.arch for trial in resumed] == [trial.arch for trial in whole]


@given(st.floats(0, 10), st.lists(st.floats(0.01, 100), min_size=1, max_size=3))
def test_floats_and_tensors_fold_alike(loss: float, ratios: list[float]) -> None:
    as_tensors = [torch.tensor(ratio, dtype=torch.float64) for ratio in ratios]
    tensor = torch.tensor(loss, dtype=torch.float64)
    multipliers = Lagrangian([0.5] * len(ratios))
    for fold in (penalty, exponent, multipliers):
        assert float(fold(tensor, as_tensors)) == pytest.approx(fold(loss, ratios))


def test_gradients_flow_into_a_cost_beyond_its_limit_and_not_within() -> None:
    beyond, within = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    penalty(torch.tensor(1.0), [beyond, within], 3.0).backward()  # type: ignore[no-untyped-call]
    assert beyond.grad == 3.0 and within.grad == 0.0


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="no limit is taken as 'soft'"):
        under_limits(RandomSearch, SPACE, GOALS, "soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need a limit, and no objective but the first has a bound"):
        under_limits(RandomSearch, SPACE, unlimited(GOALS), "penalty")
    with pytest.raises(ValueError, match="not positive"):
        under_limits(RandomSearch, SPACE, [GOALS[0], Objective("cost", cost, at_most=0.0)], "penalty")
