# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.differentiable.alphas import Alphas
from sartor.differentiable.darts import DARTS
from sartor.differentiable.darts_pt import DARTSPT, accuracy_then_loss
from sartor.differentiable.darts_pt_fixed import FixedAlphas
from sartor.differentiable.descent import Recipe, logits_of
from sartor.differentiable.diagnostics import undisturbed
from sartor.differentiable.pc_darts import PCDARTS, PartialChannels
from sartor.differentiable.relaxations import softmax
from sartor.fit import fit
from sartor.nn import OneOf
from sartor.run import Run
from sartor.spaces.cell_operations import OPERATIONS
from sartor.spaces.darts import DartsNetwork
from sartor.supernet import activated, search_space
from toy_slots import Pair, Slots, toy_pair
from toy_supernet import toy_batch

TWO = {name: OPERATIONS[name] for name in ("skip_connect", "sep_conv_3x3")}


def read_out(search_steps: int = 2, **arguments: Any) -> DARTSPT:
    net = Slots()
    search = DARTS(net, search_space(net), steps=search_steps, recipe=Recipe(lr=0.2))
    return DARTSPT(search, **{"interval": 2, **arguments})


class Counted:
    """A metric that counts its calls, and prefers what it is told to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, labels: Tensor) -> float:
        self.calls += 1
        return accuracy_then_loss(logits, labels)


class Pairs:
    """What `fit` reads."""

    def batch(self, step: int, size: int, *, augment: bool = False) -> Pair:
        return toy_pair(step, size)


def test_alpha_prefers_the_estimate_of_less_variance() -> None:
    """The paper's proposition 1: the better the input, the more weight goes to the skip."""
    generator = torch.Generator().manual_seed(0)
    skip = 0.5 * torch.randn(20_000, generator=generator)
    conv = torch.randn(20_000, generator=generator)
    conv = torch.sub(conv, skip * (conv @ skip) / (skip @ skip))  # independent

    class Conv(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return conv

    net = OneOf({"conv": Conv(), "skip": nn.Identity()}, name="edge")
    alphas = Alphas(net, search_space(net))
    for _ in range(300):
        with activated(net, alphas.assignment(softmax(alphas.logits))):
            loss = net(skip).var()
        (gradient,) = torch.autograd.grad(loss, alphas.table)
        with torch.no_grad():
            alphas.table.sub_(gradient)
    expected = skip.var() / (skip.var() + conv.var())
    assert alphas.probabilities()[0, 0] == pytest.approx(float(expected), rel=0.02)
    assert alphas.architecture()["edge"] == "skip"


def test_a_masked_forward_is_that_without_the_operation() -> None:
    learner = read_out()
    images = toy_pair(0)[0][0]
    masked = learner.weights().detach().clone()
    masked[1, 2] = 0.0
    with undisturbed(learner.net), torch.no_grad():
        found = logits_of(learner.net, learner.mixture(masked), images)
        slots: Any = learner.net.slots
        states = learner.net.stem(images)  # type: ignore[operator]
        for row, slot in enumerate(slots):
            terms = [
                w * op(states)
                for i, (w, op) in enumerate(zip(learner.weights()[row], slot.values(), strict=True))
                if (row, i) != (1, 2)
            ]
            states = torch.stack(terms).sum(0)
        wanted = learner.net.head(torch.relu(states).mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(found, wanted)


def test_deciding_changes_neither_alphas_nor_weights_nor_statistics() -> None:
    learner = read_out(0)
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    table = learner.alphas.table.detach().clone()
    learner._operation("slot_1", [toy_batch(0)])
    assert all(torch.equal(value, before[name]) for name, value in learner.net.state_dict().items())
    assert torch.equal(learner.alphas.table, table)


def test_the_operation_that_is_missed_most_is_kept() -> None:
    """Only conv_3x3 of one slot lets the labels through: alpha prefers the skip, and perturbation does not."""
    learner = read_out(0, validation=[toy_batch(0, 256)], metric=lambda logits, labels: float(logits.std()))
    slots: Any = learner.net.slots
    slots[1]["skip"] = slots[1]["pool"] = slots[1]["conv_1x1"] = nn.Threshold(1e9, 0.0)
    with torch.no_grad():
        learner.alphas.table[1, 0] = 3.0
    assert learner.search.architecture()["slot_1"] == "skip"  # type: ignore[attr-defined]
    assert learner._operation("slot_1", learner.validation or []) == "conv_3x3"


def test_after_all_rounds_every_choice_is_decided_with_one_evaluation_an_option() -> None:
    metric = Counted()
    learner = read_out(validation=[toy_batch(0), toy_batch(1)], metric=metric)
    assert learner.steps == 2 + 2 * (3 - 1) + 1
    left = [learner.step(toy_pair(step))["undecided"] for step in range(learner.steps)]
    assert left == [3, 3, 2, 2, 1, 1, 0]
    assert metric.calls == 3 * 4 * 2
    assert dict(learner.architecture()) == learner.decided
    assert learner.weights().sort(1).values.tolist() == [[0, 0, 0, 1]] * 3
    after = {name: value.clone() for name, value in learner.net.named_parameters()}
    learner.step(toy_pair(9))  # nothing is left to do
    assert all(torch.equal(value, after[name]) for name, value in learner.net.named_parameters())


def test_equal_seeds_decide_equally_and_seeds_give_the_order() -> None:
    def decided(seed: int) -> list[tuple[str, object]]:
        learner = read_out(seed=seed)
        for step in range(learner.steps):
            learner.step(toy_pair(step))
        return list(learner.decided.items())

    assert decided(0) == decided(0)
    assert len({tuple(map(tuple, read_out(seed=seed).rounds)) for seed in range(8)}) > 1


def test_the_tuning_starts_at_a_tenth_of_the_learning_rate_and_with_new_momentum() -> None:
    learner = read_out()
    rates = [learner.step(toy_pair(step))["learning_rate"] for step in range(learner.steps)]
    assert rates[0] == 0.2
    assert rates[2] == pytest.approx(0.02)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learner.descent.alpha_optimizer is learner.search.descent.alpha_optimizer
    assert learner.descent.weight_optimizer is not learner.search.descent.weight_optimizer


def test_a_run_that_was_stopped_between_decisions_ends_alike(tmp_path: Any) -> None:
    whole, half, rest = read_out(), read_out(), read_out()
    fit(whole, Pairs(), steps=whole.steps, batch_size=8, progress=lambda *_: None)
    for learner, steps in ((half, 4), (rest, rest.steps)):
        with Run.create(tmp_path, {}, resume=learner is rest) as run:
            fit(learner, Pairs(), steps=steps, batch_size=8, run=run, every=1, progress=lambda *_: None)
    assert rest.decided == whole.decided
    assert list(rest.decided) == list(whole.decided)
    for one, other in zip(rest.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_fixed_alphas_stay_uniform_through_training_and_read_out() -> None:
    net = Slots()
    learner = DARTSPT(FixedAlphas(net, search_space(net), steps=2), interval=1, tune_alphas=False)
    for step in range(learner.steps):
        learner.step(toy_pair(step))
    assert not learner.alphas.table.any()
    assert learner.architecture() in learner.alphas.space


def test_the_loss_decides_between_equal_accuracies_alone() -> None:
    labels = torch.tensor([0, 1])
    sure, unsure, wrong = torch.eye(2) * 5, torch.eye(2) * 0.1, torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    found = [accuracy_then_loss(logits, labels) for logits in (sure, unsure, wrong)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[1] < 1e-4
    assert found[1] - found[2] > 0.49


def test_arguments_that_do_not_fit_say_so() -> None:
    with pytest.raises(ValueError, match="interval is 0"):
        read_out(interval=0)
    with pytest.raises(ValueError, match="name each of slot_0, slot_1, slot_2 once"):
        read_out(side_by_side=[["slot_0"], ["slot_1"]])
    assert read_out(side_by_side=[["slot_0"], ["slot_1", "slot_2"]]).steps == 2 + 2 + 1


class TestCells:
    def learner(self, partial: bool = False, **arguments: Any) -> DARTSPT:
        torch.manual_seed(0)
        mixed = {"mixed": PartialChannels(2)} if partial else {}
        net = DartsNetwork(4, 1, (8, 8), width=4, cells=3, operations=TWO, **mixed)  # type: ignore[arg-type]
        search: Any = PCDARTS if partial else DARTS
        return DARTSPT(search(net, search_space(net), steps=0), interval=1, **arguments)

    def test_rounds_are_an_edge_of_each_cell_and_then_a_node_of_each(self) -> None:
        learner = self.learner()
        assert len(learner.rounds) == 14 + 4
        assert learner.steps == 14 + 4
        kinds = [sorted(name.rpartition("_")[0] for name in one) for one in learner.rounds]
        assert kinds == [["normal_op", "reduce_op"]] * 14 + [["normal_inputs", "reduce_inputs"]] * 4

    @pytest.mark.parametrize("partial", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["darts", "pc_darts"])
    def test_every_edge_ends_with_one_operation_and_every_node_with_two_edges(self, partial: bool) -> None:
        metric = Counted()
        learner = self.learner(partial, metric=metric)
        for step in range(learner.steps):
            learner.step(toy_pair(step, 4))
        # each edge tries 2 operations; a node of n edges tries n, n - 1, ... 3 of them
        assert metric.calls == 2 * (14 * 2 + 0 + 3 + (4 + 3) + (5 + 4 + 3))
        arch = learner.architecture()
        assert arch in learner.alphas.space
        for name, inputs in learner.alphas.inputs.items():
            kept = arch[name]
            assert isinstance(kept, tuple)
            assert len(kept) == 2
            assert inputs >= 2

    def test_the_edge_that_is_missed_least_goes_first(self) -> None:
        learner = self.learner(metric=lambda logits, labels: 0.0)
        assert learner._kept_edges("normal_inputs_4", [toy_batch(0, 4)]) == (2, 3)  # the first of equals goes
