# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from candidate_networks import Candidates, gradients_of_steps, pair, table
from sartor.differentiable.descent import logits_of
from sartor.differentiable.diagnostics import calls, saved_activations
from sartor.differentiable.mixers import gated, mixed
from sartor.differentiable.penalties import add, mul_log_ratio, reward_exponent
from sartor.differentiable.proxylessnas import RECIPE, ProxylessNAS
from sartor.differentiable.relaxations import log_probability, one_hot
from sartor.nn import OneOf
from sartor.supernet import activated, search_space

MODES = ("full", "two", "reinforce")


def proxyless(mode: str = "full", count: int = 3, steps: int = 16, **options: Any) -> ProxylessNAS:
    """A search that is past its warm-up and takes an architecture step at each step."""
    net = Candidates(count)
    options = {"epochs": 15, "warm_up": 0, "every": 1, "samples": 3} | options
    learner = ProxylessNAS(net, search_space(net), steps=steps, mode=mode, **options)  # type: ignore[arg-type]
    learner.descent.done = 2
    return learner


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value * x


ALPHA = torch.tensor([[0.3, -0.2, 0.1]])
OUTPUTS = (1.0, 2.0, -0.5)


def toy_gradients() -> tuple[Tensor, Tensor]:
    """The mean gate and REINFORCE gradients of (y - 1.7)^2 over all draws, by the code that a search runs."""
    net = OneOf({f"op{i}": Constant(value) for i, value in enumerate(OUTPUTS)}, name="op")
    alpha = ALPHA.clone().requires_grad_()
    gate, score = torch.zeros(3), torch.zeros(3)
    for place, chance in enumerate(ALPHA.softmax(1)[0]):
        p = alpha.softmax(1)
        gates = one_hot(torch.tensor([place]), p) + (p - p.detach())
        with activated(net, mixed({"op": gates[0]}, gated)):
            loss = ((net(torch.ones(1)) - 1.7) ** 2).sum()
            gate += chance * torch.autograd.grad(loss, alpha)[0][0]
        surrogate = float(loss.detach()) * log_probability(alpha, torch.tensor([place]))
        score += chance * torch.autograd.grad(surrogate, alpha)[0][0]
    return gate, score


def test_the_mean_gate_gradient_is_that_of_the_loss_of_the_mean_output() -> None:
    alpha = ALPHA.clone().requires_grad_()
    mean = (alpha.softmax(1)[0] * torch.tensor(OUTPUTS)).sum()
    (exact,) = torch.autograd.grad((mean - 1.7) ** 2, alpha)
    found, _ = toy_gradients()
    torch.testing.assert_close(found, exact[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found, torch.tensor([-0.202, -0.601, 0.803]), atol=6e-4, rtol=0)


def test_the_mean_reinforce_gradient_is_that_of_the_mean_loss_and_another_one() -> None:
    gate, found = toy_gradients()
    torch.testing.assert_close(found, torch.tensor([-0.5643, -0.4423, 1.0065]), atol=1e-4, rtol=0)
    assert float((gate - found).abs().max()) > 0.15


@pytest.mark.parametrize("mode", MODES)
def test_memory_does_not_grow_with_the_number_of_paths(mode: str) -> None:
    few, many = (saved_activations(partial(proxyless(mode, count).step, pair(0))) for count in (2, 8))
    assert abs(many - few) < 0.005 * few  # rows of logits


@pytest.mark.parametrize("mode", MODES)
def test_paths_that_are_off_have_no_gradient_and_stay(mode: str) -> None:
    learner = proxyless(mode)
    seen = gradients_of_steps(learner)
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.step(pair(0))
    paths = {tuple(name.split(".")[:2]) for name in seen[0] if name.startswith(("first", "second")) and seen[0][name]}
    assert len(paths) == 2
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) != seen[0][name], name


