# SPDX-License-Identifier: Apache-2.0
"""The controller of NASNet: policies, gradients, PPO, and the curve on NAS-Bench-201."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.strategy_contract import ERROR, GATED, OBJECTIVES, TOY, StrategyContract, error, even
from curves import differs, incumbents
from sartor.architecture import Architecture
from sartor.objective import Objective
from sartor.protocols import Stateful, Strategy
from sartor.space import SearchSpace
from sartor.strategies._policy import Policy, sampled, scored, tokens
from sartor.strategies.nasnet_controller import (
    PPO,
    FactorisedPolicy,
    LSTMPolicy,
    NASNetController,
    Reinforce,
    mnasnet_reward,
)
from sartor.trial import Candidate, Trial


def quick_ppo(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """A small network, and batches that are full within a short test."""
    return NASNetController(space, objectives, policy=small, update=PPO(learning_rate=1e-2, batch=10))


def quick_reinforce(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """Factorised logits at a rate at which 300 trials show."""
    update = Reinforce(learning_rate=5e-2, decay=0.9)
    return NASNetController(space, objectives, policy=FactorisedPolicy, update=update)


def small(space: SearchSpace) -> LSTMPolicy:
    return LSTMPolicy(space, hidden=16)


class TestNASNetController(StrategyContract):
    make = staticmethod(quick_reinforce)


POLICIES: list[Callable[[SearchSpace], Policy]] = [LSTMPolicy, FactorisedPolicy]
UNEVEN = SearchSpace({"a": (0, 1), "b": (0, 1, 2), "c": ("only",), "d": (True, False)})


def spread_out(make: Callable[..., Policy], space: SearchSpace) -> Policy:
    """A policy far from uniform."""
    return make(space, spread=1.0, seed=3)


@pytest.mark.parametrize("make", POLICIES)
@pytest.mark.parametrize("space", [UNEVEN, GATED])
def test_the_probabilities_of_all_architectures_add_up_to_1(
    make: Callable[[SearchSpace], Policy], space: SearchSpace
) -> None:
    policy = spread_out(make, space)
    everyone = {
        space.canonical(dict(zip(space.choices, o, strict=True))) for o in itertools.product(*space.choices.values())
    }
    assert len(everyone) == len(space)
    with torch.no_grad():
        log_p, entropy = scored(policy, *tokens(space, [*everyone]))
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    # The expected entropy of the decisions is the entropy of the whole (chain rule).
    assert float((log_p.exp() * entropy).sum()) == pytest.approx(float(-(log_p.exp() * log_p).sum()), rel=1e-4)


@pytest.mark.parametrize("make", POLICIES)
def test_draws_have_the_frequencies_that_the_scores_say(make: Callable[[SearchSpace], Policy]) -> None:
    policy = spread_out(make, GATED)
    rng = random.Random(0)
    drawn = [sampled(GATED, policy, rng) for _ in range(500)]
    assert all(arch in GATED for arch in drawn)
    kinds = sorted({*drawn}, key=Architecture.to_json)
    expected = scored(policy, *tokens(GATED, kinds))[0].detach().exp().tolist()
    for arch, chance in zip(kinds, expected, strict=True):
        assert drawn.count(arch) / 500 == pytest.approx(chance, abs=4 * math.sqrt(chance / 500) + 1e-3)


def test_the_gradient_of_a_policy_with_two_arms_is_the_analytic_one() -> None:
    """grad log pi(0) (R - b) = (R - b) (1 - p, -p') for logits (l, l')."""
    space = SearchSpace({"x": (0, 1)})
    policy = FactorisedPolicy(space, spread=1.0)
    p = policy.logits.detach().softmax(1)[0]
    log_p, _ = scored(policy, *tokens(space, [Architecture({"x": 0})]))
    Reinforce().gain(log_p, log_p.detach(), torch.tensor([2.5])).sum().backward()  # type: ignore[no-untyped-call]
    assert policy.logits.grad is not None
    torch.testing.assert_close(policy.logits.grad[0], 2.5 * torch.stack([1 - p[0], -p[1]]))


def test_the_clipped_surrogate_pays_for_no_more_than_20_percent() -> None:
    """Schulman et al. 2017, equation 7: ratios 0.5, 1 and 1.5, each with advantage 1 and -1."""
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5])
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    log_p = ratio.log().requires_grad_()
    gain = PPO().gain(log_p, torch.zeros(6), advantage)
    torch.testing.assert_close(gain, torch.tensor([0.5, 1.0, 1.2, -0.8, -1.0, -1.5]))
    gain.sum().backward()  # type: ignore[no-untyped-call]
    assert log_p.grad is not None
    assert log_p.grad.eq(0).tolist() == [False, False, True, True, False, False]


def test_the_papers_numbers_are_the_defaults() -> None:
    policy = LSTMPolicy(TOY)
    assert policy.lstm.hidden_size == 100
    assert max(float(one.detach().abs().max()) for one in policy.parameters()) == pytest.approx(0.1, abs=1e-3)
    assert (PPO().learning_rate, PPO().batch, PPO().entropy) == (3.5e-4, 20, 1e-5)
    assert (Reinforce().learning_rate, Reinforce().decay) == (6e-4, 0.95)


def test_the_baseline_has_no_bias_towards_0() -> None:
    """Rewards 2, 4: the baseline after them is (0.95 * 2 + 4) / 1.95, and the first advantage is 0."""
    strategy = NASNetController(TOY, [Objective("r", error, goal="max")])
    rng = random.Random(0)
    for number, reward in enumerate((2.0, 4.0)):
        strategy.tell(Trial(number, TOY.sample(rng), {"r": reward}, state="done"))
    total, weight = strategy._baseline
    assert total / weight == pytest.approx((0.95 * 2 + 4) / 1.95)
    assert [advantage for _, advantage in strategy._batch] == [0.0, 2.0]


def test_failures_earn_the_lowest_reward_and_nothing_is_learnt_before_a_success() -> None:
    strategy = NASNetController(TOY, ERROR)
    rng = random.Random(0)
    for number, value in enumerate([None, 3.0, 7.0, None]):
        values = {} if value is None else {"error": value}
        strategy.tell(Trial(number, TOY.sample(rng), values, state="done" if values else "failed"))
    baseline = (0.95 * -3 - 7) / 1.95
    assert [advantage for _, advantage in strategy._batch] == pytest.approx([0.0, -4.0, -7 - baseline])


def test_the_reward_of_mnasnet() -> None:
    reward = mnasnet_reward("accuracy", "ms", target=80.0)
    done = Trial(0, TOY.smallest(), {"accuracy": 75.0, "ms": 160.0}, state="done")
    assert reward(done) == pytest.approx(75.0 * 2**-0.07)
    assert math.isnan(reward(Trial(0, TOY.smallest(), {"accuracy": 75.0}, state="done")))
    strategy = NASNetController(TOY, OBJECTIVES, reward=reward)
    strategy.tell(done)
    assert strategy._lowest == reward(done)


@pytest.mark.parametrize("make", [quick_ppo, quick_reinforce])
def test_what_is_saved_goes_on_as_if_it_had_not_been(make: Callable[..., Strategy]) -> None:
    one, other = make(TOY, ERROR), make(TOY, ERROR)
    assert isinstance(one, Stateful) and isinstance(other, Stateful)
    for number in range(60):
        if number == 33:
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        arch = Candidate.of(one.ask(random.Random(number))).arch
        for strategy in (one, other) if number >= 33 else (one,):
            assert strategy.ask(random.Random(number)) == arch
            strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))


@pytest.mark.parametrize(
    "update", [PPO(learning_rate=0.0), PPO(batch=0), Reinforce(decay=1.0), Reinforce(entropy=-1.0)]
)
def test_wrong_arguments(update: PPO | Reinforce) -> None:
    with pytest.raises(ValueError, match=r"a learning rate above 0|decay is"):
        NASNetController(TOY, ERROR, update=update)


@pytest.mark.parametrize("space", [GATED, SearchSpace(TOY.choices, {}, even), SearchSpace({"op": ("only",)})])
def test_the_lstm_stays_in_the_space_and_learns_from_whatever_is_told(space: SearchSpace) -> None:
    strategy = quick_ppo(space, ERROR)
    for number in range(25):
        arch = Candidate.of(strategy.ask(random.Random(number))).arch
        assert arch in space
        strategy.tell(Trial(number, arch, {"error": error(arch)}, state="done"))


PAIR = SearchSpace({"first": (0, 1, 2, 3), "second": (0, 1, 2, 3)})


def conditional(policy: Policy) -> Tensor:
    """Return the mean chance, over what `first` is, that `second` is f(first), f a permutation."""
    archs = [Architecture({"first": i, "second": (3 * i + 1) % 4}) for i in range(4)]
    chosen, _ = tokens(PAIR, archs)
    logits, _ = policy(torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :1]], dim=1))
    return logits.softmax(2)[:, 1].gather(1, chosen[:, 1:]).mean()


def test_only_the_recurrent_policy_can_make_a_decision_depend_on_another() -> None:
    """Exact ascent on the chance of second = f(first): without recurrence 1/4 for all weights, with it 1."""
    reached = []
    for policy in (LSTMPolicy(PAIR, hidden=32), FactorisedPolicy(PAIR, spread=1.0)):
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            (-conditional(policy)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reached.append(float(conditional(policy).detach()))
    assert reached[0] > 0.99 and reached[1] == pytest.approx(0.25)


def matches(strategy: Strategy, space: SearchSpace, hidden: Sequence[int], samples: int) -> int | None:
    """Return after how many samples the hidden architecture was drawn."""
    for number in range(samples):
        arch = strategy.ask(random.Random(number))
        assert isinstance(arch, Architecture)
        share = float(np.mean([option == right for option, right in zip(arch.values(), hidden, strict=True)]))
        if share == 1:
            return number + 1
        strategy.tell(Trial(number, arch, {"match": share}, state="done"))
    return None


@pytest.mark.slow
@pytest.mark.parametrize("update", [Reinforce(learning_rate=1e-2), PPO(learning_rate=1e-3)])
def test_the_lstm_finds_ten_hidden_tokens_of_four_within_2000_samples(update: PPO | Reinforce) -> None:
    space = SearchSpace({f"t{i}": (0, 1, 2, 3) for i in range(10)})
    hidden = random.Random(0).choices(range(4), k=10)
    strategy = NASNetController(space, [Objective("match", len, goal="max")], update=update)
    assert matches(strategy, space, hidden, 2000)


def tabular(space: SearchSpace, objectives: Sequence[Objective]) -> Strategy:
    """The REINFORCE of NAS-Bench-201: a matrix of 6 x 5 logits."""
    update = Reinforce(learning_rate=0.01, decay=0.9)
    return NASNetController(space, objectives, policy=FactorisedPolicy, update=update)


@pytest.mark.slow
def test_nasbench201() -> None:
    """100 seeds: the published curve within two standard errors of the difference (2.5 with Holm's correction)."""
    found = incumbents(tabular, seeds=100, at=(50, 100, 200, 400))
    assert max(map(abs, differs(found, (93.58, 93.82, 93.95, 94.11), (0.55, 0.41, 0.26, 0.23), 100))) < 2.5
