# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import indices
from sartor.costs import cost_table
from sartor.differentiable._unrolled import finite_difference, unrolled
from sartor.differentiable.darts import DARTS
from sartor.differentiable.descent import Descent, Recipe, logits_of
from sartor.differentiable.penalties import add
from sartor.spaces.cell_operations import OPERATIONS
from sartor.spaces.darts import DartsNetwork, to_genotype
from sartor.supernet import extract, search_space
from toy_slots import Slots, toy_pair

PLAIN = Recipe(lr=0.1, momentum=0.0, weight_decay=0.0)
FOUR = {name: OPERATIONS[name] for name in ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")}


def cells() -> DartsNetwork:
    """The network of DARTS with one cell of each kind and another, as small as it gets."""
    torch.manual_seed(0)
    return DartsNetwork(4, 1, (8, 8), width=4, cells=3, operations=FOUR)


def search(net: nn.Module | None = None, **arguments: Any) -> DARTS:
    net = Slots() if net is None else net
    return DARTS(net, search_space(net), **{"steps": 10, **arguments})


class Scalar(nn.Module):
    """One number to learn."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.25, 0.5, 0.7])
def test_the_analytic_problem_ends_where_theory_says(xi: float) -> None:
    """L_val = alpha w - 2 alpha + 1, L_train = (w - alpha)^2 from (2, -2): alpha = w = 2 / (1 + 2 xi)."""
    alpha, w = Scalar(2.0), Scalar(-2.0)
    descent = Descent(w, alpha, steps=1, recipe=PLAIN)

    def train() -> Tensor:
        return (w.value - alpha.value).square()

    def validation() -> Tensor:
        return alpha.value * w.value - 2.0 * alpha.value + 1.0

    for _ in range(120):
        _, (gradient,) = unrolled(descent, train, validation, rate=xi)
        with torch.no_grad():
            alpha.value.sub_(0.1 * gradient)
            w.value.sub_(0.2 * (2.0 * (w.value - alpha.value)))
    assert float(alpha.value.detach()) == pytest.approx(2.0 / (1.0 + 2.0 * xi), abs=1e-3)
    assert float(w.value.detach()) == pytest.approx(float(alpha.value.detach()), abs=1e-3)


class Mixture(nn.Module):
    """A perceptron of two layers whose activation is a mixture, and the logits of the mixture."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(dropout)
        self.double()
        self.logits = nn.ParameterList([nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))])
        self.x = torch.randn(2, 16, 6, dtype=torch.float64)
        self.y = torch.randint(3, (2, 16))

    def descent(self, recipe: Recipe) -> Descent:
        return Descent(nn.ModuleList([self.first, self.second]), self.logits, steps=10, recipe=recipe)

    def loss(self, half: int, weights: dict[str, Tensor] | None = None) -> Tensor:
        w = dict(self.named_parameters()) if weights is None else weights
        hidden = F.linear(self.x[half], w["first.weight"], w["first.bias"])
        chances = self.logits[0].softmax(0)
        mixed = chances[0] * hidden.tanh() + chances[1] * hidden.sigmoid() + chances[2] * F.silu(hidden)
        return F.cross_entropy(F.linear(self.dropout(mixed), w["second.weight"], w["second.bias"]), self.y[half])

    def weights(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if not name.startswith("logits")}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_the_implicit_term_is_the_exact_product_with_the_hessian() -> None:
    net = Mixture()
    weights, alphas = list(net.weights().values()), list(net.logits)
    direction = torch.autograd.grad(net.loss(1), weights)
    (found,) = finite_difference(lambda: net.loss(0), weights, alphas, direction)
    inner = torch.autograd.grad(net.loss(0), weights, create_graph=True)
    (wanted,) = torch.autograd.grad(inner, alphas, direction)
    assert relative(found, wanted) < 1e-3


