# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from candidate_networks import WIDTH, Candidates, gradients_of_steps, table
from sartor.differentiable.diagnostics import calls, saved_activations
from sartor.differentiable.fbnetv5 import FBNetV5, Head
from sartor.differentiable.fbnetv5_mixture import importance, mixture_log_probability, mixture_sample, surrogate
from sartor.differentiable.penalties import add
from sartor.differentiable.relaxations import draws, log_probability
from sartor.supernet import search_space
from toy_supernet import CLASSES, toy_batch

LOGITS = torch.tensor([[[0.5, -0.3, 0.1], [0.0, 1.0, -1.0]], [[-0.4, 0.2, 0.9], [0.3, 0.3, -0.2]]])
"""Of two tasks over two choices of three options."""
ALL = [torch.tensor(one) for one in itertools.product(range(3), repeat=2)]
LOSSES = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
"""By architecture and task."""


def proposal(uniform: float = 0.1) -> Tensor:
    return torch.stack([mixture_log_probability(LOGITS, one, uniform) for one in ALL]).exp()


def exact_gradient() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    rows = [[log_probability(logits[t], one).exp() for one in ALL] for t in range(2)]
    chances = torch.stack([torch.stack(row) for row in rows])
    return torch.autograd.grad((chances * LOSSES.T).sum(), logits)[0]


def gradient_of(place: int, baselines: Tensor) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    weights = importance(LOGITS, ALL[place], 0.1)
    return torch.autograd.grad(surrogate(logits, ALL[place], weights, LOSSES[place] - baselines), logits)[0]


def test_the_weighted_gradient_is_unbiased_with_any_baseline() -> None:
    for baselines in (torch.zeros(2), torch.tensor([0.7, -2.0])):
        each = torch.stack([gradient_of(place, baselines) for place in range(9)])
        mean = (proposal().view(9, 1, 1, 1) * each).sum(0)
        torch.testing.assert_close(mean, exact_gradient(), atol=1e-6, rtol=0)
        drawn = torch.multinomial(proposal(), 100_000, True, generator=draws(0, 0))
        counted = torch.bincount(drawn, minlength=9).view(9, 1, 1, 1) / 100_000
        torch.testing.assert_close((counted * each).sum(0), exact_gradient(), atol=0.02, rtol=0)


def test_probabilities_sum_to_one_and_the_mean_weight_is_one() -> None:
    assert float(proposal().sum()) == pytest.approx(1.0, abs=1e-6)
    for task in LOGITS:
        total = sum(float(log_probability(task, one).exp()) for one in ALL)
        assert total == pytest.approx(1.0, abs=1e-6)
    weights = torch.stack([importance(LOGITS, one, 0.1) for one in ALL])
    torch.testing.assert_close((proposal().view(9, 1) * weights).sum(0), torch.ones(2), atol=1e-6, rtol=0)
    assert float(weights.max()) <= 2 / 0.9 + 1e-6


def test_samples_follow_the_proposal() -> None:
    count = 4000
    drawn = torch.stack([mixture_sample(LOGITS, 0.1, draws(0, step)) for step in range(count)])
    counted = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    statistic = ((counted - count * proposal()) ** 2 / (count * proposal())).sum()
    assert float(statistic) < 26.12  # chi-square of 8 degrees of freedom, 0.1 %


def batch(step: int, names: list[str], size: int = 16) -> tuple[Tensor, dict[str, Tensor]]:
    images, labels = toy_batch(step, size)
    return images, dict.fromkeys(names, labels)


