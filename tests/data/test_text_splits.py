# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch

from sartor.data.split import Split
from sartor.data.text_splits import IGNORED, TextSplit, WindowSplit

PAD = 0


def sequences() -> TextSplit:
    """Sample i is i + 1, i + 1 times; its label is i % 2."""
    given = [np.full(n, n) for n in (5, 2, 4, 1, 3)]
    return TextSplit(given, np.array([len(one) % 2 for one in given]), PAD, seed=3)


def test_they_are_splits() -> None:
    assert isinstance(sequences(), Split)
    assert isinstance(WindowSplit(np.arange(9), 4, PAD, 0), Split)


def test_batches_go_from_short_to_long_and_labels_go_with_them() -> None:
    split = sequences()
    assert [ids.tolist() for ids, _ in split.batches(2)] == [[[1, 0], [2, 2]], [[3, 3, 3, 0], [4, 4, 4, 4]], [[5] * 5]]
    assert torch.equal(torch.cat([labels for _, labels in split.batches(2)]), split.labels)
    assert split.labels.tolist() == [1, 0, 1, 0, 1] and split.lengths.tolist() == [1, 2, 3, 4, 5]


def test_a_batch_is_a_function_of_seed_and_step_and_is_padded_to_its_longest() -> None:
    split, again = sequences(), sequences()
    for step in (4, 0, 4):
        ids, labels = split.batch(step, 3)
        same, _ = again.batch(step, 3)
        assert torch.equal(ids, same) and ids.dtype == labels.dtype == torch.int64
        assert ids.shape[1] == (ids != PAD).sum(1).max()
        assert ((ids != PAD).sum(1) % 2 == labels).all()
    epoch = torch.cat([split.batch(step, 1)[0][0, :1] for step in range(5)])
    assert sorted(epoch.tolist()) == [1, 2, 3, 4, 5]


def test_a_part_holds_the_samples_it_was_given() -> None:
    part = sequences().part(np.array([4, 0]), seed=1)
    assert len(part) == 2 and part.lengths.tolist() == [1, 5]
    assert part.labels.tolist() == [1, 1]


def test_windows_hold_the_text_once_and_the_next_tokens() -> None:
    tokens = np.arange(10, 21)
    split = WindowSplit(tokens, 4, PAD, seed=0)
    ids, labels = next(iter(split.batches(9)))
    assert len(split) == 3 and split.labels.tolist() == labels.tolist()
    assert ids.tolist() == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, PAD]]
    assert labels.tolist() == [[11, 12, 13, 14], [15, 16, 17, 18], [19, 20, IGNORED, IGNORED]]
    assert sorted(labels[labels != IGNORED].tolist()) == [*range(11, 21)]


def test_a_window_of_training_begins_anywhere_and_the_same_step_is_the_same_one() -> None:
    split = WindowSplit(np.arange(100), 8, PAD, seed=0)
    firsts = {int(split.batch(step, 4, augment=True)[0][0, 0]) for step in range(20)}
    assert any(first % 8 for first in firsts)
    for step in range(20):
        ids, labels = split.batch(step, 4, augment=True)
        assert torch.equal(ids[:, 1:], labels[:, :-1])
        assert torch.equal(ids, split.batch(step, 4, augment=True)[0])


def test_windows_of_a_part_do_not_reach_into_another_one() -> None:
    part = WindowSplit(np.arange(100), 8, PAD, seed=0).part(np.array([1, 3]), seed=5)
    seen = {int(first) for step in range(9) for first in part.batch(step, 2, augment=True)[0][:, 0]}
    assert len(part) == 2 and seen == {8, 24}
