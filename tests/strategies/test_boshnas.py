# SPDX-License-Identifier: Apache-2.0
"""BOSHNAS: the contract of every strategy, the surrogate, the descent on its input, and the way back to designs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, broken, cost, error
from sartor import encodings
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Stateful
from sartor.search import search
from sartor.space import SearchSpace
from sartor.strategies._gobi import gobi, nearest
from sartor.strategies._heteroscedastic import Heteroscedastic, _rectified, _squashed
from sartor.strategies.boshnas import BOSHNAS, _ranks
from sartor.trial import Trial


def small_boshnas(space: SearchSpace, objectives: Sequence[Objective]) -> BOSHNAS:
    """Few fits, of few steps."""
    return BOSHNAS(space, objectives, samples=20, batch=100, epochs=30, steps=6)


class TestBOSHNAS(StrategyContract):
    make = staticmethod(small_boshnas)

    def test_failed_and_infeasible_trials(self) -> None:
        """What a cheap bound refuses is never asked, so that nothing is infeasible."""
        objectives = (Objective("error", broken), Objective("cost", cost, at_most=60.0, cheap=True))
        log = search(TOY, self.make(TOY, objectives), objectives, trials=60)
        assert {trial.state for trial in log} == {"done", "failed"}
        costly = (objectives[0], Objective("cost", cost, at_most=60.0))
        log = search(TOY, self.make(TOY, costly), costly, trials=60)
        assert {trial.state for trial in log} == {"done", "failed", "infeasible"}


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


def test_torchs_generator_is_not_touched() -> None:
    state = torch.get_rng_state()
    Heteroscedastic(torch.rand(8, 4, generator=torch.Generator()), torch.zeros(8), epochs=2, rate=1e-3, seed=0)
    assert torch.equal(state, torch.get_rng_state())


# ---- surrogate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moments", "function"), [(_rectified, torch.relu), (_squashed, torch.sigmoid)])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.0, 0.5), (-0.7, 2.0)])
def test_moments_of_activations_beside_sampling(moments, function, mean: float, deviation: float) -> None:  # type: ignore[no-untyped-def]
    draws = function(mean + deviation * torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    first, second = moments(torch.tensor([mean]), torch.tensor([deviation**2]))
    assert float(first) == pytest.approx(float(draws.mean()), abs=0.02)
    assert float(second) == pytest.approx(float(draws.var()), abs=0.03)


def test_the_surrogate_learns_order_and_noise_and_is_frozen() -> None:
    """Half of the inputs are without noise; there the aleatoric variance is smaller."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator)
    noisy = (points[:, 2] > 0.5).float()
    targets = (0.2 + 0.6 * points[:, 0] + 0.8 * noisy * (torch.rand(200, generator=generator) - 0.5)).clamp(0, 1)
    surrogate = Heteroscedastic(points, targets, epochs=150, rate=1e-2, seed=0)
    mean, variance = surrogate.mean(points)
    assert float(torch.corrcoef(torch.stack([mean, points[:, 0]]))[0, 1]) > 0.9
    assert float(variance[noisy == 1].mean()) > 2 * float(variance[noisy == 0].mean())
    assert bool((surrogate.epistemic(points) >= 0).all())
    assert not mean.requires_grad and not surrogate.epistemic(points).requires_grad


# ---- input optimisation ---------------------------------------------------------------------------------


def test_gobi_stays_in_the_box_and_the_trust_region_and_finds_the_minimum() -> None:
    target = torch.tensor([0.3, 0.9, -0.5, 1.7])
    seen: list[torch.Tensor] = []

    def bound(points: torch.Tensor) -> torch.Tensor:
        seen.append(points.detach().clone())
        return (torch.tensor([1.0, 5.0, 2.0, 1.0]) * (points - target).square()).sum(dim=1)

    starts = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    points = gobi(bound, starts, steps=200, rate=0.5, trust=0.25, seed=0)
    assert torch.allclose(points, target.clamp(0, 1).expand(3, 4), atol=0.02)
    path = torch.stack(seen)
    assert float(path.min()) >= 0 and float(path.max()) <= 1
    assert float((path[1:] - path[:-1]).abs().max()) <= 0.25 + 1e-6
    assert len(seen) < 200


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
