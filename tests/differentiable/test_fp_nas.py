# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from candidate_networks import Candidates, gradients_of_steps, pair, table
from planted_tables import CHOICES, OPTIONS, Planted
from sartor.architecture import Architecture
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.diagnostics import saved_activations
from sartor.differentiable.fp_nas import FPNAS, adaptive_samples
from sartor.differentiable.fp_nas_layers import CoarseToFine, layers_by_name
from sartor.differentiable.importance import importance_weights, negative_evidence
from sartor.differentiable.penalties import hinge
from sartor.differentiable.relaxations import draws
from sartor.supernet import search_space
from toy_supernet import ToyNet

LAYERS = [["blocks.0.hidden", "blocks.0.kernel"], ["width", "resolution", "mix.choice"]]


def fpnas(count: int = 3, steps: int = 10, **options: Any) -> FPNAS:
    net = Candidates(count)
    return FPNAS(net, search_space(net), steps=steps, **options)


def distribution(layers: list[list[str]] | None = None) -> CoarseToFine:
    net = ToyNet()
    alphas = Alphas(net, search_space(net).restrict({"blocks.0.hidden": (4, 12)}), scale=1.0)
    return CoarseToFine(alphas, LAYERS if layers is None else layers)


def everything(found: CoarseToFine) -> list[Tensor]:
    rows = [row.nonzero()[:, 0].tolist() for row in found.coarse.allowed]
    return [torch.tensor(one) for one in itertools.product(*rows)]


def test_the_joint_distribution_starts_as_the_independent_one() -> None:
    found = distribution()
    several = everything(found)[::97]
    with torch.no_grad():
        before = torch.stack([found.log_probability(one) for one in several])
        entropy, mode, chances = found.entropy(), found.mode(), found.probabilities()
        found.join()
        after = torch.stack([found.log_probability(one) for one in several])
        torch.testing.assert_close(after.exp(), before.exp(), atol=1e-7, rtol=0)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.entropy(), entropy)
        torch.testing.assert_close(found.probabilities(), chances)
    assert torch.equal(found.mode(), mode)
    assert found.logits.shape[0] == 2 + len(found.coarse.options) - 5


@pytest.mark.parametrize("joined", [False, True])
def test_probabilities_sum_to_one_and_draws_are_allowed(joined: bool) -> None:
    found = distribution()
    if joined:
        found.join()
        with torch.no_grad():
            found.fine.add_(torch.randn(found.fine.shape, generator=draws(0, 0)))
    with torch.no_grad():
        assert float(found.logits.softmax(1).sum()) == pytest.approx(len(found.logits), rel=1e-6)
    allowed = found.coarse.allowed
    for step in range(50):
        one = found.sample(draws(0, step))
        assert bool(allowed.gather(1, one.view(-1, 1)).all())
        assert math.isfinite(float(found.log_probability(one).detach()))
    torch.testing.assert_close(found.probabilities().sum(1), torch.ones(len(allowed)))


def test_entropy_adds_up_over_layers() -> None:
    found = distribution()
    found.join()
    with torch.no_grad():
        found.fine.add_(torch.randn(found.fine.shape, generator=draws(0, 0)))
        p = found.logits.softmax(1)
        alone = [-(row[row > 0] * row[row > 0].log()).sum() for row in p]
        torch.testing.assert_close(found.entropy(), torch.stack(alone).sum())


def test_a_joint_layer_can_learn_what_an_independent_one_cannot() -> None:
    found = distribution()
    found.join()
    names = list(found.coarse.options)
    row = found.layers.index(LAYERS[0])
    with torch.no_grad():
        found.fine[row] = -9.0
        for hidden, kernel in ((0, 1), (2, 0)):
            fits = found.places[names.index(LAYERS[0][0]), row] == hidden
            found.fine[row, fits & (found.places[names.index(LAYERS[0][1]), row] == kernel)] = 0.0
        seen = {tuple(found.sample(draws(0, step))[[names.index(n) for n in LAYERS[0]]].tolist()) for step in range(60)}
    assert seen == {(0, 1), (2, 0)}


def test_layers_are_modules_unless_given() -> None:
    names = ["blocks.0.hidden", "blocks.0.kernel", "blocks.1.hidden", "slot_0", "slot_1"]
    assert layers_by_name(names) == [names[:2], [names[2]], ["slot_0"], ["slot_1"]]


@pytest.mark.parametrize("layers", [[["nothing"]], [["width"], ["width", "resolution"]]])
def test_wrong_layers_are_told(layers: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="is no choice, or in two layers"):
        distribution(layers)


def test_independent_logits_are_fewer_than_joint_ones() -> None:
    found = distribution([list(distribution().coarse.options)[:6]])
    assert found.fine.shape[1] > 3 * found.coarse.table.numel()


def test_the_number_of_samples_falls_with_the_entropy() -> None:
    counts = [adaptive_samples(entropy, 0.25, 2) for entropy in (80.0, 40.0, 20.0, 10.0, 2.0, 0.0)]
    assert counts == [20, 10, 5, 2, 2, 2]
    with pytest.raises(ValueError, match="1 samples"):
        fpnas(least=1)


def test_a_step_draws_what_its_entropy_asks_for() -> None:
    learner = fpnas(per_nat=3.0, steps=10)
    told = learner.step(pair(0))
    assert told["samples"] == round(3.0 * 2 * math.log(3))
    with torch.no_grad():
        learner.alphas.table[:, 0] = 3.0
    assert learner.step(pair(1))["samples"] < told["samples"]


