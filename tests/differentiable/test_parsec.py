# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from candidate_networks import Candidates, gradients_of_steps, pair, table
from planted_tables import Planted
from sartor.differentiable.diagnostics import calls, saved_activations
from sartor.differentiable.importance import importance_weights, negative_evidence, weighted_gradients
from sartor.differentiable.parsec import PARSEC
from sartor.differentiable.penalties import add
from sartor.differentiable.relaxations import draws, log_probability, sample
from sartor.supernet import search_space


def parsec(count: int = 3, steps: int = 10, **options: object) -> PARSEC:
    net = Candidates(count)
    return PARSEC(net, search_space(net), steps=steps, **{"samples": 4, **options})  # type: ignore[arg-type]


LOGITS = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3]])
LIKELIHOODS = torch.tensor([[0.9, -0.5, 0.2], [-1.0, 0.6, 1.2], [0.1, 0.0, -0.7]])
"""log p(y | a) of the nine networks of two edges with three operations each."""


def exact_gradient() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    p = logits.softmax(1)
    evidence = (p[0].view(3, 1) * p[1].view(1, 3) * LIKELIHOODS.exp()).sum().log()
    return torch.autograd.grad(evidence, logits)[0]


def mean_gradient(samples: int, repeats: int = 600) -> Tensor:
    """Of many estimates, so that their bias is what is left."""
    generator, total = draws(0, samples), torch.zeros(2, 3)
    logits = LOGITS.clone().requires_grad_()
    places = torch.multinomial(LOGITS.softmax(1), repeats * samples, True, generator=generator)
    several = places.view(2, repeats, samples).permute(1, 2, 0)
    logs = logits.log_softmax(1)
    for one in several:
        found = logs[0, one[:, 0]] + logs[1, one[:, 1]]
        loss = negative_evidence(found, LIKELIHOODS[one[:, 0], one[:, 1]])
        total -= torch.autograd.grad(loss, logits, retain_graph=True)[0]
    return total / repeats


def test_the_gradient_comes_near_the_exact_one_as_samples_grow() -> None:
    exact = exact_gradient()
    errors = {samples: float((mean_gradient(samples) - exact).norm()) for samples in (4, 64)}
    assert errors[64] < errors[4] / 2


def test_all_architectures_as_samples_give_the_exact_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    pairs = list(itertools.product(range(3), repeat=2))
    logs = torch.stack([log_probability(logits, torch.tensor(one)) for one in pairs])
    found = torch.autograd.grad(-negative_evidence(logs, logs + LIKELIHOODS.flatten()), logits)[0]
    torch.testing.assert_close(found, exact_gradient(), atol=1e-6, rtol=0)


def test_the_weights_sum_to_one_and_ignore_a_constant() -> None:
    found = importance_weights(LIKELIHOODS.flatten())
    assert float(found.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(found, importance_weights(LIKELIHOODS.flatten() - 1000.0), atol=1e-5, rtol=0)


def test_the_gradient_of_the_log_probability_is_one_hot_minus_p() -> None:
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(log_probability(logits, torch.tensor([2, 0])), logits)
    wanted = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]) - LOGITS.softmax(1)
    torch.testing.assert_close(found, wanted)


def test_the_search_starts_from_the_uniform_distribution() -> None:
    assert float(parsec(5).alphas.entropy().detach()) == pytest.approx(2 * math.log(5))


def test_gradients_that_come_one_at_a_time_are_those_of_the_weighted_sum() -> None:
    x, unused = torch.tensor([1.0, -2.0], requires_grad=True), torch.zeros(1, requires_grad=True)
    losses = [(x * scale).square().sum() for scale in (1.0, 3.0, 0.5, 2.0)]
    logs = torch.tensor([-1.0, 300.0, 299.0, 301.0])
    found, value = weighted_gradients(zip(logs, losses, strict=True), [x, unused])
    again = [(x * scale).square().sum() for scale in (1.0, 3.0, 0.5, 2.0)]
    total = (logs.softmax(0) * torch.stack(again)).sum()
    assert found[0] is not None
    torch.testing.assert_close(found[0], torch.autograd.grad(total, x)[0])
    torch.testing.assert_close(value, total.detach())
    assert found[1] is None


def test_no_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        weighted_gradients([], [torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match="1 samples"):
        parsec(samples=1)


def test_the_mode_is_near_the_best_of_a_table_with_interactions() -> None:
    ranks = [planted_search(seed) for seed in range(4)]
    assert sum(rank == 0 for rank in ranks) >= 3
    assert max(ranks) < 16  # of 15,625


def planted_search(seed: int) -> int:
    """The rank of the mode after 300 steps of 16 samples."""
    planted = Planted(seed)
    logits = torch.zeros(6, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(300):
        generator = draws(seed, step)
        several = torch.multinomial(logits.detach().softmax(1), 16, True, generator=generator).T
        logs = logits.log_softmax(1)[torch.arange(6), several].sum(1)
        optimizer.zero_grad()
        negative_evidence(logs, planted.scores(several)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return planted.rank(logits.detach().argmax(1))


def test_memory_does_not_grow_with_the_number_of_operations() -> None:
    few, many = (saved_activations(partial(parsec(count).step, pair(0))) for count in (2, 8))
    assert abs(many - few) < 0.005 * few


def test_the_samples_graphs_do_not_add_up() -> None:
    """While a sample runs, nothing of the one before it is kept."""
    learner = parsec(samples=6)
    alive: list[int] = []
    living = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal living
            self.tensor = tensor
            living += 1

        def __del__(self) -> None:
            nonlocal living
            living -= 1

    learner.net.register_forward_pre_hook(lambda *_: alive.append(living))
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        learner.step(pair(0))
    assert max(alive[:6]) <= 8  # the loss of the sample before: its labels and log-softmax


def test_operations_of_no_sample_have_no_gradient_and_stay() -> None:
    learner = parsec(count=8, samples=2)
    seen = gradients_of_steps(learner)
    before = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.step(pair(0))
    assert not all(seen[0].values())
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) != seen[0][name], name


def test_each_sample_runs_one_operation_of_each_choice() -> None:
    learner = parsec(count=5, samples=3)
    counted = calls(learner.net, lambda: learner.step(pair(0)))
    assert counted["stem.0"] == 2 * 3
    assert sum(times for name, times in counted.items() if name.endswith(".1") and "op" in name) == 2 * 2 * 3


def test_the_distribution_waits_for_the_warm_up() -> None:
    learner = parsec(steps=10, warm_up=0.2)
    for step in range(2):
        learner.step(pair(step))
    assert not learner.alphas.table.any()
    learner.step(pair(2))
    assert learner.alphas.table.any()


def test_a_cost_moves_the_distribution_to_the_cheap() -> None:
    net = Candidates()
    cost = table(net, [9.0, 0.0, 9.0])
    learner = PARSEC(net, search_space(net), steps=30, cost=cost, penalty=add(1.0), samples=4)
    for group in learner.descent.alpha_optimizer.param_groups:
        group["lr"] = 0.2
    for step in range(30):
        learner.step(pair(step, 8))
    assert set(learner.architecture().values()) == {"op1"}


def test_samples_follow_the_distribution() -> None:
    drawn = torch.stack([sample(LOGITS, draws(0, step)) for step in range(3000)])
    for row, p in enumerate(LOGITS.softmax(1)):
        counts = torch.bincount(drawn[:, row], minlength=3)
        assert float(((counts - 3000 * p) ** 2 / (3000 * p)).sum()) < 13.82