def test_two_path_mode_leaves_all_other_paths_alone() -> None:
    learner = proxyless("two", count=6, cost=None)
    for group in learner.descent.alpha_optimizer.param_groups:
        group["lr"] = 0.1
    for step in range(5):
        logits, p = learner.alphas.table.detach().clone(), learner.alphas.probabilities()
        learner.step(pair(step))
        moved = (learner.alphas.table.detach() - logits).abs() > 1e-6
        assert moved.sum(1).tolist() == [2, 2]
        others = ~moved
        torch.testing.assert_close(learner.alphas.table.detach()[others], logits[others], atol=1e-6, rtol=0)
        torch.testing.assert_close(learner.alphas.probabilities()[others], p[others], atol=1e-6, rtol=0)


def test_two_path_mode_runs_two_paths_of_each_choice() -> None:
    learner = proxyless("two", count=6)
    validation = pair(0)[1]
    counted = calls(learner.net, lambda: learner.two_step(validation))
    assert sum(times for name, times in counted.items() if name.endswith(".1") and "op" in name) == 2 * 2
    counted = calls(learner.net, lambda: learner.full_step(validation))
    assert sum(times for name, times in counted.items() if name.endswith(".1") and "op" in name) == 2 * 6


@pytest.mark.parametrize("mode", ["full", "two"])
def test_options_that_are_not_allowed_never_run(mode: str) -> None:
    net = Candidates(4)
    space = search_space(net).restrict(first="op2", second=("op0", "op3"))
    learner = ProxylessNAS(net, space, steps=4, mode=mode, warm_up=0, epochs=4, every=1)  # type: ignore[arg-type]
    learner.descent.done = 1
    counted = calls(net, lambda: [learner.step(pair(step)) for step in range(3)])
    ran = {".".join(name.split(".")[:2]) for name in counted if ".op" in name}
    assert ran <= {"first.op2", "second.op0", "second.op3"}
    assert learner.architecture()["first"] == "op2"
    assert bool(learner.alphas.table.isfinite().all())


def test_expected_latency_has_the_gradient_of_finite_differences_and_is_the_table_when_one_hot() -> None:
    learner = proxyless()
    learner.alphas.double()
    cost = table(learner.net, [5.0, 1.0, 3.0])

    def expected() -> Tensor:
        return cost(learner.alphas.assignment(learner.alphas.logits.softmax(1)))

    (found,) = torch.autograd.grad(expected(), learner.alphas.table)
    with torch.no_grad():
        learner.alphas.table[0, 1] += 1e-5
        high = float(expected())
        learner.alphas.table[0, 1] -= 2e-5
        low = float(expected())
        assert float(found[0, 1]) == pytest.approx((high - low) / 2e-5, rel=1e-6)
        weights = one_hot(torch.tensor([2, 0]), learner.alphas.table)
        assert float(cost(learner.alphas.assignment(weights))) == 10.0 + 3.0 + 5.0


