# SPDX-License-Identifier: Apache-2.0
"""AlphaNet's loss: its value is the divergence, its gradient the surrogate's, which without a clip are one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.oneshot.divergences import adaptive_alpha_divergence, alpha_divergence, kl

ALPHAS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def logits(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def written_out(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """The definition, with the gradient that automatic differentiation gives it."""
    p, q = teacher.softmax(1), student.softmax(1)
    if alpha == 0.0:
        return (q * (q / p).log()).sum(1).mean()
    if alpha == 1.0:
        return (p * (p / q).log()).sum(1).mean()
    return (q * ((p / q) ** alpha - 1)).sum(1).mean() / (alpha * (alpha - 1))


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_and_gradient_without_a_clip_are_those_of_the_definition(alpha: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    ours, definition = alpha_divergence(student, teacher, alpha), written_out(student, teacher, alpha)
    torch.testing.assert_close(ours, definition)
    torch.testing.assert_close(gradient(ours, student), gradient(definition, student))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_is_the_numeric_one(alpha: float) -> None:
    student, teacher = logits(2), logits(3)
    found = gradient(alpha_divergence(student.requires_grad_(), teacher, alpha), student)
    with torch.no_grad():
        for place in ((0, 0), (3, 2)):
            step = torch.zeros_like(student)
            step[place] = 1e-5
            there, back = (alpha_divergence(student + sign * step, teacher, alpha) for sign in (1, -1))
            assert float(there - back) / 2e-5 == pytest.approx(float(found[place]), abs=1e-6)


def test_alpha_one_is_the_divergence_of_kullback_and_leibler_clip_or_not() -> None:
    student, teacher = logits(0, 3.0).requires_grad_(), logits(1, 3.0)
    for clip in (5.0, float("inf")):
        ours, theirs = alpha_divergence(student, teacher, 1.0, clip), kl(student, teacher)
        torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=0, atol=1e-6)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_predictions_have_no_divergence_and_no_gradient(alpha: float) -> None:
    student = logits(0).requires_grad_()
    for loss in (
        alpha_divergence(student, student.detach(), alpha, 5.0),
        adaptive_alpha_divergence(student, student.detach()),
    ):
        assert float(loss.detach()) == pytest.approx(0.0, abs=1e-9)
        assert float(gradient(loss, student).abs().max()) < 1e-9


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_clip_bounds_the_gradient_where_a_prediction_vanishes(alpha: float) -> None:
    for student, teacher in ((200.0, 0.0), (0.0, 200.0), (200.0, -200.0)):  # q, p, or both near 0 and 1
        one = torch.tensor([[student, 0.0, 0.0]]).requires_grad_()
        other = torch.tensor([[teacher, 0.0, 0.0]])
        loss = alpha_divergence(one, other, alpha, 5.0)
        found = gradient(loss, one)
        assert bool(loss.isfinite()) and bool(found.isfinite().all())
        assert alpha == 0.0 or float(found.abs().max()) <= 5.0 / min(abs(alpha), 1.0)


def test_the_larger_side_is_taken_for_each_sample() -> None:
    teacher = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    student = torch.tensor([[1.0, 0.0, 0.0], [6.0, 0.0, 0.0]]).requires_grad_()  # less certain, and more certain
    sides = [
        torch.stack([alpha_divergence(s[None], t[None], a) for s, t in zip(student, teacher, strict=True)])
        for a in (-1.0, 1.0)
    ]
    assert (sides[0] > sides[1]).tolist() == [True, False]
    adaptive = adaptive_alpha_divergence(student, teacher, clip=float("inf"))
    expected = (sides[0][0] + sides[1][1]) / 2
    torch.testing.assert_close(adaptive, expected)
    torch.testing.assert_close(gradient(adaptive, student), gradient(expected, student))


def test_alpha_zero_can_be_a_side() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    both = adaptive_alpha_divergence(student, teacher, least=0.0, most=0.0, clip=float("inf"))
    torch.testing.assert_close(
        both, F.kl_div(teacher.log_softmax(1), student.log_softmax(1), reduction="batchmean", log_target=True)
    )


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    (found,) = torch.autograd.grad(adaptive_alpha_divergence(student, teacher), teacher, allow_unused=True)
    assert found is None