def test_the_gradient_is_that_through_one_step_with_momentum_and_decay() -> None:
    net = Mixture()
    recipe = Recipe(lr=0.2, lr_min=0.2, momentum=0.9, weight_decay=0.01, clip=100.0)
    descent = net.descent(recipe)
    descent.weights(net.loss(0))  # so that there is momentum
    weights = net.weights()
    inner = torch.autograd.grad(net.loss(0), list(weights.values()), create_graph=True)
    buffers = [descent.weight_optimizer.state[w]["momentum_buffer"] for w in weights.values()]
    moved = {
        name: w - 0.2 * (0.9 * buffer + gradient + 0.01 * w)
        for (name, w), buffer, gradient in zip(weights.items(), buffers, inner, strict=True)
    }
    loss = net.loss(1, moved)
    (wanted,) = torch.autograd.grad(loss, list(net.logits))
    value, (found,) = unrolled(descent, lambda: net.loss(0), lambda: net.loss(1))
    assert value == pytest.approx(float(loss.detach()), rel=1e-9)
    assert relative(found, wanted) < 1e-3
    assert relative(torch.autograd.grad(net.loss(1), list(net.logits))[0], wanted) > 0.01  # the first order is another


def test_both_sides_of_the_finite_difference_see_the_same_dropout() -> None:
    net = Mixture(dropout=0.5)
    weights, alphas = list(net.weights().values()), list(net.logits)
    direction = [torch.randn_like(w) for w in weights]
    state = torch.get_rng_state()
    (found,) = finite_difference(lambda: net.loss(0), weights, alphas, direction)
    torch.set_rng_state(state)
    inner = torch.autograd.grad(net.loss(0), weights, create_graph=True)
    (wanted,) = torch.autograd.grad(inner, alphas, direction)
    assert relative(found, wanted) < 1e-3


def test_a_second_order_gradient_leaves_weights_and_statistics_bit_for_bit() -> None:
    learner = search(order=2)
    learner.step(toy_pair(0))
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    train, validation = toy_pair(1)

    def loss(batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(_forward(learner, batch[0]), batch[1])

    _, gradients = unrolled(learner.descent, loss(train), loss(validation))
    assert all(bool(gradient.any()) for gradient in gradients)
    after = learner.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("fails", ["validation", "a side of the difference"])
def test_a_second_order_gradient_that_fails_leaves_the_weights_too(fails: str) -> None:
    net = Mixture()
    descent = net.descent(Recipe(lr=0.5))
    before = [p.detach().clone() for p in descent.weight_parameters]
    calls: list[int] = []

    def train() -> Tensor:
        calls.append(1)
        if fails != "validation" and len(calls) == 3:
            raise ValueError("the loss is nan")
        return net.loss(0)

    with pytest.raises(ValueError, match="is nan"):
        unrolled(descent, train, lambda: net.loss(1) * (float("nan") if fails == "validation" else 1.0))
    assert all(map(torch.equal, descent.weight_parameters, before))


@pytest.mark.parametrize(("order", "passes"), [(1, 2), (2, 5)])
def test_the_passes_of_a_step(order: int, passes: int) -> None:
    learner = search(order=order)
    forwards: list[int] = []
    learner.net.register_forward_hook(lambda *_: forwards.append(1))
    learner.step(toy_pair(0))
    assert len(forwards) == passes


def _forward(learner: DARTS, images: Tensor) -> Tensor:
    return logits_of(learner.net, learner.mixture(), images)


def test_the_first_order_gradient_is_that_of_central_differences_of_the_validation_loss() -> None:
    learner = search(Slots().double())
    learner.alphas.double()
    _, (images, labels) = toy_pair(0)

    def loss() -> Tensor:
        return F.cross_entropy(_forward(learner, images.double()), labels)

    (found,) = torch.autograd.grad(loss(), learner.alphas.table)
    wanted = torch.zeros_like(found)
    flat = learner.alphas.table.data.view(-1)
    for place in range(flat.numel()):
        middle = float(flat[place])
        sides = []
        for shift in (1e-7, -1e-7):  # few activations cross 0
            flat[place] = middle + shift
            sides.append(float(loss().detach()))
        flat[place] = middle
        wanted.view(-1)[place] = (sides[0] - sides[1]) / 2e-7
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-3)


