# SPDX-License-Identifier: Apache-2.0
"""The expected cost of a mixture: exact where costs add up, linear, with the table as its gradient."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch

from sartor.architecture import Architecture
from sartor.costs.expected import CostTable, OfWorkload, cost_table
from sartor.costs.roofline import Roofline
from sartor.encodings import architectures, enumerated, onehot
from sartor.space import SearchSpace
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import extract, search_space
from sartor.workload import Workload, trace

FREE = SearchSpace({"a": (1, 2, 3), "b": ("x", "y"), "c": (False, True)})
GATED = SearchSpace(
    {"depth": (1, 2, 3), "k2": (3, 5), "k3": (3, 5, 7), "op": ("conv", "skip", "pool"), "e": (1, 2), "w": (4, 8)},
    {
        "k2": ((("depth", (2, 3)),),),
        "k3": ((("depth", (3,)),),),
        "e": ((("op", ("conv",)), ("k3", (5, 7))),),  # not so in the largest network, whose op is "pool"
    },
)
SPACES = {"free": FREE, "gated": GATED}


def additive(space: SearchSpace, seed: int) -> CostTable:
    rng = np.random.default_rng(seed)
    return CostTable(space, 5.0, {name: tuple(rng.uniform(0, 9, len(o))) for name, o in space.choices.items()})


def everything(space: SearchSpace) -> list[Architecture]:
    return architectures(space, enumerated(space))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(5))
def test_the_table_of_a_cost_that_adds_up_is_exact(name: str, seed: int) -> None:
    space = SPACES[name]
    true, archs = additive(space, seed), everything(space)
    reference = space.sample(random.Random(seed)) if seed else None
    table = cost_table(space, lambda arch: float(true.costs([arch])[0]), reference)
    np.testing.assert_allclose(table.costs(archs), true.costs(archs), rtol=1e-9)
    np.testing.assert_allclose(CostTable.fitted(space, archs, true.costs(archs)).costs(archs), true.costs(archs))


def test_one_cost_for_each_option_at_most() -> None:
    asked: list[Architecture] = []

    def cost(arch: Architecture) -> float:
        asked.append(arch)
        return 1.0

    cost_table(FREE, cost)
    assert len(asked) == len(set(asked)) == 1 + 2 + 1 + 1


@pytest.mark.parametrize("name", SPACES)
def test_one_hot_weights_have_the_cost_of_the_architecture(name: str) -> None:
    space = SPACES[name]
    table = additive(space, 0)
    for arch in everything(space)[::7]:
        assert float(table(arch)) == pytest.approx(float(table.costs([arch])[0]), rel=1e-6)


def test_the_gradient_is_the_table() -> None:
    table = additive(FREE, 1)
    weights = {name: torch.full((len(o),), 1 / len(o), requires_grad=True) for name, o in FREE.choices.items()}
    expected = table(weights)
    assert expected.item() == pytest.approx(5 + sum(np.mean(row) for row in table.adds.values()), rel=1e-6)
    expected.backward()  # type: ignore[no-untyped-call]
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, torch.tensor(table.adds[name], dtype=torch.float32))


def test_gradients_are_those_of_finite_differences() -> None:
    table, generator = additive(GATED, 2), torch.Generator().manual_seed(0)
    weights = [
        torch.rand(len(options), generator=generator, dtype=torch.float64, requires_grad=True)
        for options in GATED.choices.values()
    ]
    assert torch.autograd.gradcheck(lambda *w: table(dict(zip(GATED.choices, w, strict=True))), weights)


def test_the_expectation_is_the_mean_over_drawn_networks() -> None:
    table, rng = additive(GATED, 3), np.random.default_rng(0)
    weights = {name: rng.dirichlet(np.ones(len(options))) for name, options in GATED.choices.items()}
    columns = [rng.choice(len(weights[name]), size=20_000, p=weights[name]) for name in GATED.choices]
    drawn = table.costs(architectures(GATED, np.stack(columns, axis=1)))
    expected = float(table({name: torch.from_numpy(weight) for name, weight in weights.items()}))
    assert expected == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 20_000**0.5)


def test_the_fit_is_the_least_squares_one() -> None:
    rng = random.Random(0)
    archs = [FREE.sample(rng) for _ in range(40)]
    squares = onehot(FREE, archs)[:, :3] @ np.array([1.0, 4.0, 9.0])
    costs = squares * (1 + np.array([arch["c"] is True for arch in archs]))  # which does not add up
    table = CostTable.fitted(FREE, archs, costs)
    apart = table.costs(archs) - costs
    np.testing.assert_allclose(onehot(FREE, archs).T @ apart, 0, atol=1e-9)
    assert abs(apart.sum()) < 1e-9


def test_tables_are_copied_and_pickled() -> None:
    table = additive(GATED, 0)
    table(GATED.largest())
    for again in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert again == table
        assert float(again(GATED.largest())) == float(table(GATED.largest()))


def test_a_cost_of_workloads_adds_up_over_the_edges_of_a_cell() -> None:
    with torch.device("meta"):
        net = NASBench201()
    space = search_space(net)
    example = torch.empty(1, 3, 32, 32, device="meta")

    def workload(arch: Architecture) -> Workload:
        return trace(extract(net, arch), example)

    cost = OfWorkload(Roofline(10, 5, 0.0), workload)
    reference = space.canonical(dict.fromkeys(space.choices, "skip_connect"))
    table = cost_table(space, cost, reference)
    rng = random.Random(0)
    operations = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")  # "none" leaves out an addition
    archs = [space.canonical({name: rng.choice(operations) for name in space.choices}) for _ in range(5)]
    np.testing.assert_allclose(table.costs(archs), [cost(arch) for arch in archs], rtol=1e-9)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="give one for each"):
        CostTable(FREE, 0.0, {"a": (1.0,)})
    with pytest.raises(ValueError, match="give each its own"):
        CostTable.fitted(FREE, everything(FREE), np.ones(2))
    never = SearchSpace(
        {"a": (1, 2), "b": (1, 2), "c": (1, 2)}, {"b": ((("a", (1,)),),), "c": ((("a", (2,)), ("b", (2,))),)}
    )
    with pytest.raises(ValueError, match="'c' matters in no network"):
        cost_table(never, lambda arch: 1.0)
