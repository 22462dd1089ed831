# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sartor.checkpoint import flatten
from sartor.choice import Choice
from sartor.differentiable.balanced_mixture import BalancedMixture, architectures, assignment, balance
from sartor.nn import Conv2d
from sartor.spaces.pooling import PoolingResNet
from sartor.supernet import extract, search_space
from toy_slots import toy_pair
from toy_supernet import CLASSES


def net() -> PoolingResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PoolingResNet(CLASSES, 1, (8, 8), width=4)


def mixture(**arguments: object) -> BalancedMixture:
    one = net()
    return BalancedMixture(one, search_space(one), **{"steps": 20, "epochs": 5, **arguments})  # type: ignore[arg-type]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the balance --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_sinkhorn_balances_in_a_few_rounds(seed: int) -> None:
    values = uniform(36, 4, seed=seed)
    before = assignment(values, 50.0, torch.zeros(0, 4)).mean(0)
    marginals = balance(values, 50.0)
    after = assignment(values, 50.0, marginals)
    torch.testing.assert_close(after.sum(1), torch.ones(36, dtype=torch.float64))
    assert float((before - 0.25).abs().max()) > 0.03
    assert float((after.mean(0) - 0.25).abs().max()) < 0.007
    assert float((after.mean(0) * (4 * after.mean(0)).log()).sum()) < 1e-4
    assert len(marginals) <= 60


def test_marginals_are_divided_out_one_after_the_other() -> None:
    values = uniform(10, 3)
    marginals = balance(values, 20.0)
    table = (20.0 * values).softmax(1)
    for marginal in marginals:
        torch.testing.assert_close(table.mean(0).log(), marginal)
        table = table / table.mean(0)
        table = table / table.sum(1, keepdim=True)
    torch.testing.assert_close(assignment(values, 20.0, marginals), table)


def test_large_temperatures_leave_something_to_balance() -> None:
    values = torch.cat([torch.ones(36, 1), torch.zeros(36, 3)], 1)  # exp(-10000) is 0
    marginals = balance(values, 10_000.0)
    torch.testing.assert_close(assignment(values, 10_000.0, marginals).mean(0), torch.full((4,), 0.25).double())
    assert len(balance(uniform(4, 4).round(), 1e6, iterations=7)) <= 7


def test_without_balance_one_model_takes_all() -> None:
    values = torch.tensor([[0.9, 0.5, 0.5]]).expand(10, 3)
    alone = assignment(values, 100.0, torch.zeros(0, 3)).mean(0)
    balanced = assignment(values, 100.0, balance(values, 100.0)).mean(0)
    assert float(alone[0]) > 0.999
    torch.testing.assert_close(balanced, torch.full((3,), 1 / 3, dtype=torch.float64))


# ---- the learner --------------------------------------------------------------------------------


def test_layouts_are_those_of_the_paper() -> None:
    ten = PoolingResNet(10, 3, (32, 32), units=10)
    assert len(architectures(search_space(ten))) == 36
    assert [arch["pooling"] for arch in mixture().layouts][:3] == [(1, 2), (1, 3), (1, 4)]


def test_only_the_chosen_model_changes() -> None:
    search = mixture()
    for step in range(6):
        before = [flatten(descent.state_dict()["net"])[0] for descent in search.descents]
        old = [{name: value.clone() for name, value in one.items()} for one in before]
        used = search.used.clone()
        search.step(toy_pair(step))
        row, column = (search.used - used).nonzero()[0].tolist()
        assert int((search.used - used).sum()) == 1
        for model, one in enumerate(search.nets):
            same = all(torch.equal(value, old[model][name]) for name, value in one.state_dict().items())
            assert same == (model != column)
            moments = len(search.descents[model].weight_optimizer.state)
            assert bool(moments) == bool(search.used[:, model].sum())
        assert float(search.values[row, column]) != 1.0


def test_values_are_a_moving_average_from_1() -> None:
    search = mixture(models=1)
    expected = torch.ones(10)
    for step in range(8):
        used = search.used.clone()
        accuracy = search.step(toy_pair(step))["accuracy"]
        row = int((search.used - used).argmax())
        expected[row] = 0.9 * expected[row] + 0.1 * accuracy
    torch.testing.assert_close(search.values[:, 0], expected)


def test_one_model_is_uniform_sampling() -> None:
    search = mixture(models=1, steps=300)
    assert assignment(search.values, 100.0, balance(search.values, 100.0)).tolist() == [[1.0]] * 10
    scalars = [search.step((batch, (batch[0][:2], batch[1][:2]))) for batch, _ in map(toy_pair, range(100))]
    assert all(one["use"] == one["entropy"] == 0.0 for one in scalars)
    counts = search.used[:, 0].double()
    assert float(((counts - 10.0) ** 2 / 10.0).sum()) < 27.9  # chi squared of 9, p = 0.001


def test_the_temperature_rises_to_100_and_all_models_are_used_alike() -> None:
    search = mixture(models=2, steps=20)
    assert search.temperature == 1.0
    uses = [search.step(toy_pair(step))["use"] for step in range(20)]
    assert search.temperature == 100.0
    assert min(uses) > 0.9 * math.log(2)


def test_copies_start_apart_and_the_evaluation_has_every_pair() -> None:
    search = mixture(models=3)
    weights = [next(one.parameters()) for one in search.nets]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    search.step(toy_pair(0))
    batches = [toy_pair(9)[0], toy_pair(9)[1]]
    found = search.evaluated(batches)
    assert found.shape == (10, 3)
    alone = extract(search.nets[2], search.layouts[4]).eval()
    right = sum(int((alone(images).argmax(1) == labels).sum()) for images, labels in batches)
    assert float(found[4, 2]) == pytest.approx(right / 64)
    assert search.architecture() in search.layouts
    with pytest.raises(ValueError, match="there is no batch to evaluate"):
        search.evaluated([])


def test_large_spaces_are_refused() -> None:
    wide = torch.nn.Sequential(*(Conv2d(1, 1, Choice((1, 3)), padding="same") for _ in range(14)))
    with pytest.raises(ValueError, match="10000 combinations are the most"):
        BalancedMixture(wide, search_space(wide), steps=1)
    with pytest.raises(ValueError, match="models is 0"):
        mixture(models=0)
