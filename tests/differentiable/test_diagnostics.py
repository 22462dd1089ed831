# SPDX-License-Identifier: Apache-2.0
"""What diagnostics say of a search, on problems whose answer is known; networks are as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.differentiable.alphas import Alphas
from sartor.differentiable.diagnostics import (
    discretisation_gap,
    hessian_eigenvalue,
    rank_correlation,
    score,
    share,
    sharpness,
    undisturbed,
)
from sartor.differentiable.relaxations import softmax
from sartor.supernet import search_space
from toy_slots import Slots
from toy_supernet import toy_batch


class Line(nn.Module):
    """(N, 1, 1, 1) -> (N, 1): x times one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def mean_logit(logits: Tensor, labels: Tensor) -> float:
    return float(logits.mean())


def test_the_share_is_that_among_choices_of_its_kind() -> None:
    arch: dict[str, Option] = {"a": "skip", "b": "conv", "c": "skip", "inputs": (0, 1), "width": 8}
    assert share(arch, "skip") == pytest.approx(2 / 3)
    assert share(arch, "none") == 0.0
    assert share({"width": 8}, "skip") == 0.0


def test_a_score_is_weighted_by_the_samples_and_disturbs_nothing() -> None:
    net = Slots().eval()
    alphas = Alphas(net, search_space(net))
    assignment, before = alphas.assignment(softmax(alphas.logits)), state(net)
    batches = [toy_batch(0, 8), toy_batch(1, 24)]
    both = score(net, assignment, batches, mean_logit)
    first, second = (score(net, assignment, [batch], mean_logit) for batch in batches)
    assert both == pytest.approx((8 * first + 24 * second) / 32)
    assert first != pytest.approx(second)
    assert unchanged(net, before)
    assert not net.training
    with pytest.raises(ValueError, match="at least one"):
        score(net, assignment, [], mean_logit)


def test_statistics_are_as_before_after_an_error_too() -> None:
    net = Slots()
    before = state(net)
    with pytest.raises(RuntimeError, match="stop"), undisturbed(net):
        net(toy_batch(0)[0])
        assert not unchanged(net, before)
        raise RuntimeError("stop")
    assert unchanged(net, before)


def test_the_gap_is_what_reading_out_loses() -> None:
    net, batches = Slots(), [toy_batch(0)]
    alphas = Alphas(net, search_space(net))
    arch, soft = alphas.architecture(), alphas.assignment(softmax(alphas.logits))
    gap = discretisation_gap(net, soft, arch, batches, mean_logit)
    assert gap == pytest.approx(score(net, soft, batches, mean_logit) - score(net, arch, batches, mean_logit))
    with torch.no_grad():
        alphas.table[torch.arange(3), alphas.positions(arch)] = 100.0  # nothing is left to discretise
    sure = alphas.assignment(softmax(alphas.logits))
    assert discretisation_gap(net, sure, arch, batches, mean_logit) == pytest.approx(0.0, abs=1e-6)
    assert abs(gap) > 1e-4


def test_the_correlation_of_ranks_is_1_with_one_s_own_scores_and_minus_1_with_their_negatives() -> None:
    net, batches = Slots(), [toy_batch(0)]
    alphas = Alphas(net, search_space(net))
    archs = [alphas.architecture(torch.tensor([place] * 3)) for place in range(4)]
    own = {arch: score(net, arch, batches, mean_logit) for arch in archs}
    assert len(set(own.values())) == 4
    assert rank_correlation(net, own, batches, mean_logit) == pytest.approx(1.0)
    assert rank_correlation(net, {arch: -one for arch, one in own.items()}, batches, mean_logit) == pytest.approx(-1.0)


def test_the_sharpness_of_a_parabola() -> None:
    """Of w^2 / 2 at w = 2, 5 % further up: 2 * (1.05^2 - 1)."""
    net = Line(2.0)
    batch = torch.ones(3, 1, 1, 1, dtype=torch.float64), torch.zeros(3)
    rise = sharpness(net, {}, batch, lambda logits, labels: logits.square().mean() / 2, rho=0.05)
    assert rise == pytest.approx(2.0 * (1.05**2 - 1.0))
    assert float(net.weight.detach()) == 2.0


def test_the_eigenvalue_is_that_of_largest_magnitude() -> None:
    hessian = torch.diag(torch.tensor([1.0, -5.0, 2.0], dtype=torch.float64))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    hessian = turn @ hessian @ turn.T
    one = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    two = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        point = torch.cat([one, two])
        value: Tensor = point @ hessian @ point / 2
        return value

    assert hessian_eigenvalue(loss, [one, two], iterations=50) == pytest.approx(-5.0, rel=1e-6)
