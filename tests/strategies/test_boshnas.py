# SPDX-License-Identifier: Apache-2.0
"""BOSHNAS: the contract of every strategy, the surrogate, the descent on its input, and the way back to designs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, error
from sartor import encodings
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Stateful
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies._gobi import _derivatives, gobi, nearest
from sartor.strategies._heteroscedastic import Heteroscedastic
from sartor.strategies._small_networks import Natural, Perceptron, rectified, squashed
from sartor.strategies.boshnas import BOSHNAS, _ranks
from sartor.trial import Trial


def small_boshnas(space: SearchSpace, objectives: Sequence[Objective]) -> BOSHNAS:
    """Few fits, of few steps."""
    return BOSHNAS(space, objectives, samples=20, batch=100, epochs=30, steps=6)


class TestBOSHNAS(StrategyContract):
    make = staticmethod(small_boshnas)
    keeps_cheap_bounds = True


def test_asks_leave_nothing_behind_and_the_state_is_what_was_told() -> None:
    once, often = small_boshnas(TOY, OBJECTIVES), small_boshnas(TOY, OBJECTIVES)
    assert isinstance(once, Stateful)
    for number in range(30):
        often.ask(random.Random(f"lost {number}"))
        arch = once.ask(random.Random(number))
        assert often.ask(random.Random(number)) == arch
        trial = Trial(
            number, arch, {"error": error(arch)} if number % 3 else {}, state="done" if number % 3 else "failed"
        )
        once.tell(trial)
        often.tell(trial)
    restored = small_boshnas(TOY, OBJECTIVES)
    restored.load_state_dict(once.state_dict())
    assert restored.ask(random.Random(30)) == once.ask(random.Random(30))


# ---- surrogate ----------------------------------------------------------------------------------------

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def slopes_of(function: Callable[[Floats], float], at: Floats) -> Floats:
    """The gradient by central differences."""
    steps = 1e-5 * np.eye(at.size).reshape(at.size, *at.shape)
    return np.array([(function(at + step) - function(at - step)) / 2e-5 for step in steps]).reshape(at.shape)


@pytest.mark.parametrize(("moments", "function"), [(rectified, relu), (squashed, sigmoid)])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.0, 0.5), (-0.7, 2.0)])
def test_moments_of_activations_beside_sampling(moments, function, mean: float, deviation: float) -> None:  # type: ignore[no-untyped-def]
    draws = function(mean + deviation * np.random.default_rng(0).standard_normal(200_000))
    (first, second), slopes = moments(np.array([mean]), np.array([deviation**2]))
    assert first[0] == pytest.approx(draws.mean(), abs=0.02)
    assert second[0] == pytest.approx(draws.var(), abs=0.03)
    at = np.array([mean, deviation**2])
    for place in (0, 1):

        def moment(at: Floats, place: int = place) -> float:
            return float(moments(at[:1], at[1:])[0][place][0])

        found = slopes.back((np.array([1.0 - place]), np.array([float(place)])))
        assert np.concatenate(found) == pytest.approx(slopes_of(moment, at), abs=1e-7)


@pytest.mark.parametrize("make", [Natural, Perceptron])
def test_gradients_of_the_networks_beside_differences(make: type[Natural] | type[Perceptron]) -> None:
    rng = np.random.default_rng(0)
    net, points = make((3, 5, 4, 1), rng), rng.random((6, 3))
    net.parameters += 0.3 * rng.standard_normal(net.parameters.shape)
    weights = rng.standard_normal((2, 6))

    def value(points: Floats) -> tuple[float, Callable[[], tuple[Floats, Floats]]]:
        """A weighted sum of all outputs; the teacher's dropout is the same each time."""
        if isinstance(net, Perceptron):
            scores, back = net(points, np.random.default_rng(1))
            return float(weights[0] @ scores), lambda: back(weights[0])
        moments, back_moments = net(points)
        return float((weights * moments).sum()), lambda: back_moments((weights[0], weights[1]))

    def value_with(parameters: Floats) -> float:
        before = net.parameters.copy()
        net.parameters[:] = parameters
        found = value(points)[0]
        net.parameters[:] = before
        return found

    by_points, by_parameters = value(points)[1]()
    assert by_points == pytest.approx(slopes_of(lambda at: value(at)[0], points), abs=1e-7)
    assert by_parameters == pytest.approx(slopes_of(value_with, net.parameters), abs=1e-7)


@pytest.mark.parametrize("aleatoric", [False, True])
def test_the_surrogate_learns_order_and_noise_and_its_bound_has_gradients(aleatoric: bool) -> None:
    """Half of the inputs are without noise; there the aleatoric variance is smaller."""
    rng = np.random.default_rng(0)
    points = rng.random((200, 3))
    noisy = points[:, 2] > 0.5
    targets = np.clip(0.2 + 0.6 * points[:, 0] + 0.8 * noisy * (rng.random(200) - 0.5), 0, 1)
    surrogate = Heteroscedastic(points, targets, epochs=150, rate=1e-2, seed=0)
    mean, variance = surrogate.mean(points)
    assert np.corrcoef(mean, points[:, 0])[0, 1] > 0.9
    assert variance[noisy].mean() > 2 * variance[~noisy].mean()
    assert (surrogate.epistemic(points) >= 0).all()
    values, gradients = surrogate.bound(points[:5], 0.5, aleatoric=aleatoric)
    doubt = surrogate.epistemic(points[:5]) + (np.sqrt(variance[:5]) if aleatoric else 0.0)
    assert values == pytest.approx(mean[:5] - 0.5 * doubt)
    by = slopes_of(lambda at: float(surrogate.bound(at, 0.5, aleatoric=aleatoric)[0].sum()), points[:5])
    assert gradients == pytest.approx(by, abs=1e-7)


