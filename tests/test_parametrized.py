# SPDX-License-Identifier: Apache-2.0
"""Quantisers and sparsity masks, as layers and as parametrizations of layers, searched or not."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase, distance
from sartor.choice import Choice
from sartor.nn import FakeQuantize, Quantize, Sparsify, TopK, baked, originals, parametrizations, quantized, sparsified
from sartor.nn.quantize import rounded
from sartor.nn.sparsify import mask_of
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import parameters, trace

torch.set_num_threads(1)

F64 = torch.float64


def rows() -> Tensor:
    return torch.randn(4, 5)


def quantized_net() -> nn.Module:
    bits, w = Choice([1, 2, 4, 32], name="bits"), Choice([2, 3])  # one decision for two layers
    layers = [quantized(nn.Linear(*sizes), bits) for sizes in ((5, 6), (6, 3))]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], elastic.Linear(3, w), elastic.Linear(w, 2))


def sparse_net() -> nn.Module:
    return nn.Sequential(sparsified(nn.Linear(5, 6), Choice([0.2, 0.5, 1.0])), sparsified(nn.Linear(6, 3), 0.5))


def quantized_slices() -> nn.Module:
    """Parametrized elastic layers: what is extracted is a slice of the computed weight."""
    w = Choice([2, 4])
    return nn.Sequential(
        quantized(elastic.Linear(5, w), Choice([2, 4])), nn.Tanh(), sparsified(elastic.Linear(w, 3), 0.5)
    )


CASES = [
    LayerCase("quantized", quantized_net, rows),
    LayerCase("sparse", sparse_net, rows),
    LayerCase("slices", quantized_slices, rows),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "check",
    [law.one_hot_equals_hard, law.extraction_shares_nothing, law.state_dict_round_trip, law.exports, law.prints],
    ids=lambda check: check.__name__,
)
def test_law(check: Any, case: LayerCase) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_extraction_equals_activation(case: LayerCase) -> None:
    law.extraction_equals_activation(case, F64)
    law.largest_is_exact(case, F64)
    law.gradients_reach_every_choice(case, training=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_copies_are_independent(case: LayerCase) -> None:
    """Torch refuses to pickle what is parametrized, so by deep copies alone."""
    network, x = case.network(), case.inputs()
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), network(x))
    law.assert_nothing_shared(network, twin)
    assert not {*map(id, named_choices(network).values())} & {*map(id, named_choices(twin).values())}


def test_choices_have_names_and_shared_ones_are_one() -> None:
    assert {*search_space(quantized_net()).choices} == {"bits", "3.out_features"}
    assert list(search_space(sparse_net()).choices) == ["0.parametrizations.weight.0.keep"]


def test_extracted_layers_keep_their_parametrization() -> None:
    small: Any = extract(quantized_net(), {"bits": 4, "3.out_features": 2})
    assert isinstance(small[0].parametrizations.weight[0], FakeQuantize)
    sparse: Any = extract(sparse_net(), {"0.parametrizations.weight.0.keep": 0.2})
    assert type(sparse[0].parametrizations.weight[0]) is TopK and sparse[0].weight.count_nonzero() == 6
    assert [name for name, _, _ in parametrizations(sparse, TopK)] == ["0.weight", "1.weight"]


def test_elastic_layers_become_plain_ones() -> None:
    net = quantized_slices()
    small: Any = extract(net, search_space(net).smallest())
    assert type(small[0]) is nn.Linear and type(small[2]) is nn.Linear
    assert not parametrize.is_parametrized(small[0]) and small[0].weight.shape == (2, 5)


def test_baked_networks_are_ordinary_ones() -> None:
    net, x = sparse_net(), torch.randn(4, 5)
    small = extract(net, search_space(net).smallest())
    with torch.no_grad():
        before = small(x)
        assert baked(small) is small and torch.equal(small(x), before)
    assert [type(module) for module in small.children()] == [nn.Linear, nn.Linear]
    assert parameters(trace(small, x)) == 5 * 6 + 6 + 6 * 3 + 3 and not originals(small)


# ---- quantisers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16, 31, 32])
def test_quantisers_are_idempotent(bits: int) -> None:
    x = torch.randn(50, 20, dtype=F64, generator=torch.Generator().manual_seed(0))
    once = rounded(x, bits)
    assert distance(rounded(once, bits), once) <= (1e-12 if bits <= 2 else 0.0)
    assert bits > 8 or len({*once.flatten().tolist()}) <= {1: 2, 2: 3}.get(bits, 2**bits)


def test_fixed_point_values_are_on_the_grid() -> None:
    """4 bits before the point and 4 behind it: steps of 1/16 from -8 to 8 - 1/16."""
    x = torch.linspace(-12, 12, 4001, dtype=F64)
    found = rounded(x, 8)
    assert torch.equal(found * 16, (found * 16).round())
    assert [float(found.min()), float(found.max())] == [-8, 8 - 1 / 16]
    inside = (x >= -8) & (x <= 8 - 1 / 16)
    assert (found - x)[inside].abs().max() <= 1 / 32
    fine = rounded(x, 8, 0)
    assert [float(fine.min()), float(fine.max())] == [-0.5, 0.5 - 2**-8]


def test_ternary_and_binary() -> None:
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 1.0])
    assert rounded(x, 2).tolist() == [-1.5, 0, 0, 0, 1.5]  # threshold .7 * .64
    torch.testing.assert_close(rounded(x, 1), torch.tensor([-0.64, -0.64, 0.64, 0.64, 0.64]))
    assert not rounded(torch.zeros(3), 2).any()


@pytest.mark.parametrize(("bits", "low", "high"), [(1, -1, 1), (2, -1, 1), (4, -2, 1.75), (8, -8, 8 - 1 / 16)])
def test_gradients_are_one_inside_and_zero_outside(bits: int, low: float, high: float) -> None:
    x = torch.linspace(low - 1, high + 1, 101, dtype=F64).requires_grad_()
    rounded(x, bits).sum().backward()  # type: ignore[no-untyped-call]
    inside = (x >= low) & (x <= high)
    assert x.grad is not None and torch.equal(x.grad, inside.to(F64))


def test_float_bits_are_the_float_network() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    expected = layer(x)
    assert torch.equal(quantized(layer, 32)(x), expected)


def test_a_mixture_of_bits_is_their_expectation() -> None:
    layer, x, weights = Quantize(Choice([2, 4, 32])), torch.randn(7, dtype=F64), torch.tensor([0.5, 0, 0.5], dtype=F64)
    with activated(layer, {"bits": weights}):
        assert distance(layer(x), 0.5 * rounded(x, 2) + 0.5 * x) <= 1e-12
        assert layer.expected_bits(x) == 17
    assert layer.expected_bits(x) == 32 and Quantize(4).expected_bits(x) == 4
    with activated(layer, {"bits": torch.zeros(3)}), pytest.raises(ValueError, match=r"all weights of .* are zero"):
        layer(x)


def test_quantised_weights_train() -> None:
    torch.manual_seed(0)
    layer, x = quantized(nn.Linear(5, 1), 4, integer=1), torch.randn(64, 5)
    target = x @ torch.tensor([[0.5], [-0.25], [0.125], [0.0], [-0.5]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    layer.weight = torch.zeros(1, 5)  # what is assigned is what it is computed from
    assert not layer.weight.any()


@pytest.mark.parametrize("bits", [0, -1, 2.5, "4", True])
def test_bits_that_are_none(bits: Any) -> None:
    for make in (FakeQuantize, Quantize):
        with pytest.raises(ValueError, match="bits: give a positive int, 32 for floating point"):
            make(bits)
    with pytest.raises(ValueError, match="cannot have"):
        Quantize(Choice([4, bits]))


# ---- sparsity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
@pytest.mark.parametrize("keep", [0.001, 0.01, 0.05, 0.07, 0.3, 0.5, 0.99, 1.0])
def test_exactly_so_many_are_kept(keep: float, count: int) -> None:
    score = torch.randn(count, generator=torch.Generator().manual_seed(count)).round(decimals=1)  # with ties
    mask = mask_of(score, keep)
    kept = math.ceil(round(keep * count, 6))
    assert mask.sum() == kept and set(mask.tolist()) <= {0.0, 1.0}
    size = score.abs()
    assert kept == count or size[mask == 1].min() >= size[mask == 0].max()


def test_ties_keep_the_first() -> None:
    assert mask_of(torch.ones(2, 3), 0.5).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_scores_begin_proportional_to_the_weights() -> None:
    layer = sparsified(nn.Conv2d(4, 6, 3), 0.5)
    ((_, mask, weight),) = parametrizations(layer, TopK)
    assert torch.allclose(mask.score, weight * math.sqrt(6 / 36) / weight.abs().max())
    assert float(mask.score.detach().abs().max()) == pytest.approx(math.sqrt(1 / 6))
    by_size = weight.abs().flatten().argsort(descending=True)[: weight.numel() // 2]
    assert mask.mask().flatten()[by_size].all()


def test_gradients_of_masks_go_straight_to_the_scores() -> None:
    """dL/dS = dL/d(W M) W sign(S), for weights that are gone too; dL/dW is that of the kept ones."""
    torch.manual_seed(0)
    layer: Any = sparsified(nn.Linear(6, 4), 0.25).double()
    x = torch.randn(3, 6, dtype=F64)
    ((_, mask, weight),) = parametrizations(layer, TopK)
    out = layer(x)
    (upstream,) = torch.autograd.grad(out.square().sum(), out, retain_graph=True)
    product = upstream.T @ x  # dL/d(W M)
    out.square().sum().backward()
    assert mask.score.grad is not None
    torch.testing.assert_close(mask.score.grad, product * weight * mask.score.sign())
    torch.testing.assert_close(weight.grad, product * mask.mask())
    assert (mask.score.grad[mask.mask() == 0] != 0).all()


def test_gradients_of_kept_weights_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    layer: Any = sparsified(nn.Linear(3, 2), 0.5).double()
    x = torch.randn(5, 3, dtype=F64)
    ((_, mask, weight),) = parametrizations(layer, TopK)
    layer(x).square().sum().backward()
    assert weight.grad is not None
    for place in mask.mask().nonzero().tolist():
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight[tuple(place)] += step
                values.append(float(layer(x).square().sum()))
        assert float(weight.grad[tuple(place)]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)
        with torch.no_grad():
            weight[tuple(place)] += 1e-5


def test_all_kept_is_the_dense_network_to_the_bit() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    dense = copy.deepcopy(layer)
    sparse = sparsified(layer, 1.0)
    outputs = [net(x) for net in (dense, sparse)]
    assert torch.equal(*outputs)
    for out in outputs:
        out.square().sum().backward()
    ((_, mask, weight),) = parametrizations(sparse, TopK)
    assert weight.grad is not None and dense.weight.grad is not None and mask.score.grad is None
    assert torch.equal(weight.grad, dense.weight.grad)


@pytest.mark.parametrize("trained", ["scores", "weights"])
def test_what_is_frozen_does_not_change(trained: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(sparsified(nn.Linear(5, 8), 0.2), nn.ReLU(), sparsified(nn.Linear(8, 2), 0.2))
    scores, weights = [one.score for _, one, _ in parametrizations(net, TopK)], originals(net)
    chosen, frozen = (scores, weights) if trained == "scores" else (weights, scores)
    before = [tensor.detach().clone() for tensor in (*chosen, *frozen)]
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(16, 5)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(chosen, before, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(frozen, before[len(chosen) :], strict=True))


def test_a_mixture_of_shares_is_their_expectation() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 5, dtype=F64)
    mask = Sparsify(weight, Choice([0.25, 0.5, 1.0])).double()
    with activated(mask, {"keep": torch.tensor([0.5, 0.0, 0.5], dtype=F64)}):
        assert distance(mask(weight), 0.5 * weight * mask_of(mask.score, 0.25) + 0.5 * weight) <= 1e-12
        with pytest.raises(ValueError, match="is soft"):
            mask.mask()
    with activated(mask, {"keep": torch.zeros(3)}), pytest.raises(ValueError, match=r"all weights of .* are zero"):
        mask(weight)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, "all", True])
def test_shares_that_are_none(keep: Any) -> None:
    with pytest.raises(ValueError, match="of the weights cannot be kept: give more than 0 and at most 1"):
        sparsified(nn.Linear(2, 2), keep)
    with pytest.raises(ValueError, match="cannot be kept"):
        TopK(torch.ones(2), keep)