def search(tasks: int = 2, count: int = 3, steps: int = 10, **options: Any) -> FBNetV5:
    net = Candidates(count, head=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {f"task{i}": Head(nn.Linear(WIDTH, CLASSES)) for i in range(tasks)}
    return FBNetV5(net, search_space(net), heads, steps=steps, **options)


def pair_for(learner: FBNetV5, step: int = 0) -> Any:
    return batch(2 * step, list(learner.tasks)), batch(2 * step + 1, list(learner.tasks))


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_passes_through_the_supernet_do_not_grow_with_the_tasks(tasks: int) -> None:
    learner = search(tasks)
    backwards: list[int] = []
    weight: Any = learner.net.get_parameter("stem.0.weight")
    weight.register_hook(lambda gradient: backwards.append(1))
    counted = calls(learner.net, lambda: learner.step(pair_for(learner)))
    assert counted["stem.0"] == 2
    assert sum(times for name, times in counted.items() if name.endswith(".1") and ".op" in name) == 2 * 2
    assert len(backwards) == 1


def test_every_task_has_its_distribution_and_all_of_them_move() -> None:
    learner = search(2)
    before = [learner.of(name).table.detach().clone() for name in learner.tasks]
    assert not torch.equal(*before)
    for step in range(3):
        learner.step(pair_for(learner, step))
    for name, old in zip(learner.tasks, before, strict=True):
        assert not torch.equal(learner.of(name).table, old)


def test_no_gradient_of_the_weights_reaches_the_logits() -> None:
    learner = search()
    losses = learner.losses(learner.proposed("weights"), *pair_for(learner)[0])
    found = torch.autograd.grad(sum(losses.values()), learner.descent.alpha_parameters, allow_unused=True)  # type: ignore[arg-type]
    assert found == (None,) * len(found)


def test_heads_are_among_the_weights_and_what_is_off_stays() -> None:
    learner = search(count=5)
    seen = gradients_of_steps(learner)
    learner.step(pair_for(learner))
    with_gradient = {name for name, has in seen[0].items() if has}
    assert {"heads.task0.weight", "heads.task1.weight"} <= with_gradient
    assert len({tuple(name.split(".")[1:3]) for name in with_gradient if ".op" in name}) == 2


def test_memory_does_not_grow_with_the_number_of_operations() -> None:
    def saved(count: int) -> int:
        learner = search(count=count)
        return saved_activations(lambda: learner.step(pair_for(learner)))

    assert abs(saved(8) - saved(2)) < 0.01 * saved(2)


def test_tasks_with_opposite_losses_get_opposite_networks() -> None:
    """The first task is told that op0 is good, the second that op2 is, by heads that see which ran."""
    net = Candidates(head=False)
    learner = FBNetV5(net, search_space(net), {"a": Head(nn.Identity()), "b": Head(nn.Identity())}, steps=150)
    good = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    learner.descent.alpha_optimizer.param_groups[0]["lr"] = 0.1

    def losses(positions: Tensor, *_: object) -> dict[str, Tensor]:
        return {name: row[positions].sum() for name, row in zip("ab", good, strict=True)}

    learner.losses = losses  # type: ignore[method-assign, assignment]
    for _ in range(150):
        learner.move((torch.zeros(1), {}))
        learner.descent.done += 1
    assert set(learner.architecture("a").values()) == {"op0"}
    assert set(learner.architecture("b").values()) == {"op2"}


def test_a_cost_moves_every_task_and_bounds_what_is_selected() -> None:
    learner = search(2)
    cost = table(learner.net, [9.0, 0.0, 5.0])
    learner.cost = cost
    assert learner.penalty == add(1.0)
    told = learner.step(pair_for(learner))
    assert told["cost"] in {10.0 + a + b for a in (9.0, 0.0, 5.0) for b in (9.0, 0.0, 5.0)}
    best = learner.select("task0", lambda arch: float(cost(arch)), count=100, at_most=15.0)
    assert float(cost(best)) == 15.0
    with pytest.raises(ValueError, match="none of 5 samples for 'task1' costs at most 1"):
        learner.select("task1", lambda arch: 0.0, count=5, at_most=1.0)


def test_a_loss_alone_is_one_task() -> None:
    net = Candidates()
    learner = FBNetV5(net, search_space(net), F.cross_entropy, steps=3)
    told = learner.step((toy_batch(0), toy_batch(1)))
    assert told["loss"] == pytest.approx(told["loss_task"])
    assert learner.architecture() == learner.architecture("task")


def test_nothing_to_learn_is_an_error() -> None:
    net = Candidates()
    with pytest.raises(ValueError, match="0 tasks"):
        FBNetV5(net, search_space(net), {}, steps=3)


def test_all_samples_are_effective_while_tasks_agree_and_fewer_once_they_part() -> None:
    learner = search(uniform=0.0)
    with torch.no_grad():
        for name in learner.tasks:
            learner.of(name).table.zero_()
    learner.descent.alpha_optimizer.param_groups[0]["lr"] = 0.0
    assert [learner.step(pair_for(learner, step))["effective"] for step in range(3)] == pytest.approx([1.0] * 3)
    with torch.no_grad():
        learner.of("task0").table[:, 0] = 9.0
        learner.of("task1").table[:, 1] = 9.0
    assert learner.step(pair_for(learner, 3))["effective"] < 0.95


def test_a_batch_without_the_labels_of_a_task_is_refused() -> None:
    learner = search(2)
    with pytest.raises(ValueError, match="no labels for 'task1', but for task0: add them"):
        learner.step((batch(0, ["task0"]), batch(1, ["task0"])))


def test_baselines_are_part_of_the_state() -> None:
    one, two = search(), search()
    one.step(pair_for(one))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two.baselines == one.baselines
    assert one.step(pair_for(one, 1)) == two.step(pair_for(two, 1))
