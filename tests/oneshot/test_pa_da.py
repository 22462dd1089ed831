# SPDX-License-Identifier: Apache-2.0
"""PA&DA: norms of options and samples, the chances that follow, and the variance that they lower."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from contracts.learner_contract import tensors_of
from sartor.architecture import Architecture
from sartor.oneshot._gradients import flat_gradient, option_norms, outside, owned_weights, sample_norms
from sartor.oneshot._importance import Importance
from sartor.oneshot.pa_da import PADA, RECIPE
from sartor.supernet import activated, search_space
from sartor.task import Task, load_task
from toy_operations import Mixed
from toy_supernet import ToyNet, toy_batch


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def learner(steps: int = 40, **given: Any) -> PADA:
    torch.manual_seed(0)
    net = Mixed()
    return PADA(net, search_space(net), steps=steps, batch_size=32, **given)


def gradients(net: torch.nn.Module, arch: Any, seed: int = 0) -> None:
    images, labels = toy_batch(seed)
    with activated(net, arch):
        F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]


# ---- gradient access ------------------------------------------------------------------------------


def test_the_norm_of_an_option_is_that_of_its_own_weights() -> None:
    net = Mixed()
    arch = search_space(net).canonical(
        {"layers.0.choice": "conv3", "layers.1.choice": "pool", "layers.2.choice": "conv1"}
    )
    gradients(net, arch)
    norms = option_norms(owned_weights(net), arch)
    chosen: Any = net.layers[0]["conv3"]  # type: ignore[index]
    assert norms["layers.0.choice"] == pytest.approx(sum(float(p.grad.norm()) for p in chosen.parameters()), rel=1e-6)
    assert norms["layers.1.choice"] == 0.0 and norms["layers.2.choice"] > 0


def test_the_norm_of_an_elastic_choice_is_that_of_the_slice_in_force() -> None:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    first: Any = net.blocks.get_submodule("0")
    torch.nn.init.ones_(first.norm2.weight)
    arch = {**search_space(net).largest(), "blocks.0.hidden": 4, "blocks.0.kernel": 1, "resolution": 8}
    gradients(net, arch)
    block: Any = first
    last: Any = net.blocks.get_submodule("2")
    slices = [block.conv1.weight.grad[:4, :, 1:2, 1:2], block.norm1.weight.grad[:4], block.norm1.bias.grad[:4]]
    slices.append(block.conv2.weight.grad[:, :4])
    norms = option_norms(owned_weights(net), arch)
    assert norms["blocks.0.hidden"] == pytest.approx(sum(float(one.norm()) for one in slices), rel=1e-5)
    assert norms["resolution"] == 0.0
    owned = owned_weights(net)
    second: Any = last.conv1.weight
    assert owned["blocks.depth"][second] == {3} and owned["blocks.depth"][block.conv1.weight] == {1, 2, 3}


def test_the_shared_gradient_leaves_out_a_choices_own_weights() -> None:
    net = Mixed()
    arch = search_space(net).canonical(dict.fromkeys((f"layers.{i}.choice" for i in range(3)), "conv3"))
    gradients(net, arch)
    shared = outside(net, owned_weights(net), "layers.1.choice")
    own = {id(p) for p in net.layers[1].parameters()}
    assert len(shared) == len([*net.parameters()]) - len(own) and not own & set(map(id, shared))
    flat = flat_gradient(shared)
    assert len(flat) == sum(p.numel() for p in shared)
    assert float(flat.norm()) == pytest.approx(
        math.sqrt(sum(float(p.grad.norm()) ** 2 for p in shared if p.grad is not None))
    )


def test_the_norm_of_a_sample_is_softmax_minus_onehot() -> None:
    net = Mixed()
    images, labels = toy_batch(0)
    logits = net(images)
    logits.retain_grad()
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    expected = (logits.softmax(1) - F.one_hot(labels, 4)).norm(dim=1)
    torch.testing.assert_close(sample_norms(logits), expected, atol=1e-6, rtol=0)


# ---- chances --------------------------------------------------------------------------------------


def test_chances_are_a_mix_with_equal_ones() -> None:
    one = Importance(4)
    assert one.chances.tolist() == [0.25] * 4
    one.note(torch.tensor([0, 1, 1, 2]), torch.tensor([1.0, 2.0, 4.0, 0.0]))  # the fourth is never drawn
    for tau in (0.0, 0.3, 0.9, 1.0):
        one.refresh(tau)
        assert float(one.chances.sum()) == pytest.approx(1.0) and float(one.chances.min()) >= (1 - tau) / 4
        assert float(one.chances.min()) > 0  # without weights: the least norm, not 0
    norms = torch.tensor([1.0, 3.0, 1.0, 4 / 3])  # of the third the least, of the fourth the mean of the others
    assert one.chances.tolist() == pytest.approx((norms / norms.sum()).tolist())


def test_means_are_of_pairs_within_an_epoch_and_old_values_are_kept() -> None:
    one = Importance(3)
    for value in (8.0, 4.0, 2.0):
        one.note(torch.tensor([0]), torch.tensor([value]))
    one.note(torch.tensor([1]), torch.tensor([5.0]))
    assert one.means.tolist() == [(((8 + 4) / 2) + 2) / 2, 5.0, -1.0]
    one.refresh(0.5)
    one.note(torch.tensor([0]), torch.tensor([1.0]))
    assert one.means.tolist() == [1.0, 5.0, -1.0]


def test_norms_that_are_not_finite_are_passed_over() -> None:
    one = Importance(3)
    for worst in (math.inf, math.nan):
        one.note(torch.tensor([0, 1, 1]), torch.tensor([2.0, 3.0, worst]))
    assert one.means.tolist() == [2.0, 3.0, -1.0]
    one.note(torch.tensor([2]), torch.tensor([math.inf]))
    one.refresh(1.0)
    assert one.chances.tolist() == pytest.approx([2 / 7.5, 3 / 7.5, 2.5 / 7.5])


def test_the_first_epoch_is_exactly_uniform_and_tau_rises_to_one() -> None:
    one, taus = learner(steps=40, epoch_steps=10), []
    for step in range(40):
        if step < 10:
            assert all(set(each.chances.tolist()) == {0.25} for each in one.paths.values())
        taus.append(one.step(toy_batch(step))["tau"])
    assert taus[::10] == [0.0, 0.25, 0.5, 0.75] and one.tau == 1.0
    (chances,) = (each.chances for each in one.paths.values())  # layers share theirs
    assert float(chances.sum()) == pytest.approx(1.0)
    assert chances[0] == chances[1] == min(chances[2:]) < max(chances[2:])  # two have no weights
    assert [*learner(shared=False).paths] == [f"layers.{i}.choice" for i in range(3)]


def test_the_recipe_is_that_of_the_authors_code() -> None:
    assert (RECIPE.lr, RECIPE.lr_batch, RECIPE.weight_decay, RECIPE.clip_norm) == (0.05, 256, 2.5e-4, 5.0)
    assert learner(steps=5000).epoch_steps == 20  # 250 epochs


# ---- samples --------------------------------------------------------------------------------------


def digits_learner(task: Task) -> tuple[PADA, Any]:
    torch.manual_seed(0)
    net = Mixed()
    net.head = torch.nn.Linear(6, 10)
    one = PADA(net, search_space(net), steps=60, batch_size=64)
    return one, one.data(task.train)


def test_samples_of_large_gradients_are_drawn_more_often(task: Task) -> None:
    one, data = digits_learner(task)
    assert one.epoch_steps == len(task.train) // 64
    for step in range(one.epoch_steps + 1):
        one.step(data.batch(step, 64))
    assert one.samples is not None
    seen = one.samples.means >= 0
    assert 0.5 < float(seen.double().mean()) < 0.75  # with replacement, 1 - 1/e of them
    assert len(set(one.samples.chances.tolist())) > 500
    assert float(one.samples.chances.sum()) == pytest.approx(1.0)


def test_a_resumed_training_draws_the_same_samples_and_paths(task: Task) -> None:
    one, data = digits_learner(task)
    for step in range(30):
        one.step(data.batch(step, 64))
    other, again = digits_learner(task)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in range(30, 50):
        batch, same = data.batch(step, 64), again.batch(step, 64)
        assert torch.equal(batch[2], same[2])
        assert one.step(batch) == other.step(same)
    assert all(map(torch.equal, tensors_of(one).values(), tensors_of(other).values()))


# ---- the paper's fact -----------------------------------------------------------------------------


def test_drawing_by_importance_lowers_the_variance_of_an_unbiased_gradient() -> None:
    """Exactly, over all paths and samples of a frozen supernet: E||g - E g||^2 with weights 1 / (n p)."""
    torch.manual_seed(1)
    net = Mixed(layers=1, width=4).eval()
    options: list[Architecture] = [Architecture({"layers.0.choice": o}) for o in ("identity", "pool", "conv1", "conv3")]
    images, labels = toy_batch(0, 48)
    images[::8] *= 4.0  # a few samples that matter more
    mean = (images - images.mean()) / images.std()
    every = []
    for arch in options:
        for i in range(48):
            net.zero_grad()
            with activated(net, arch):
                features = net(torch.cat([mean[i : i + 1], mean[:4]]))  # a batch of its own for the norms
                F.cross_entropy(features[:1], labels[i : i + 1]).backward()  # type: ignore[no-untyped-call]
            every.append(flat_gradient([*net.parameters()]).double())
    table = torch.stack(every).view(4, 48, -1)
    paths, samples = table.norm(dim=2).mean(1), table.norm(dim=2).mean(0)

    def variance(p: torch.Tensor, q: torch.Tensor) -> float:
        chances = p[:, None] / p.sum() * q / q.sum()
        total = (table.norm(dim=2) ** 2 / (chances * table.shape[0] ** 2 * table.shape[1] ** 2)).sum()
        return float(total - table.mean((0, 1)).norm() ** 2)

    equal = torch.ones(4), torch.ones(48)
    plain, by_data, both = variance(*equal), variance(equal[0], samples), variance(paths, samples)
    assert by_data < plain and both < plain
