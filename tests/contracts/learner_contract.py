# SPDX-License-Identifier: Apache-2.0
"""What every learner must do. A learner joins by one line in `test_learners.py`: a function that makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sartor.checkpoint import flatten, unflatten
from sartor.protocols import Learner
from sartor.supernet import named_choices

Make = Callable[[], Learner]
Batches = Callable[[int], Any]
"""The batch of a step."""

STEPS = 8
"""Over which a learner's cost is counted."""


def steps(learner: Learner, batches: Batches, first: int, last: int) -> list[dict[str, float]]:
    """Run the steps from `first` to before `last`, torch seeded for each as `fit` does."""
    scalars = []
    for step in range(first, last):
        torch.manual_seed(step)
        scalars.append(dict(learner.step(batches(step))))
    return scalars


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Return the tensors of the state in the order of their names: moments come in that of their first use."""
    return {name: value.clone() for name, value in sorted(flatten(learner.state_dict())[0].items())}


def networks_of(learner: Learner) -> list[nn.Module]:
    return [value for value in vars(learner).values() if isinstance(value, nn.Module)]


def it_is_a_learner(make: Make, batches: Batches) -> None:
    assert isinstance(make(), Learner)


def the_loss_falls(make: Make, batches: Batches) -> None:
    losses = [scalars["loss"] for scalars in steps(make(), batches, 0, 20)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses


def scalars_are_finite_floats_with_the_same_names(make: Make, batches: Batches) -> None:
    found = steps(make(), batches, 0, 5)
    assert all(type(value) is float and math.isfinite(value) for scalars in found for value in scalars.values())
    assert len({tuple(scalars) for scalars in found}) == 1
    assert {"loss", "learning_rate"} <= set(found[0])


def equal_learners_take_equal_steps(make: Make, batches: Batches) -> None:
    one, two = make(), make()
    assert steps(one, batches, 0, 3) == steps(two, batches, 0, 3)
    assert all(map(torch.equal, tensors_of(one).values(), tensors_of(two).values()))


def saved_midway_the_next_steps_are_identical(make: Make, batches: Batches) -> None:
    one = make()
    steps(one, batches, 0, 4)
    packed, tree = flatten(one.state_dict())
    data = safetensors.torch.save(packed)
    two = make()
    two.load_state_dict(unflatten(safetensors.torch.load(data), tree))
    assert steps(one, batches, 4, 7) == steps(two, batches, 4, 7)
    assert tensors_of(one).keys() == tensors_of(two).keys()
    assert all(map(torch.equal, tensors_of(one).values(), tensors_of(two).values()))


def choices_are_left_as_they_were(make: Make, batches: Batches) -> None:
    learner = make()
    choices = [choice for net in networks_of(learner) for choice in named_choices(net).values()]
    before = [(choice.hard, choice.soft) for choice in choices]
    steps(learner, batches, 0, 2)
    assert [(choice.hard, choice.soft) for choice in choices] == before


def a_step_leaves_the_batch_alone(make: Make, batches: Batches) -> None:
    batch = batches(0)
    copies = {name: tensor.clone() for name, tensor in flatten(batch)[0].items()}
    make().step(batch)
    assert all(map(torch.equal, flatten(batch)[0].values(), copies.values()))


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count what runs in the block: backward passes through any graph, and optimiser steps."""
    counts = {"passes": 0, "updates": 0}
    run: Any = torch.autograd.graph._engine_run_backward

    def backward(*inputs: Any, **keywords: Any) -> Any:
        counts["passes"] += 1
        return run(*inputs, **keywords)

    def stepped(*_: Any) -> None:
        counts["updates"] += 1

    handle = register_optimizer_step_post_hook(stepped)
    torch.autograd._engine_run_backward = backward  # type: ignore[attr-defined]
    try:
        yield counts
    finally:
        torch.autograd._engine_run_backward = run  # type: ignore[attr-defined]
        handle.remove()


def its_effort_is_what_it_ran(make: Make, batches: Batches) -> None:
    """For a learner that says what it costs: passes and updates, on average as many a step as it announces."""
    learner: Any = make()
    assert tuple(learner.effort)[::2] == (0, 0)
    with counted() as counts:
        steps(learner, batches, 0, STEPS)
    members = getattr(learner, "members", 1)  # networks that one backward pass goes through
    assert learner.effort.passes == members * counts["passes"] > 0
    assert learner.effort.updates == counts["updates"] > 0
    announced = getattr(learner, "passes_per_step", learner.effort.passes / STEPS)
    assert announced == pytest.approx(learner.effort.passes / STEPS, rel=0.5)


def its_effort_is_saved(make: Make, batches: Batches) -> None:
    one: Any = make()
    steps(one, batches, 0, 2)
    two: Any = make()
    two.load_state_dict(one.state_dict())
    assert two.effort == one.effort


LAWS = (
    it_is_a_learner,
    the_loss_falls,
    scalars_are_finite_floats_with_the_same_names,
    equal_learners_take_equal_steps,
    saved_midway_the_next_steps_are_identical,
    choices_are_left_as_they_were,
    a_step_leaves_the_batch_alone,
)

LAWS_OF_EFFORT = (its_effort_is_what_it_ran, its_effort_is_saved)
"""Of learners with `effort`."""
