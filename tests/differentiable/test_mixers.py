# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sartor.choice import Mixed
from sartor.differentiable import relaxations
from sartor.differentiable.diagnostics import calls, saved_activations
from sartor.differentiable.mixers import Operations, gated, zero_valued
from sartor.nn import OneOf
from sartor.supernet import activated

Mix = Callable[[Tensor, Operations, Tensor], Tensor]
each = pytest.mark.parametrize("mix", [gated, zero_valued])


def mixed(options: int = 3) -> OneOf:
    torch.manual_seed(0)
    return OneOf({f"op{i}": nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for i in range(options)}, name="op")


def one_hot(place: int, options: int = 3) -> Tensor:
    return torch.eye(options)[place].clone().requires_grad_()


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


@each
def test_the_value_is_that_of_the_operation_that_is_on(mix: Mix) -> None:
    net = mixed()
    with activated(net, {"op": Mixed(one_hot(1), mix)}):
        out = net(X)
    assert torch.equal(out, net["op1"](X))


@each
def test_one_operation_runs_forward(mix: Mix) -> None:
    net = mixed()

    def run() -> None:
        with activated(net, {"op": Mixed(one_hot(2), mix)}):
            net(X)

    assert {path.partition(".")[0] for path in calls(net, run)} == {"op2"}


@each
def test_memory_is_that_of_one_path(mix: Mix) -> None:
    def saved(options: int) -> int:
        net = mixed(options)
        with activated(net, {"op": Mixed(one_hot(1, options), mix)}):
            return saved_activations(lambda: net(X))

    assert saved(8) - saved(2) <= 8  # the weights themselves


@each
def test_weights_that_are_not_one_hot_are_refused(mix: Mix) -> None:
    net = mixed()
    for weights in ([0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]):
        with (
            activated(net, {"op": Mixed(torch.tensor(weights), mix)}),
            pytest.raises(ValueError, match=r"one-hot|binary"),
        ):
            net(X)


def test_gates_have_the_gradient_of_the_sum_over_all_operations() -> None:
    """Equation 4 of ProxylessNAS: dL/dg_j = <dL/dy, o_j(x)>, the off ones included."""
    net, gates = mixed(), one_hot(1)
    with activated(net, {"op": Mixed(gates, gated)}):
        found = torch.autograd.grad(net(X).square().sum(), [gates, *net["op1"].parameters()])
    plain = one_hot(1)
    total = torch.stack([weight * operation(X) for weight, operation in zip(plain, net.values(), strict=True)]).sum(0)
    wanted = torch.autograd.grad(total.square().sum(), [plain, *net["op1"].parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gates_without_a_gradient_run_one_operation_even_backward() -> None:
    net = mixed()

    def run() -> None:
        with activated(net, {"op": Mixed(one_hot(0).detach(), gated)}):
            net(X).sum().backward()

    assert {path.partition(".")[0] for path in calls(net, run)} == {"op0"}
    assert all(parameter.grad is None for parameter in net["op1"].parameters())


def test_zero_valued_weights_pass_the_gradient_of_their_sum_to_every_logit() -> None:
    """GDAS: the option that runs has <dL/dy, o(x)>, each other the sum of dL/dy."""
    net, weights = mixed(), one_hot(1)
    with activated(net, {"op": Mixed(weights, zero_valued)}):
        out = net(X)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(out, weights, upstream)
    ran, others = (upstream * net["op1"](X)).sum(), upstream.sum()
    torch.testing.assert_close(found, torch.stack([others, ran, others]).detach())


def test_a_straight_through_draw_reaches_all_logits() -> None:
    net, logits = mixed(), torch.zeros(1, 3, requires_grad=True)
    weights = relaxations.straight_through(logits, 1.0, relaxations.draws(0, 0))[0]
    with activated(net, {"op": Mixed(weights, zero_valued)}):
        (found,) = torch.autograd.grad(net(X).square().sum(), logits)
    assert bool((found != 0).all())