def test_alpha_steps_first_and_the_weights_on_what_it_then_is() -> None:
    learner = search(order=1, recipe=Recipe(alpha_lr=0.5))
    seen: list[str] = []
    before, old = copy.deepcopy(learner.net), learner.mixture(fixed=True)
    descent = learner.descent
    alphas, weights = descent.step_architecture, descent.step_weights
    descent.step_architecture = lambda g: (seen.append("alpha"), alphas(g))[1]  # type: ignore[assignment, func-returns-value]
    descent.step_weights = lambda g: (seen.append("w"), weights(g))[1]  # type: ignore[assignment, func-returns-value]
    loss = learner.step(toy_pair(0))["loss"]
    assert seen == ["alpha", "w"]
    images, labels = toy_pair(0)[0]
    new = F.cross_entropy(logits_of(before, learner.mixture(), images), labels)
    assert loss == pytest.approx(float(new.detach()), rel=1e-5)
    assert loss != pytest.approx(float(F.cross_entropy(logits_of(before, old, images), labels).detach()), rel=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_alphas_are_never_in_the_weight_optimiser_and_move_by_adam_alone(order: int) -> None:
    learner = search(order=order)
    held = {id(p) for group in learner.descent.weight_optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in learner.alphas.parameters()}
    before = learner.alphas.table.detach().clone()
    learner.step(toy_pair(0))
    moved = (learner.alphas.table.detach() - before).abs()
    assert float(moved.max()) == pytest.approx(3e-4, rel=1e-2)  # the first step of Adam is its learning rate


def test_the_orders_differ() -> None:
    tables = []
    for order in (1, 2):
        learner = search(order=order, recipe=Recipe(lr=0.5))
        for step in range(3):
            learner.step(toy_pair(step))
        tables.append(learner.alphas.table.detach())
    assert not torch.equal(*tables)
    with pytest.raises(ValueError, match="order is 3"):
        search(order=3)


def test_a_strong_cost_wins() -> None:
    net = Slots()
    table = cost_table(search_space(net), lambda arch: float(sum(option != "pool" for option in arch.values())))
    learner = search(net, cost=table, penalty=add(10.0), recipe=Recipe(alpha_lr=0.3))
    costs = [learner.step(toy_pair(step))["cost"] for step in range(10)]
    assert costs == sorted(costs, reverse=True)
    assert set(learner.architecture().values()) == {"pool"}


def test_a_loss_that_is_not_a_number_stops_the_search() -> None:
    learner = search()
    learner.step(toy_pair(0))
    train, (images, labels) = toy_pair(1)
    with pytest.raises(ValueError, match="architecture parameters is nan at step 2, on batch 1"):
        learner.step((train, (images * float("nan"), labels)))


class TestCells:
    def test_a_step_trains_every_alpha_and_the_read_out_has_eight_edges_a_cell(self) -> None:
        learner = search(cells(), steps=4)
        before = learner.alphas.table.detach().clone()
        assert before.shape == (28, 4)
        learner.step(toy_pair(0, 8))
        assert bool((learner.alphas.table.detach() != before).all())
        arch = learner.architecture()
        assert arch in learner.alphas.space
        for kind in ("normal", "reduce"):
            edges = [(i, node) for node in (2, 3, 4, 5) for i in indices(arch[f"{kind}_inputs_{node}"])]
            assert len(edges) == 8
            assert "none" not in {arch[f"{kind}_op_{source}{node}"] for source, node in edges}
        assert to_genotype(arch).count("(") == 1 + 16

    def test_the_architecture_is_extracted_from_the_evaluation_form(self) -> None:
        arch = search(cells()).architecture()
        net = extract(DartsNetwork(4, 1, (8, 8), width=4, cells=4, operations=FOUR, form="evaluation"), arch)
        assert net(toy_pair(0, 2)[0][0]).shape == (2, 4)

    def test_the_strongest_edges_and_operations_are_kept_and_none_never(self) -> None:
        learner = search(cells())
        with torch.no_grad():
            learner.alphas.table.zero_()
            learner.alphas.table[:, 0] = 9.0  # "none" is strongest everywhere
            for place, name in enumerate(learner.alphas.options):
                if name in ("normal_op_15", "normal_op_35"):
                    learner.alphas.table[place, 3] = 8.0
        arch = learner.architecture()
        assert arch["normal_inputs_5"] == (1, 3)
        assert {arch["normal_op_15"], arch["normal_op_35"]} == {"sep_conv_3x3"}
        assert arch["reduce_inputs_5"] == (0, 1)  # the first of equals
        assert arch["reduce_op_05"] == "skip_connect"
