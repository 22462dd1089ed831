# SPDX-License-Identifier: Apache-2.0
"""Two shares of a split: disjoint, stratified, and the same at every resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sartor.data.pairs import Pairs
from sartor.task import Task, load_task


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def pairs(task: Task, portion: float = 0.8, seed: int = 3) -> Pairs:
    return Pairs(task.train, portion, classes=task.classes, seed=seed)


def test_the_shares_are_disjoint_and_together_all(task: Task) -> None:
    found = pairs(task)
    first, second = (set(map(int, one)) for one in found.indices)
    assert not first & second and len(first | second) == len(task.train) == len(found)
    assert len(first) / len(task.train) == pytest.approx(0.8, abs=0.01)


def test_every_class_is_cut_alike(task: Task) -> None:
    counts = [np.bincount(share.labels.numpy(), minlength=10) for share in pairs(task).shares]
    assert np.abs(counts[0] / (counts[0] + counts[1]) - 0.8).max() < 0.01


def test_a_batch_has_samples_of_its_share_alone_and_depends_on_the_step(task: Task) -> None:
    found = pairs(task, portion=0.5)
    seen: list[set[bytes]] = [set(), set()]
    for step in range(60):
        for place, (images, labels) in enumerate(found.batch(step, 32)):
            assert images.shape == (32, 1, 8, 8) and labels.shape == (32,)
            seen[place] |= {image.numpy().tobytes() for image in images}
    assert not seen[0] & seen[1]
    again = pairs(task, portion=0.5).batch(17, 32)
    for (images, labels), (same, these) in zip(found.batch(17, 32), again, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, these)


def test_another_seed_is_another_cut(task: Task) -> None:
    assert not np.array_equal(pairs(task, seed=4).indices[0], pairs(task).indices[0])


def test_shares_are_augmented_as_the_split_is() -> None:
    images = np.random.default_rng(0).integers(0, 255, (80, 16, 16, 3), dtype=np.uint8)
    found = pairs(Task.from_arrays(images, np.arange(80) % 4, flip=True), portion=0.5)
    for plain, augmented in zip(found.batch(0, 16), found.batch(0, 16, augment=True), strict=True):
        assert torch.equal(plain[1], augmented[1]) and not torch.equal(plain[0], augmented[0])


class Unknown:
    """A split that a user made without `part`."""

    def __init__(self, split: Any) -> None:
        self.labels, self.batch, self.batches, self.size = split.labels, split.batch, split.batches, len(split)

    def __len__(self) -> int:
        return self.size


def test_what_cannot_be_cut_is_told_in_one_line(task: Task) -> None:
    with pytest.raises(ValueError, match=r"a Unknown, of which no two shares can be made: .* part\(indices, seed\)"):
        Pairs(Unknown(task.train), 0.5, classes=task.classes)
    with pytest.raises(ValueError, match=r"portion is 1.0: it is a share"):
        pairs(task, portion=1.0)
