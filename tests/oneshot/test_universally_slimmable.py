# SPDX-License-Identifier: Apache-2.0
"""Universally slimmable networks: the sandwich of widths, and who learns from whom."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sartor.nn import resized
from sartor.oneshot import Recipe
from sartor.oneshot.sampling import at_width
from sartor.oneshot.universally_slimmable import RECIPE, UniversallySlimmable
from sartor.supernet import activated, search_space
from toy_supernet import ToyNet, toy_batch


def learner(**given: Any) -> UniversallySlimmable:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    recipe = Recipe(lr=0.3, dropout=0.0, label_smoothing=0.0)
    return UniversallySlimmable(net, search_space(net), **{"steps": 10, "batch_size": 16, "recipe": recipe, **given})


def test_the_recipe_is_the_papers() -> None:
    assert (RECIPE.lr, RECIPE.lr_batch, RECIPE.schedule, RECIPE.nesterov) == (0.5, 1024, "linear", True)
    assert learner().networks == 4 and learner().lowest == 0.25


def test_a_step_is_the_widest_the_narrowest_and_random_ones_in_that_order() -> None:
    slimmable = learner()
    between = set()
    for step in range(40):
        slimmable.training.done = step
        archs = slimmable.drawn()
        assert archs == slimmable.drawn() and len(archs) == 4
        assert archs[0] == slimmable.space.largest() and archs[1] == at_width(slimmable.space, 0.25)
        between.update(archs[2:])
    widths = [at_width(slimmable.space, 0.25 + 0.75 * i / 1000) for i in range(1001)]
    assert between <= set(widths) and len(between) > 4  # one multiplier for all choices


def test_each_choice_may_have_a_width_of_its_own() -> None:
    slimmable = learner(uniform=False)
    between = set()
    for step in range(40):
        slimmable.training.done = step
        between.update(slimmable.drawn()[2:])
    assert len(between) > 60


def test_the_widest_learns_from_labels_and_the_others_from_the_widest() -> None:
    slimmable = learner()
    images, labels = toy_batch(0, 16)
    archs = slimmable.drawn()
    net = copy.deepcopy(slimmable.net).train()
    teacher = torch.zeros(())
    for arch in archs:
        with activated(net, arch):
            logits = net(resized(images, net))
        loss = F.cross_entropy(logits, labels)
        if arch is not archs[0]:
            loss = -(teacher * logits.log_softmax(1)).sum(1).mean()
        else:
            teacher = logits.detach().softmax(1)
        loss.backward()  # type: ignore[no-untyped-call]
    slimmable.backward((images, labels), archs)
    for (name, found), expected in zip(slimmable.net.named_parameters(), net.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"networks": 1}, {"lowest": 0.0}, {"lowest": 1.0}])
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give at least 2, and between 0 and 1"):
        learner(**wrong)
