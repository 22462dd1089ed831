# SPDX-License-Identifier: Apache-2.0
"""Splits: every architecture in one part, children that begin as their parent, and groups by gradients."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contracts.learner_contract import tensors_of
from sartor.architecture import Architecture
from sartor.oneshot import Recipe
from sartor.oneshot._gradients import owned_weights
from sartor.oneshot._training import Training
from sartor.oneshot.few_shot import FewShot
from sartor.oneshot.gm_nas import GMNAS
from sartor.oneshot.splitting import Branches, _distances, gradient_distances, minimum_cut, part, splittable
from sartor.space import NothingFound, SearchSpace
from sartor.supernet import activated, search_space
from toy_operations import Mixed
from toy_supernet import ToyNet, toy_batch

RECIPE = Recipe(optimizer="adam", lr=0.01, lr_batch=32, schedule="cosine", dropout=0.0)
GATED = SearchSpace(
    {"depth": (1, 2, 3), "k2": (3, 5, 7), "k3": (3, 5), "op": ("a", "b")},
    {"k2": ((("depth", (2, 3)),),), "k3": ((("depth", (3,)), ("op", ("b",))),)},
)


def everything(space: SearchSpace) -> set[Architecture]:
    combinations = itertools.product(*space.choices.values())
    found = {space.canonical(dict(zip(space.choices, one, strict=True))) for one in combinations}
    return {arch for arch in found if space.constraint is None or space.constraint(arch)}


def branches(net: torch.nn.Module, space: SearchSpace | None = None) -> Branches:
    training = Training(net, steps=20, batch_size=32, recipe=RECIPE)
    return Branches(space or search_space(net), training)


# ---- the partition --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("k2",), ("k3",), ("depth",), ("k2", "op"), ("depth", "k2"), ("op", "k3", "k2")])
def test_the_parts_of_a_space_share_nothing_and_miss_nothing(names: tuple[str, ...]) -> None:
    parts = [GATED]
    for name in names:
        parts = [part(one, name, group) for one in parts for group in (GATED.choices[name][1:], GATED.choices[name][:1])
                 if set(group) & set(one.choices[name])]  # fmt: skip
    each = [everything(one) for one in parts]
    assert sum(map(len, each)) == len(set().union(*each)) == GATED.size
    assert set().union(*each) == everything(GATED)


def test_every_architecture_is_routed_to_the_one_part_that_has_it() -> None:
    net = ToyNet()
    space = search_space(net)
    found = branches(net)
    found.split(found.root, "blocks.2.kernel", [[1], [3]])  # matters at depth 3 alone
    for leaf in [*found.leaves]:
        found.split(leaf, "width", [[4, 8], [6]])
    assert len(found) == 4
    rng = random.Random(0)
    for arch in (space.sample(rng) for _ in range(300)):
        holders = [leaf for leaf in found.leaves if arch in leaf.space]
        assert holders == [found.of(arch)]
    for leaf in found.leaves:
        assert all(found.of(leaf.space.sample(rng)) is leaf for _ in range(20))
    with pytest.raises(ValueError, match="do not divide the options"):
        found.split(found.leaves[0], "mix.choice", [["conv"]])
    with pytest.raises(ValueError, match="do not divide the options"):
        found.split(found.leaves[0], "mix.choice", [["conv", "none"], ["none"]])


# ---- children -------------------------------------------------------------------------------------


def test_children_begin_as_their_parent_and_go_on_apart() -> None:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    found, images = branches(net), toy_batch(50)[0]
    for step in range(6):
        found.train(0, toy_batch(step), F.cross_entropy, random.Random(step))
    parent = found.root.training
    found.split(found.root, "width", [[4], [6, 8]])
    for leaf in found.leaves:
        arch = leaf.space.sample(random.Random(3))
        outputs = []
        for one in (parent.net.eval(), leaf.training.net.eval()):
            with activated(one, arch), torch.no_grad():
                outputs.append(one(images))
        assert torch.equal(*outputs)
        assert leaf.training.done == 6 and leaf.training.learning_rate == parent.learning_rate
        ours, theirs = leaf.training.optimizer.state_dict(), parent.optimizer.state_dict()
        for index, state in theirs["state"].items():
            assert all(torch.equal(state[name], ours["state"][index][name]) for name in state)
    before = {name: p.clone() for name, p in found.leaves[1].training.net.state_dict().items()}
    moments = [state["step"].clone() for state in found.leaves[1].training.optimizer.state.values()]
    found.train(0, toy_batch(7), F.cross_entropy, random.Random(7))
    assert all(torch.equal(p, before[name]) for name, p in found.leaves[1].training.net.state_dict().items())
    assert moments == [state["step"] for state in found.leaves[1].training.optimizer.state.values()]
    assert found.effort == (7, 0, 7)


# ---- gradients and groups -------------------------------------------------------------------------


def test_distances_are_symmetric_and_the_matching_changes_nothing() -> None:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.5)
    found = branches(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    matrix, loss = gradient_distances(found.root, "blocks.0.kernel", toy_batch(0), F.cross_entropy, random.Random(0))
    assert matrix.shape == (2, 2) and np.array_equal(matrix, matrix.T) and not matrix.diagonal().any() and loss > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not found.root.training.optimizer.state
    assert found.effort == (2, 0, 0)
    only = part(found.root.space, "blocks.depth", (1,))
    with pytest.raises(NothingFound, match=r"has 'blocks.2.kernel' active"):
        gradient_distances(branches(net, only).root, "blocks.2.kernel", toy_batch(0), F.cross_entropy, random.Random(0))


def test_the_set_of_gradients_leaves_the_split_choice_out() -> None:
    net = Mixed(twin=True)
    found = branches(net)
    before = gradient_distances(found.root, "layers.1.choice", toy_batch(0), F.cross_entropy, random.Random(0))[0]
    layer: Any = net.layers[1]
    for p in layer["conv3"].parameters():
        p.register_hook(lambda gradient: gradient * 100.0)
    after = gradient_distances(found.root, "layers.1.choice", toy_batch(0), F.cross_entropy, random.Random(0))[0]
    assert np.array_equal(before, after)


def test_a_copy_of_an_operation_is_at_no_distance_and_in_the_same_group() -> None:
    torch.manual_seed(0)
    net = Mixed(twin=True)
    found = branches(net)
    options = found.root.space.choices["layers.0.choice"]
    one, two = options.index("conv1"), options.index("conv3")
    for seed in range(3):
        batch, rng = toy_batch(seed), random.Random(seed)
        matrix = gradient_distances(found.root, "layers.0.choice", batch, F.cross_entropy, rng)[0]
        assert matrix[one, two] == pytest.approx(0.0, abs=1e-5) and matrix.max() > 1e-3
        groups = minimum_cut(matrix)[:2]
        assert any(one in group and two in group for group in groups)


def test_a_gradient_that_overflows_says_nothing_of_distances() -> None:
    matrix = _distances(torch.tensor([[1.0, 0.0], [torch.inf, 1.0], [0.0, 1.0]]))
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_the_minimum_cut_is_balanced_and_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 4, 5, 6):
        matrix = rng.random((size, size))
        matrix = matrix + matrix.T
        np.fill_diagonal(matrix, 0)
        one, two, score = minimum_cut(matrix)
        assert sorted(one + two) == [*range(size)] and abs(len(one) - len(two)) <= 1
        assert score == pytest.approx(matrix[np.ix_(one, two)].mean())
        within = [
            matrix[np.ix_(first, first)].sum() + matrix[np.ix_(rest, rest)].sum()
            for first in map(list, itertools.combinations(range(size), size // 2))
            for rest in [[i for i in range(size) if i not in first]]
        ]
        best = matrix[np.ix_(one, one)].sum() + matrix[np.ix_(two, two)].sum()
        assert best == pytest.approx(min(within))
    with pytest.raises(ValueError, match="make no two groups"):
        minimum_cut([[0.0]])


# ---- the learners ---------------------------------------------------------------------------------


def few_shot(steps: int = 24, **given: Any) -> FewShot:
    torch.manual_seed(0)
    net = Mixed()
    return FewShot(net, search_space(net), steps=steps, batch_size=32, recipe=RECIPE, **given)


def gm_nas(steps: int = 42, **given: Any) -> GMNAS:
    torch.manual_seed(0)
    net = Mixed()
    given = {"stages": (1, 1, 2), "matching": 2, **given}
    return GMNAS(net, search_space(net), steps=steps, batch_size=32, recipe=RECIPE, **given)


def test_few_shot_trains_the_supernet_and_then_each_part_half_as_long() -> None:
    learner = few_shot()
    assert (learner.first, learner.parts, learner.each) == (8, 4, 4)  # 8 + 4 * 4
    parts = [learner.step(toy_batch(step))["parts"] for step in range(24)]
    assert parts == [1.0] * 8 + [4.0] * 16
    assert [leaf.training.done for leaf in learner.branches.leaves] == [4] * 4
    assert learner.effort == (24, 0, 24) and learner.passes_per_step == 1.0
    (name,) = learner.choices
    held = [leaf.space.choices[name] for leaf in learner.branches.leaves]
    assert held == [(option,) for option in learner.space.choices[name]]
    nets = {id(learner.network_for(learner.space.sample(random.Random(i)))) for i in range(60)}
    assert len(nets) == 4 and id(learner.net) not in nets
    two = few_shot(choices=("layers.0.choice", "layers.2.choice"), steps=90)
    assert two.parts == 16
    for wrong in ({"choices": ("stem",)}, {"choices": 4}, {"part": 0.0}, {"steps": 1}):
        with pytest.raises(ValueError, match=r"name others|more than 0|too few"):
            few_shot(**wrong)


def test_gm_nas_splits_in_two_at_each_checkpoint_and_counts_what_it_matched() -> None:
    learner = gm_nas()
    # 38 steps of training by shares 1, 2 and 8 of 11; 2 matchings of 2 batches between them
    assert learner.phases == [(0, 3), (5, 12), (14, 42)]
    parts = [learner.step(toy_batch(step))["parts"] for step in range(42)]
    assert parts == [1.0] * 5 + [2.0] * 9 + [4.0] * 28
    assert learner.effort.updates == 38
    matched = 2 * 12 + 2 * 2 * 8  # batches, parts, options of the choices that are not split
    assert learner.effort.passes == 38 + matched == learner.passes_per_step * 42
    for leaf in learner.branches.leaves:
        assert len(leaf.path) == 2 == len({name for name, _ in leaf.path})
        assert all(len(options) == 2 for _, options in leaf.path)
    total = set().union(*[everything(leaf.space) for leaf in learner.branches.leaves])
    assert total == everything(learner.space)
    with pytest.raises(ValueError, match="3 splits need as many choices, and there are 1"):
        gm_nas(stages=(1, 1, 1, 1), choices=("layers.0.choice",))
    for few in (3, 6):
        with pytest.raises(ValueError, match="give more steps"):
            gm_nas(steps=few)
    with pytest.raises(ValueError, match="'stem' is no choice"):
        gm_nas(choices=("stem", "layers.0.choice"))


def test_the_last_parts_may_begin_again() -> None:
    learner = gm_nas(restart=True)
    initial = {name: value.clone() for name, value in learner.net.state_dict().items()}
    for step in range(14):
        learner.step(toy_batch(step))
    assert learner.phases[-1][0] == 14 and len(learner.branches) == 2
    resumed = gm_nas(restart=True)
    resumed.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, resumed):
        one.step(toy_batch(14))
    untouched = learner.branches.leaves[3].training
    assert untouched.done == 0 and not untouched.optimizer.state
    assert all(torch.equal(value, initial[name]) for name, value in untouched.net.state_dict().items())
    assert all(map(torch.equal, tensors_of(learner).values(), tensors_of(resumed).values()))


@pytest.mark.parametrize("make", [few_shot, gm_nas])
@pytest.mark.parametrize("stop", [3, 4, 9, 13, 20])
def test_a_split_training_resumes_exactly(make: Any, stop: int) -> None:
    one, other = make(), make()
    for step in range(stop):
        one.step(toy_batch(step))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in range(stop, stop + 4):
        assert one.step(toy_batch(step)) == other.step(toy_batch(step))
    assert one.effort == other.effort
    assert all(map(torch.equal, tensors_of(one).values(), tensors_of(other).values()))


def test_matching_batches_and_passes_follow_the_length_of_the_training() -> None:
    long = GMNAS(
        Mixed(), search_space(Mixed()), steps=400_000, batch_size=32, choices=["layers.0.choice", "layers.1.choice"]
    )
    assert long.phases[0][1] + 100 == long.phases[1][0]  # the paper's, over 20 + 20 + 50 epochs of a part
    short = gm_nas(matching=None)
    assert short.phases[0][1] + 4 == short.phases[1][0]


def test_only_what_can_be_compared_is_split_unasked() -> None:
    net = ToyNet()
    space = search_space(net)
    able = splittable(space, owned_weights(net), net)
    assert "blocks.1.kernel" not in able and {"blocks.0.kernel", "mix.choice", "width"} <= set(able)
