# SPDX-License-Identifier: Apache-2.0
"""A fact of each predictor's method."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch

from contracts.predictor_contract import LONE, TOY, accuracies, sampled
from sartor.encodings import onehot
from sartor.predictors import GBDT, GCN, MLP, GaussianProcess, Ridge, RidgeOrSVR
from sartor.predictors.losses import bpr, diffkendall, pairwise_hinge
from sartor.ranking import kendall_tau
from sartor.space import SearchSpace

# A cell of 4 nodes, whose 6 edges hold operations, and which edge reads what which one makes.
OPERATIONS = ("none", "skip", "conv")
CELL = SearchSpace(dict.fromkeys(("op_01", "op_02", "op_03", "op_12", "op_13", "op_23"), OPERATIONS))
LINKS = [(one, other) for one in CELL.choices for other in CELL.choices if one[-1] == other[-2]]
SMALL = partial(GCN, units=32, epochs=80, lr=1e-2, draws=4)


def test_ridge_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge as Reference

    archs, asked = sampled(TOY, 40, 0), sampled(TOY, 10, 1)
    values = accuracies(archs)
    reference = Reference(alpha=2.0 * 1.0).fit(onehot(TOY, archs), values)
    found = Ridge(TOY, alpha=2.0).fit(archs, values).predict(asked)[0]
    np.testing.assert_allclose(found, reference.predict(onehot(TOY, asked)), rtol=1e-9)


def test_the_process_passes_through_noiseless_samples_and_doubts_what_is_far() -> None:
    space = SearchSpace({f"x{i}": tuple(range(5)) for i in range(4)})
    archs = [arch for arch in sampled(space, 120, 0) if arch["x0"] != 4]
    values = np.array([float(sum(arch.values())) for arch in archs])  # type: ignore[arg-type]
    process = GaussianProcess(space, noise=1e-4).fit(archs, values)
    mean, near = process.predict(archs)
    np.testing.assert_allclose(mean, values, atol=0.1)
    far = process.predict([arch.replace(x0=4) for arch in archs])[1]
    assert far.mean() > 2 * near.mean()


def test_the_gradient_of_the_marginal_likelihood() -> None:
    from scipy.optimize import check_grad

    from sartor.predictors.gaussian_process import _loss

    archs = sampled(TOY, 15, 0)
    process = GaussianProcess(TOY)
    distances = process._distances(process._features(archs))
    y, centre = np.random.default_rng(0).normal(size=15), np.zeros(len(distances) + 1)
    at = np.linspace(-1.5, 0.5, len(centre))
    wrong = check_grad(lambda x: _loss(x, distances, y, centre)[0], lambda x: _loss(x, distances, y, centre)[1], at)
    assert wrong < 1e-4


def test_the_process_ignores_what_does_not_matter() -> None:
    archs = sampled(TOY, 80, 0)
    values = np.array([float(str(arch["a"])) for arch in archs])
    weights = dict(zip(TOY.choices, GaussianProcess(TOY).fit(archs, values)._weights, strict=True))
    assert min(weights["a"] / weights[name] for name in "bcd") > 5


def test_many_choices_share_one_length() -> None:
    archs = sampled(TOY, 30, 0)
    assert len(GaussianProcess(TOY, lengths=4).fit(archs, accuracies(archs))._weights) == 1


def test_trees_learn_an_interaction_that_a_sum_cannot() -> None:
    space = SearchSpace({"a": (0, 1), "b": (0, 1), "c": (0, 1, 2)})
    archs = sampled(space, 100, 0)
    values = np.array([float(arch["a"] == arch["b"]) for arch in archs])
    errors = [np.abs(make(space).fit(archs, values).predict(archs)[0] - values).max() for make in (GBDT, Ridge)]
    assert errors[0] < 0.05 and errors[1] > 0.3


def test_trees_split_below_forty_samples() -> None:
    archs = sampled(TOY, 25, 0)
    assert np.ptp(GBDT(TOY, members=0).fit(archs, accuracies(archs)).predict(archs)[0]) > 1
    assert (GBDT(TOY, members=0).fit(archs, accuracies(archs)).predict(archs)[1] == 0).all()


def test_cross_validation_picks_the_family() -> None:
    space = SearchSpace({f"x{i}": (0, 1, 2) for i in range(4)})
    archs = sampled(space, 60, 0)
    sums = np.array([float(sum(arch.values())) for arch in archs])  # type: ignore[arg-type]
    linear = RidgeOrSVR(space).fit(archs, sums)._model
    curved = RidgeOrSVR(space).fit(archs, np.array([float(a["x0"] == a["x1"]) for a in archs]))._model
    assert (type(linear).__name__, type(curved).__name__) == ("Ridge", "SVR")


@pytest.mark.parametrize("loss", [diffkendall, pairwise_hinge, bpr])
def test_a_loss_of_the_order_ranks_where_outliers_drown_squares(loss) -> None:  # type: ignore[no-untyped-def]
    """Values of few samples, of which some collapse to 10 %: squares learn to tell those, and little else."""
    space = SearchSpace({f"x{i}": (0, 1, 2) for i in range(6)})
    taus = {mse_or_order: 0.0 for mse_or_order in ("mse", "order")}
    for seed in range(2):
        archs, held = sampled(space, 50, seed), sampled(space, 200, 100 + seed)
        value = [np.array([_collapsing(arch.values()) for arch in some]) for some in (archs, held)]
        fine = value[1] > 20
        for name, made in (
            ("mse", MLP(space, members=2, steps=120)),
            ("order", MLP(space, members=2, steps=120, loss=loss)),
        ):
            taus[name] += kendall_tau(made.fit(archs, value[0]).predict(held)[0][fine], value[1][fine])
    assert taus["order"] > taus["mse"]


def _collapsing(options) -> float:  # type: ignore[no-untyped-def]
    numbers = list(options)
    return (
        10.0
        if numbers[0] == numbers[1] == 0
        else 90 + 0.5 * sum(w * x for w, x in zip((1, 1, 2, 3, 1, 2), numbers, strict=False))
    )


def test_scores_of_the_order_come_in_the_unit_of_the_values() -> None:
    archs, held = sampled(TOY, 60, 0), sampled(TOY, 100, 1)
    mean = MLP(TOY, loss=diffkendall).fit(archs, accuracies(archs)).predict(held)[0]
    assert abs(mean.mean() - accuracies(held).mean()) < 1 and mean.std() == pytest.approx(
        accuracies(held).std(), rel=0.3
    )


def test_the_order_of_nodes_does_not_matter_to_the_graph_network() -> None:
    """Nodes 1 and 2 of a cell without the edge between them can change places."""
    rng = random.Random(0)
    archs = [CELL.sample(rng) for _ in range(60)]
    values = np.array([_paths(arch) for arch in archs])
    model = SMALL(CELL, links=LINKS).fit(archs, values)
    some = [arch.replace(op_12="none") for arch in archs[:20]]
    swapped = [
        arch.replace(op_01=arch["op_02"], op_02=arch["op_01"], op_13=arch["op_23"], op_23=arch["op_13"])
        for arch in some
    ]
    # The edge 1 -> 2 itself is still there as a node; without links to it nothing tells the two apart.
    apart = [(one, other) for one, other in LINKS if "op_12" not in (one, other)]
    symmetric = SMALL(CELL, links=apart).fit(archs, values)
    np.testing.assert_allclose(symmetric.predict(some)[0], symmetric.predict(swapped)[0], rtol=1e-4)
    assert np.abs(model.predict(some)[0] - model.predict(swapped)[0]).max() > 1e-3


def test_the_graph_network_learns_what_paths_decide() -> None:
    rng = random.Random(0)
    archs, held = [CELL.sample(rng) for _ in range(80)], [CELL.sample(rng) for _ in range(200)]
    values, true = (np.array([_paths(arch) for arch in some]) for some in (archs, held))
    assert kendall_tau(SMALL(CELL, links=LINKS).fit(archs, values).predict(held)[0], true) > 0.5  # many values are tied


def _paths(arch) -> float:  # type: ignore[no-untyped-def]
    """Count convolutions on the paths of a cell; a path with "none" is cut."""
    worth = {"none": 0.0, "skip": 1.0, "conv": 2.0}
    paths = (("03",), ("01", "13"), ("02", "23"), ("01", "12", "23"))
    return float(sum(np.prod([worth[arch[f"op_{edge}"]] for edge in path]) ** 0.5 for path in paths))


def test_a_lone_option_changes_nothing() -> None:
    assert onehot(LONE, sampled(LONE, 3, 0))[:, 0].tolist() == [1, 1, 1]
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Ridge, {"alpha": 0.0}),
        (GaussianProcess, {"noise": 0.0}),
        (GBDT, {"leaves": 1}),
        (MLP, {"members": 0}),
        (GCN, {"dropout": 1.0}),
        (RidgeOrSVR, {"folds": 1}),
        (GCN, {"links": [("a", "nowhere")]}),
    ],
)
def test_arguments_out_of_range(make, wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        make(TOY, **wrong)
