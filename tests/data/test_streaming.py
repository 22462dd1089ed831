"""A streamed split serves the very batches that one in memory serves."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sartor.data.source import DataError
from sartor.data.streaming import StreamingSplit
from sartor.task import Split, Task, load_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for name in ("cat", "dog", "eel"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def streamed(folder: Path, **options: int) -> Task:
    return load_task(folder, memory_mb=0.01, **options)  # type: ignore[arg-type]


def test_it_equals_the_split_in_memory(folder: Path) -> None:
    task, reference = streamed(folder, workers=3), load_task(folder)
    assert isinstance(task.train, StreamingSplit)
    assert isinstance(task.train, Split)
    assert task.record["storage"].startswith("streamed, 0 MB exceed 0.01 MB")
    assert task.preprocessing == reference.preprocessing
    assert task.record["splits"] == reference.record["splits"]
    assert torch.equal(task.train.labels, reference.train.labels)
    for step in (0, 1, 2, 9, 3, 3, 0):  # in order, ahead, back and again
        for augment in (False, True):
            for served, expected in zip(
                task.train.batch(step, 7, augment=augment),
                reference.train.batch(step, 7, augment=augment),
                strict=True,
            ):
                assert torch.equal(served, expected)
    for split in ("train", "validation", "test"):
        pairs = zip(getattr(task, split).batches(5), getattr(reference, split).batches(5), strict=True)
        for (x, y), (x_expected, y_expected) in pairs:
            assert torch.equal(x, x_expected)
            assert torch.equal(y, y_expected)


def test_samples_are_served_by_their_numbers_as_from_memory(folder: Path) -> None:
    train, reference = streamed(folder).train, load_task(folder).train
    chosen = np.array([5, 0, 5, 11])
    for step, augment in ((0, False), (3, True)):
        pair = (split.at(chosen, step, augment=augment) for split in (train, reference))  # type: ignore[attr-defined]
        assert all(map(torch.equal, *pair))


def test_a_copy_through_pickle_serves_the_same(folder: Path) -> None:
    train = streamed(folder).train
    expected = train.batch(2, 8, augment=True)
    copy = pickle.loads(pickle.dumps(train))
    assert all(torch.equal(a, b) for a, b in zip(copy.batch(2, 8, augment=True), expected, strict=True))


def test_two_threads_may_share_a_split(folder: Path) -> None:
    train = streamed(folder).train
    expected = {step: load_task(folder).train.batch(step, 4)[0] for step in range(8)}
    good: list[bool] = []

    def read(steps: list[int]) -> None:
        good.extend(torch.equal(train.batch(step, 4)[0], expected[step]) for step in steps)

    threads = [threading.Thread(target=read, args=(list(order),)) for order in (range(8), range(7, -1, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 16


def test_an_image_that_is_damaged_later_is_named(folder: Path) -> None:
    task = streamed(folder)
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    (folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"dog/\d\.png: unreadable image|cat/0\.png: no such file"):
        for step in range(10):
            task.train.batch(step, 7)


def test_workers_out_of_range(folder: Path) -> None:
    with pytest.raises(DataError, match="workers = 0: decoding needs at least one thread"):
        streamed(folder, workers=0)