# ---- input optimisation ---------------------------------------------------------------------------------


def test_gobi_stays_in_the_box_and_the_trust_region_and_finds_the_minimum() -> None:
    target = np.array([0.3, 0.9, -0.5, 1.7])
    seen: list[Floats] = []

    def bound(points: Floats) -> tuple[Floats, Floats]:
        seen.append(points[:3])  # behind these are the points by which curvature is told
        away = np.array([1.0, 5.0, 2.0, 1.0]) * (points - target)
        return (away * (points - target)).sum(axis=1), 2 * away

    points = gobi(bound, np.random.default_rng(1).random((3, 4)), steps=200, rate=0.5, trust=0.25, seed=0)
    assert points == pytest.approx(np.tile(np.clip(target, 0, 1), (3, 1)), abs=0.02)
    path = np.stack(seen)
    assert path.min() >= 0 and path.max() <= 1
    assert np.abs(path[1:] - path[:-1]).max() <= 0.25 + 1e-9
    values = ((path - target) ** 2 @ np.array([1.0, 5.0, 2.0, 1.0]))[-6:]
    assert len(seen) < 200 and np.abs(np.diff(values, axis=0)).max() < 1e-5, "it ends after five steps without gain"


def test_curvature_is_hutchinsons_estimate() -> None:
    """The signs cancel where the Hessian is diagonal."""
    factors = np.array([3.0, 0.5])
    _, _, diagonal = _derivatives(
        lambda points: ((factors * points**2).sum(axis=1), 2 * factors * points),
        np.random.default_rng(0).random((4, 2)),
        np.random.default_rng(1),
    )
    assert diagonal == pytest.approx(np.tile(2 * factors, (4, 1)))


def test_distances_of_the_embedding_are_edit_distances() -> None:
    archs = [TOY.sample(random.Random(seed)) for seed in range(20)]
    encoded = encodings.onehot(TOY, archs)
    for (a, one), (b, other) in itertools.combinations(zip(archs, encoded, strict=True), 2):
        assert ((one - other) ** 2).sum() == 2 * sum(a[name] != b[name] for name in a)


def test_nearest_comes_in_the_order_of_all_distances() -> None:
    space = SearchSpace({"a": (0, 1, 2), "b": ("x", "y"), "c": (1,), "d": (0, 1, 2, 3)})
    point = np.random.default_rng(0).random(10)
    found = list(nearest(space, point))
    assert len(found) == len(set(found)) == space.size == 24
    distances = ((encodings.onehot(space, found) - point) ** 2).sum(axis=1)
    assert (np.diff(distances) >= -1e-12).all()


def test_nearest_stays_in_a_gated_space() -> None:
    assert all(arch in GATED for arch in itertools.islice(nearest(GATED, np.zeros(12)), 30))


# ---- strategy -----------------------------------------------------------------------------------------


def test_ranks_follow_debs_rules() -> None:
    losses = [(0.0, 2.0), (0.5, 1.0), (0.0, 1.0), (math.inf, math.inf), (math.inf, math.inf)]
    assert _ranks(losses).tolist() == [0.25, 0.5, 0.0, 0.75, 0.75]


def test_queries_are_new_and_better_than_random() -> None:
    strategy = BOSHNAS(TOY, ERROR, uncertain=0.0, diverse=0.0, batch=20, epochs=100, steps=15)
    log = search(TOY, strategy, ERROR, trials=40)
    assert len({trial.arch for trial in log}) == 40
    assert np.mean([trial.values["error"] for trial in log[20:]]) < np.mean([t.values["error"] for t in log[:20]]) - 10


def test_uncertain_and_diverse_queries() -> None:
    """All by uncertainty: ten of a list; all for diversity: the space's own draws."""
    unsure = BOSHNAS(TOY, ERROR, uncertain=1.0, diverse=0.0, epochs=2, steps=1)
    random_only = BOSHNAS(TOY, ERROR, uncertain=0.0, diverse=1.0)
    for strategy in (unsure, random_only):
        for number in range(20):
            arch = strategy.ask(random.Random(number))
            strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))
    assert len({unsure.ask(random.Random(seed)) for seed in range(100)}) == 10
    assert len({random_only.ask(random.Random(seed)) for seed in range(100)}) > 90


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"epochs": 0}, {"uncertain": 0.7, "diverse": 0.4}, {"trust": 0.0}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
        BOSHNAS(TOY, ERROR, **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_better_than_random_search_on_nasbench201() -> None:
    """The published comparison: above 93.68, random search's 200-epoch test accuracy at 100 queries; 5 seeds."""
    from sartor.tables import load

    table = load("nasbench201")
    objectives = [table.objective("cifar10_val12")]
    found = []
    for seed in range(5):
        log = search(table.space, BOSHNAS(table.space, objectives), objectives, trials=100, seed=seed)
        best: Architecture = max(log, key=lambda trial: trial.values["cifar10_val12"]).arch
        found.append(float(table.values("cifar10", [best])[0]))
    assert np.mean(found) > 93.68 + 2 * np.std(found, ddof=1) / math.sqrt(5)