def adaptive_search(seed: int, fixed: int | None, per_nat: float = 1.6) -> tuple[int, float]:
    """Samples used and the regret of the mode, after 300 steps on a table."""
    planted, used = Planted(seed), 0
    logits = torch.zeros(CHOICES, OPTIONS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(300):
        p = logits.detach().softmax(1)
        count = fixed or adaptive_samples(float(torch.special.entr(p).sum()), per_nat, 2)
        several = torch.multinomial(p, count, True, generator=draws(seed, step)).T
        used += count
        logs = logits.log_softmax(1)[torch.arange(CHOICES), several].sum(1)
        optimizer.zero_grad()
        negative_evidence(logs, planted.scores(several)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return used, planted.regret(logits.detach().argmax(1))


def test_half_of_the_samples_and_more_are_spared() -> None:
    assert adaptive_search(0, None, per_nat=3.0)[0] <= 0.5 * 16 * 300


@pytest.mark.slow
def test_the_samples_are_spared_at_no_clear_loss() -> None:
    fixed, adaptive = ([adaptive_search(seed, count, per_nat=3.0) for seed in range(10)] for count in (16, None))
    assert sum(n for n, _ in adaptive) <= 0.5 * sum(n for n, _ in fixed)
    several = [torch.tensor([regret for _, regret in found]) for found in (fixed, adaptive)]
    error = math.sqrt(sum(float(one.var()) / len(one) for one in several))
    assert float(several[1].mean() - several[0].mean()) < error


def test_without_a_cost_the_weights_are_those_of_parsec() -> None:
    logs, costs = torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([80.0, 300.0, 100.0])
    learner = fpnas(cost=lambda arch: 1.0, penalty=hinge(0.0, 100.0))
    torch.testing.assert_close(importance_weights(learner.log_weights(logs, costs)), importance_weights(logs))
    learner = fpnas(cost=lambda arch: 1.0, penalty=hinge(2.0, 100.0))
    torch.testing.assert_close(learner.log_weights(logs, costs), torch.tensor([-1.0, -7.0, -2.0]))


def test_the_weights_of_a_network_over_the_target_count_less_as_in_the_distribution() -> None:
    learner = fpnas(cost=lambda arch: 9.0 if arch["first"] == "op0" else 1.0, penalty=hinge(100.0, 1.0))
    several = [torch.tensor([0, 0]), torch.tensor([1, 0])]
    learner.drawn = lambda purpose, count: several  # type: ignore[method-assign]
    (dear, _), (cheap, loss) = learner.losses(pair(0)[0], 2)
    assert float(cheap) == pytest.approx(-float(loss.detach()) / learner.temperature)
    assert float(importance_weights(torch.stack([dear, cheap]))[0]) < 1e-6


def test_the_cost_is_of_each_architecture_as_a_whole() -> None:
    def cost(arch: Architecture) -> float:
        return 5.0 if arch["first"] == arch["second"] else 1.0  # no sum over choices

    layers = [["first", "second"]]
    learner = fpnas(cost=cost, penalty=hinge(20.0, 2.0), steps=40, warm_up=0.0, per_nat=2.0, layers=layers)
    learner.descent.alpha_optimizer.param_groups[0]["lr"] = 0.2
    for step in range(40):
        told = learner.step(pair(step, 8))
    assert cost(learner.architecture()) == 1.0
    assert told["cost"] < 2.0


@pytest.mark.parametrize("target", [12.0, 14.0, 16.0])
def test_the_hinge_keeps_the_network_under_its_target(target: float) -> None:
    net = Candidates()
    cost = table(net, [0.0, 2.0, 6.0])
    learner = FPNAS(net, search_space(net), steps=40, cost=cost, penalty=hinge(20.0, target), warm_up=0.0, per_nat=2.0)
    learner.descent.alpha_optimizer.param_groups[0]["lr"] = 0.2
    for step in range(40):
        learner.step(pair(step, 8))
    assert float(cost(learner.architecture())) <= 1.05 * target


def test_the_distribution_waits_then_becomes_joint_at_half_of_the_steps() -> None:
    learner = fpnas(steps=10, layers=[["first", "second"]])
    learner.step(pair(0))
    assert not learner.alphas.table.any()
    for step in range(1, 5):
        learner.step(pair(step))
    assert learner.alphas.table.any()
    assert not learner.distribution.joined
    learner.step(pair(5))
    assert bool(learner.distribution.joined)
    before = learner.alphas.table.detach().clone()
    learner.step(pair(6))
    assert torch.equal(before, learner.alphas.table)


def test_resume_behind_the_switch_is_exact() -> None:
    one, two = (fpnas(steps=8, layers=[["first", "second"]]) for _ in range(2))
    for step in range(6):
        one.step(pair(step))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert bool(two.distribution.joined)
    assert one.step(pair(6)) == two.step(pair(6))
    assert one.architecture() == two.architecture()


def test_memory_does_not_grow_with_the_number_of_operations() -> None:
    few, many = (saved_activations(partial(fpnas(count, per_nat=0.0, least=3).step, pair(0))) for count in (2, 8))
    assert abs(many - few) < 0.005 * few


def test_operations_of_no_sample_have_no_gradient() -> None:
    learner = fpnas(count=8, per_nat=0.0)
    seen = gradients_of_steps(learner)
    learner.step(pair(0))
    assert {tuple(name.split(".")[:2]) for name, has in seen[0].items() if not has and ".op" in name}