class WithZero(nn.Module):
    """(N, 1, r, r) -> (N, 4): a residual whose branch may be nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = OneOf({"zero": Constant(0.0), "conv": nn.Conv2d(1, 1, 3, padding=1)}, name="op")
        self.head = nn.Linear(1, 4)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head((images + self.branch(images)).mean((2, 3)))
        return found


@pytest.mark.parametrize("mode", ["full", "two"])
def test_the_gradient_of_the_cost_is_kept_when_the_zero_operation_is_on(mode: str) -> None:
    net = WithZero()
    cost = table(net, [0.0, 50.0])
    learner = ProxylessNAS(net, search_space(net), steps=9, mode=mode, cost=cost, penalty=add(1.0), warm_up=0)  # type: ignore[arg-type]
    with torch.no_grad():
        learner.alphas.table.copy_(torch.tensor([[4.0, -4.0]]))  # zero is drawn
    seen: list[Tensor] = []
    learner.descent.step_architecture = lambda gradients: seen.extend(gradients)  # type: ignore[method-assign, arg-type]
    learner.architecture_step(pair(0)[1])
    p = learner.alphas.probabilities()[0]
    wanted = 50.0 * float(p[0] * p[1])  # d(50 p1) / d alpha_1
    assert float(seen[0][0, 1]) == pytest.approx(wanted, rel=0.2)


def test_the_reward_of_a_network_counts_its_latency() -> None:
    net = Candidates()
    cost = table(net, [5.0, 1.0, 3.0], base=70.0)
    learner = ProxylessNAS(
        net, search_space(net), steps=9, mode="reinforce", cost=cost, penalty=reward_exponent(160.0, 0.1)
    )
    learner.reward = lambda *_: torch.tensor(0.5)
    reward = learner.reward_of(torch.tensor([0, 0]), pair(0)[1])
    assert reward == pytest.approx(0.5 * 2.0**0.1)


def test_the_baseline_of_reinforce_is_of_the_steps_before() -> None:
    learner = proxyless("reinforce")
    learner.step(pair(0))
    first = learner.baseline
    assert first is not None
    learner.reward = lambda *_: torch.tensor(1.0)
    learner.step(pair(1))
    assert learner.baseline == pytest.approx(first + 0.99 * (1.0 - first))
    again = proxyless("reinforce")
    again.load_state_dict(learner.state_dict())
    assert again.baseline == learner.baseline


def test_warm_up_and_first_epoch_train_the_weights_alone() -> None:
    net = Candidates()
    learner = ProxylessNAS(net, search_space(net), steps=1600)
    searching = []
    for done in range(1600):
        learner.descent.done = done
        searching.append(learner.searches)
    assert not any(searching[:410])
    assert [done for done, one in enumerate(searching) if one][:3] == [410, 415, 420]
    assert learner.learning_rate(0, 1600) == 0.05
    assert learner.learning_rate(399, 1600) < 1e-5
    assert learner.learning_rate(400, 1600) == 0.025
    assert learner.learning_rate(1600, 1600) == pytest.approx(0.0)


def test_the_first_moment_of_adam_is_off() -> None:
    assert RECIPE.alpha_betas[0] == 0.0
    assert RECIPE.alpha_weight_decay == 0.0


def test_a_choice_inside_an_operation_is_the_same_when_its_path_is_recomputed() -> None:
    inner = OneOf({"less": Constant(0.5), "more": Constant(2.0)}, name="inner")
    net = OneOf({"one": Constant(1.0), "nested": inner}, name="outer")
    weights = torch.tensor([1.0, 0.0], requires_grad=True)
    assignment = mixed({"outer": weights}, gated) | {"inner": "less"}
    with activated(net, assignment):
        (found,) = torch.autograd.grad(logits_of(net, assignment, torch.ones(1, 1, 1, 1)).sum(), weights)
    assert found.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("mode", MODES)
def test_two_devices_with_opposite_costs_get_a_network_each_that_is_faster_there(mode: str) -> None:
    tables, found = [], []
    for adds in ([2.0, 20.0, 200.0], [200.0, 20.0, 2.0]):
        net = Candidates()
        tables.append(cost := table(net, adds, base=2.0))
        recipe = type(RECIPE)(lr=0.02, alpha_lr=0.3, alpha_betas=(0.0, 0.999), alpha_weight_decay=0.0)
        penalty: Any = reward_exponent(40.0, 1.0) if mode == "reinforce" else mul_log_ratio(40.0)
        learner = ProxylessNAS(
            net,
            search_space(net),
            steps=40,
            cost=cost,
            penalty=penalty,
            recipe=recipe,
            mode=mode,  # type: ignore[arg-type]
            epochs=19,
            warm_up=1,
            every=1,
            samples=4,
        )
        for step in range(40):
            told = learner.step(pair(step, 8))
        assert math.isfinite(told["cost"])
        found.append(learner.architecture())
    assert float(tables[0](found[0])) < float(tables[0](found[1]))
    assert float(tables[1](found[1])) < float(tables[1](found[0]))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'all': it is one of full, two, reinforce"):
        proxyless("all")


def test_a_penalty_of_losses_is_no_reward() -> None:
    net = Candidates()
    cost = table(net, [5.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="would be maximised with the reward"):
        ProxylessNAS(net, search_space(net), steps=9, mode="reinforce", cost=cost)


@pytest.mark.parametrize("counts", [{"every": 0}, {"samples": 0}, {"epochs": 0}, {"warm_up": -1}])
def test_counts_that_leave_nothing_to_do_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="warm_up can be 0, and each other is at least 1"):
        proxyless(**counts)
