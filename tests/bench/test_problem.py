"""Problems: what is known of them without a search, and those of the tables."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from bench.toy_bench import ALL, COST, SIGNAL, SPACE, reported, signal, toy
from sartor.bench import Problem, table_problem
from sartor.objective import Objective
from sartor.pareto import hypervolume


def test_what_is_known_of_a_whole_space() -> None:
    known = toy().known(4)
    assert known["architectures"] == 18 and known["signal_optimum"] == 25
    assert known["optimum"] == 24.0, "a 2, b 2, c 0: the signal's optimum is worse, at 23"
    assert known["average"] == pytest.approx(reported(ALL).mean())
    assert known["random"][0] == pytest.approx(known["average"]) and len(known["random"]) == 4
    assert toy(whole=False).known(4) == {}


def test_the_reference_is_the_worst_of_the_space_in_the_units_of_the_objectives() -> None:
    known = toy((SIGNAL, COST)).known(1)
    assert known["reference"] == [0.0, 4.0] and known["reported_reference"] == [-1.0, 4.0]
    points = [(-signal(arch), COST.measure(arch)) for arch in ALL]
    assert known["volume"] == pytest.approx(hypervolume(points, (0.0, 4.0)))


def test_bounds_leave_out_what_is_not_allowed() -> None:
    bounded = toy((SIGNAL, replace(COST, at_most=1.0)))
    known = bounded.known(3)
    assert known["architectures"] == 6 and known["optimum"] == 9.0
    assert "random" not in known, "infeasible draws count as queries, which the closed form does not know"
    with pytest.raises(ValueError, match="no architecture of toy keeps the bounds"):
        toy((SIGNAL, replace(COST, at_most=-1.0))).known(3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reported_name": ""}, "give reported_name"),
        ({"reported_name": "signal"}, "so it is read by the search"),
        ({"reference": (1.0, 2.0)}, "2 values for 1 objectives"),
        ({"everything": np.zeros((3, 5))}, r"shape \(3, 5\)"),
        ({"objectives": ()}, "there is no objective"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, object], told: str) -> None:
    fields = {"objectives": (SIGNAL,), "reported": reported, "reported_name": "reported"} | changes
    with pytest.raises(ValueError, match=told):
        Problem("toy", SPACE, **fields)  # type: ignore[arg-type]


def test_a_table_gives_signal_reported_value_and_device() -> None:
    problem = table_problem("nasbench201", "cifar100", device="pixel3", latency_ms=5.0)
    assert [one.name for one in problem.objectives] == ["cifar100_val12", "cifar100_pixel3_latency_ms"]
    assert [one.goal for one in problem.objectives] == ["max", "min"] and problem.objectives[1].at_most == 5.0
    assert problem.reported_name == "cifar100" and problem.known(1)["optimum"] < 73.5
    assert table_problem("nasbench201", "cifar100").known(1)["optimum"] == pytest.approx(73.5133, abs=1e-3)


def test_the_exact_random_search_is_the_published_one() -> None:
    """CIFAR-10 with the 12-epoch validation as signal, 100 seeds: standard errors from 0.06 to 0.02."""
    known = table_problem("nasbench201", "cifar10").known(400)
    exact = [known["random"][queries - 1] for queries in (50, 100, 200, 400)]
    assert exact == pytest.approx([93.40, 93.68, 93.88, 93.99], abs=0.06)
    assert known["optimum"] == pytest.approx(94.3733, abs=1e-3)


def test_what_a_device_did_not_run_is_not_in_the_space() -> None:
    problem = table_problem("nasbench201", "cifar100", device="edgetpu")
    assert problem.everything is not None and len(problem.everything) == 10_926
    assert "10,926 of 15,625" in problem.notes[0] and not np.isnan(problem.everything).any()
    sampled = problem.space.sample(random.Random(0))
    assert math.isfinite(problem.objectives[1].measure(sampled))
    again = pickle.loads(pickle.dumps((problem.space, problem.objectives)))
    assert again[1][1].measure(sampled) == problem.objectives[1].measure(sampled)


@pytest.mark.parametrize(
    ("arguments", "named", "told"),
    [
        (("nasbench102", "cifar10"), {}, "nasbench201"),
        (("nasbench201", "cifar1000"), {}, "did you mean 'cifar100'"),
        (("nasbench201", "cifar10"), {"device": "pixel4"}, "did you mean 'pixel3'"),
        (("nasbench201", "cifar10"), {"signal": "cifar10_val13"}, "did you mean 'cifar10_val12'"),
        (("nasbench201", "cifar10"), {"costs": ["flop_m"]}, "did you mean 'flops_m'"),
        (("nasbench201", "cifar10"), {"latency_ms": 3.0}, "needs a device"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(
    arguments: tuple[str, str], named: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        table_problem(*arguments, **named)  # type: ignore[arg-type]


def test_a_signal_that_is_reported_is_one_and_the_same() -> None:
    problem = table_problem("nasbench201", "cifar10", signal="cifar10")
    assert problem.reported is None and problem.reported_name == ""
    assert isinstance(problem.objectives[0], Objective)
