# SPDX-License-Identifier: Apache-2.0
"""SD-DARTS: DARTS without lambda, what the teacher may not touch, and what voting does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sartor.differentiable.darts import DARTS
from sartor.differentiable.descent import Recipe, logits_of
from sartor.differentiable.sd_darts import SDDARTS, divergence, vote
from sartor.supernet import search_space
from toy_slots import Slots, toy_pair

SPACE = search_space(Slots())
RECIPE = Recipe(lr=0.2)


def learner(**keywords: Any) -> SDDARTS:
    return SDDARTS(Slots(), SPACE, **{"steps": 20, "recipe": RECIPE, "ramp": 0.0, **keywords})


def after(steps: int, made: Any) -> Any:
    for step in range(steps):
        made.step(toy_pair(step))
    return made


def state(made: Any) -> list[Tensor]:
    return [*made.net.state_dict().values(), *made.alphas.state_dict().values()]


def test_without_lambda_it_is_darts_bit_for_bit() -> None:
    darts = after(6, DARTS(Slots(), SPACE, steps=20, recipe=RECIPE, seed=3))
    mine = after(6, learner(strength=0.0, every=2, seed=3))
    assert all(map(torch.equal, state(darts), state(mine)))
    other = after(6, learner(every=2, seed=3))
    assert not all(map(torch.equal, state(darts), state(other)))


def test_the_teacher_has_no_gradient_and_touches_nothing() -> None:
    made = after(5, learner(every=2))
    before = [one.clone() for one in state(made)]
    kept = [one.clone() for past in made.past for one in (*past["weights"].values(), past["mixture"])]
    teacher = made.teacher(toy_pair(9)[0][0])
    assert not teacher.requires_grad
    torch.testing.assert_close(teacher.sum(1), torch.ones(len(teacher)))
    assert all(map(torch.equal, before, state(made)))
    assert not any(one.requires_grad for past in made.past for one in past["weights"].values())
    made.step(toy_pair(9))
    now = [one for past in made.past[:2] for one in (*past["weights"].values(), past["mixture"])]
    assert all(map(torch.equal, kept, now))


def test_a_teacher_that_is_the_student_has_no_divergence() -> None:
    made = after(3, learner(every=100))
    made.snapshot()
    images = toy_pair(5)[0][0]
    teacher = made.teacher(images)
    student = logits_of(made.net, made.mixture(), images)
    assert divergence(teacher, student, made.temperature).item() == pytest.approx(0.0, abs=1e-6)


def test_the_ring_is_bounded_and_starts_empty() -> None:
    made = learner(every=2, snapshots=3)
    numbers = sum(p.numel() for p in made.net.parameters())
    told, lengths = [], []
    for step in range(12):
        told.append(made.step(toy_pair(step))["distillation"])
        lengths.append(len(made.past))
    assert lengths == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert told[:2] == [0.0, 0.0]
    assert all(value > 0.0 for value in told[2:])
    assert sum(one.numel() for past in made.past for one in past["weights"].values()) == 3 * numbers


def test_lambda_rises_over_the_ramp() -> None:
    made = learner(every=1, ramp=0.5, strength=2.0)
    weights = []
    for step in range(12):
        weights.append(made.weight)
        made.step(toy_pair(step))
    assert weights == pytest.approx([min(step / 10, 1.0) * 2.0 for step in range(12)])


def test_the_soft_vote_is_the_mean_and_the_hard_one_the_majority() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]], [[1.0, 0.0, 0.5]]])
    torch.testing.assert_close(vote(logits, 2.0), (logits / 2.0).softmax(2).mean(0))
    torch.testing.assert_close(vote(logits, 2.0, 0.3), torch.tensor([[0.8, 0.1, 0.1]]))
    torch.testing.assert_close(vote(logits[:2], 2.0, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))  # of equals the likelier


def test_the_divergence_is_temperature_squared_times_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 4, generator=generator).softmax(1)
    logits = torch.randn(5, 4, generator=generator)
    student = (logits / 3.0).softmax(1)
    expected = 9.0 * (teacher * (teacher / student).log()).sum(1).mean()
    torch.testing.assert_close(divergence(teacher, logits, 3.0), expected)


def test_voting_lowers_the_variance_of_the_teacher() -> None:
    """Of snapshots that err on their own, about to a quarter with four of them."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1, 64, 6, generator=generator)
    drawn = [truth + 0.3 * torch.randn(4, 64, 6, generator=generator) for _ in range(200)]
    variance = [torch.stack([vote(one[:k], 2.0).log() for one in drawn]).var(0).mean().item() for k in (1, 2, 4)]
    assert variance == sorted(variance, reverse=True)
    assert 0.2 < variance[2] / variance[0] < 0.3


def test_a_resumed_ring_is_its_own() -> None:
    one, two = after(5, learner(every=2)), learner(every=2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    one.step(toy_pair(5))
    two.step(toy_pair(5))
    assert all(map(torch.equal, state(one), state(two)))
    assert one.past[0]["mixture"] is not two.past[0]["mixture"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        learner(snapshots=0)
    with pytest.raises(ValueError, match="soft"):
        learner(voting="loud")
    for wrong in ({"every": 0}, {"ramp": 5}):
        with pytest.raises(ValueError, match="a share of the steps, and at least 1"):
            learner(**wrong)
