# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.costs import cost_table
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.descent import Descent, Recipe, logits_of, total_loss
from sartor.differentiable.penalties import add
from sartor.differentiable.relaxations import softmax
from sartor.supernet import search_space
from toy_slots import Slots
from toy_supernet import toy_batch


def start(recipe: Recipe = Recipe(), **arguments: Any) -> tuple[Slots, Alphas, Descent]:  # noqa: B008 - frozen
    net = Slots()
    alphas = Alphas(net, search_space(net))
    return net, alphas, Descent(net, alphas, steps=10, recipe=recipe, **arguments)


def soft_loss(net: nn.Module, alphas: Alphas, step: int = 0) -> Tensor:
    return total_loss(net, alphas.assignment(softmax(alphas.logits)), toy_batch(step))[0]


def copies(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(module: nn.Module, before: list[Tensor]) -> bool:
    return all(map(torch.equal, module.parameters(), before))


def test_a_negative_number_of_steps_is_refused() -> None:
    net = Slots()
    with pytest.raises(ValueError, match="steps is -1"):
        Descent(net, Alphas(net, search_space(net)), steps=-1, recipe=Recipe())


def test_the_learning_rate_follows_half_a_cosine() -> None:
    recipe = Recipe()
    rates = [recipe.learning_rate(done, 10) for done in range(11)]
    assert rates[0] == 0.025
    assert rates[5] == pytest.approx(0.013)
    assert rates[10] == pytest.approx(0.001)
    assert rates == sorted(rates, reverse=True)


def test_the_defaults_are_those_of_the_paper() -> None:
    _, _, descent = start()
    (weights,), (alphas,) = descent.weight_optimizer.param_groups, descent.alpha_optimizer.param_groups
    assert (weights["momentum"], weights["weight_decay"], weights["nesterov"]) == (0.9, 3e-4, False)
    assert (alphas["lr"], alphas["betas"], alphas["weight_decay"]) == (3e-4, (0.5, 0.999), 1e-3)
    assert isinstance(descent.weight_optimizer, torch.optim.SGD)
    assert isinstance(descent.alpha_optimizer, torch.optim.Adam)


def test_alphas_are_not_in_the_weight_optimiser_nor_the_other_way_round() -> None:
    net, alphas, descent = start()
    groups = [
        {id(p) for g in o.param_groups for p in g["params"]}
        for o in (descent.weight_optimizer, descent.alpha_optimizer)
    ]
    assert groups == [{id(p) for p in net.parameters()}, {id(p) for p in alphas.parameters()}]


def test_a_step_on_the_weights_leaves_the_alphas_and_their_gradients_alone() -> None:
    net, alphas, descent = start()
    weights, table = copies(net), copies(alphas)
    value = descent.weights(soft_loss(net, alphas))
    assert value > 0
    assert not same(net, weights)
    assert same(alphas, table)
    assert all(p.grad is None for p in [*net.parameters(), *alphas.parameters()])
    assert not descent.alpha_optimizer.state


def test_a_step_on_the_alphas_leaves_the_weights_and_their_moments_alone() -> None:
    net, alphas, descent = start()
    weights, table = copies(net), copies(alphas)
    descent.architecture(soft_loss(net, alphas))
    assert same(net, weights)
    assert not same(alphas, table)
    assert all(p.grad is None for p in [*net.parameters(), *alphas.parameters()])
    assert not descent.weight_optimizer.state


def test_steps_go_down_their_loss() -> None:
    net, alphas, descent = start(Recipe(lr=0.3, alpha_lr=0.1))
    first = float(soft_loss(net, alphas).detach())
    for _ in range(5):
        descent.architecture(soft_loss(net, alphas))
        descent.weights(soft_loss(net, alphas))
        descent.done += 1
    assert float(soft_loss(net, alphas).detach()) < first


def test_gradients_are_clipped_to_the_norm() -> None:
    net, _, descent = start(Recipe(lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.5))
    before = copies(net)
    descent.step_weights([torch.full_like(p, 100.0) for p in net.parameters()])
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_a_weight_without_a_gradient_is_left_alone_decay_and_momentum_included() -> None:
    net, alphas, descent = start()
    descent.weights(soft_loss(net, alphas))
    with_moments = copies(net)
    hard = alphas.hard(torch.tensor([0, 0, 0]))
    descent.weights(total_loss(net, hard, toy_batch(1))[0])
    changed = [name for (name, p), b in zip(net.named_parameters(), with_moments, strict=True) if not torch.equal(p, b)]
    assert changed == ["stem.0.weight", "stem.1.weight", "stem.1.bias", "head.weight", "head.bias"]


def test_the_schedule_and_the_optimiser_can_be_others() -> None:
    net = Slots()
    optimizer = torch.optim.SGD(net.parameters(), lr=9.0)
    alphas = Alphas(net, search_space(net))
    descent = Descent(
        net,
        alphas,
        steps=10,
        recipe=Recipe(),
        weight_optimizer=optimizer,
        learning_rate=lambda done, steps: 0.1 * (done + 1) / steps,
    )
    descent.done = 4
    descent.weights(soft_loss(net, alphas))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert descent.part == 0.4


@pytest.mark.parametrize("what", ["weights", "architecture"])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(what: str) -> None:
    net, alphas, descent = start()
    weights, table = copies(net), copies(alphas)
    descent.done = 6
    with pytest.raises(ValueError, match=r"is nan at step 7, on batch 6 .* lower the learning rate"):
        getattr(descent, what)(soft_loss(net, alphas) * float("nan"))
    assert same(net, weights)
    assert same(alphas, table)


def test_restored_it_goes_on_bit_for_bit() -> None:
    def steps(descent: Descent, net: Slots, alphas: Alphas, first: int, last: int) -> None:
        for step in range(first, last):
            descent.architecture(soft_loss(net, alphas, step))
            descent.weights(soft_loss(net, alphas, step + 100))
            descent.done += 1

    net, alphas, descent = start()
    steps(descent, net, alphas, 0, 3)
    state = {k: v for k, v in descent.state_dict().items()}
    other_net, other_alphas, other = start()
    other.load_state_dict(_copied(state))
    steps(descent, net, alphas, 3, 6)
    steps(other, other_net, other_alphas, 3, 6)
    assert other.done == 6
    assert same(other_net, copies(net))
    assert same(other_alphas, copies(alphas))


def _copied(value: Any) -> Any:
    """A copy whose tensors are plain in memory, as those of a checkpoint."""
    if isinstance(value, Tensor):
        return value.detach().contiguous().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def test_the_cost_joins_the_loss_and_its_gradient_the_alphas() -> None:
    net, alphas, _ = start()
    table = cost_table(search_space(net), lambda arch: 5.0 * sum(option == "conv_3x3" for option in arch.values()))
    assignment = alphas.assignment(softmax(alphas.logits))
    plain, none = total_loss(net, assignment, toy_batch(0))
    joined, cost = total_loss(net, assignment, toy_batch(0), cost=table, penalty=add(2.0))
    assert none == 0.0
    assert cost == pytest.approx(float(table(assignment).detach()))
    assert float(joined.detach()) == pytest.approx(float(plain.detach()) + 2.0 * cost)


def test_logits_come_from_training_mode_and_leave_no_assignment_behind() -> None:
    net, alphas, _ = start()
    net.eval()
    logits = logits_of(net, alphas.assignment(softmax(alphas.logits)), toy_batch(0)[0])
    assert logits.shape == (32, 4)
    assert net.training
    assert not any(slot.choice.is_soft for slot in net.slots)  # type: ignore[union-attr]


def test_a_short_search_raises_two_learning_rates_and_nothing_else() -> None:
    recipe = Recipe(lr=0.025, alpha_lr=3e-4, weight_decay=0.1)
    assert recipe.shortened(585) == Recipe(lr=0.1, alpha_lr=pytest.approx(0.01), weight_decay=0.1)  # type: ignore[arg-type]
    assert Recipe(lr=0.2, alpha_lr=0.03).shortened(585) == Recipe(lr=0.2, alpha_lr=0.03)
    assert Recipe(lr=0.025, bounded=True).shortened(585).lr == 0.025
    assert recipe.shortened(10).alpha_lr == 0.05  # not beyond
    assert recipe.shortened(19_500) == recipe
