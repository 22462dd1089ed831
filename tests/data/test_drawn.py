# SPDX-License-Identifier: Apache-2.0
"""Samples drawn with chances: lists as long as the data, exact by seed and epoch, and batches that carry numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sartor.data.drawn import Drawn, index_list, steps_of_epoch
from sartor.task import Task, load_task


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def test_a_list_has_the_length_of_the_data_and_follows_the_chances() -> None:
    chances = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    drawn = index_list(chances, 80_000, 3, 0)
    assert len(drawn) == 80_000
    assert np.bincount(drawn, minlength=6) / 80_000 == pytest.approx(chances / 8, abs=0.01)
    assert not np.isin(drawn, (0, 3, 5)).any()
    assert np.array_equal(drawn, index_list(chances, 80_000, 3, 0))
    assert not np.array_equal(drawn, index_list(chances, 80_000, 3, 1))
    for wrong in (np.array([1.0, -1.0]), np.zeros(3), np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="numbers of at least 0, and not all 0"):
            index_list(wrong, 5, 0, 0)


def test_a_batch_carries_the_numbers_of_its_samples(task: Task) -> None:
    everything = next(task.train.batches(len(task.train)))
    drawn = Drawn(task.train, lambda: torch.ones(len(task.train), dtype=torch.float64), 5)
    assert len(drawn) == len(task.train) and torch.equal(drawn.labels, task.train.labels)
    for step in (0, 3, 3, 40):
        images, labels, numbers = drawn.batch(step, 32)
        assert torch.equal(images, everything[0][numbers]) and torch.equal(labels, everything[1][numbers])


def test_an_epoch_is_one_list_and_new_chances_are_another(task: Task) -> None:
    chances = [torch.ones(len(task.train), dtype=torch.float64)]
    drawn = Drawn(task.train, lambda: chances[-1], 5)
    steps = steps_of_epoch(len(task.train), 64)
    first = torch.cat([drawn.batch(step, 64)[2] for step in range(steps)])
    whole = torch.from_numpy(index_list(chances[0].numpy(), len(task.train), 5, 0))
    assert torch.equal(first, whole[: steps * 64])
    only: Tensor = torch.zeros(len(task.train), dtype=torch.float64)
    only[17] = 1.0
    chances.append(only)
    assert set(drawn.batch(steps, 64)[2].tolist()) == {17}


def test_more_than_the_data_makes_a_batch_longer_than_an_epoch(task: Task) -> None:
    few = task.train.part(np.arange(20), 0)  # type: ignore[attr-defined]
    assert Drawn(few, lambda: torch.ones(20, dtype=torch.float64), 0).batch(2, 64)[2].shape == (64,)


def test_a_split_without_numbers_is_told(task: Task) -> None:
    class Plain:
        labels, batch, batches = task.train.labels, task.train.batch, task.train.batches

        def __len__(self) -> int:
            return len(task.train)

    with pytest.raises(ValueError, match="a Plain, whose samples cannot be drawn one by one"):
        Drawn(Plain(), lambda: torch.ones(3), 0)
