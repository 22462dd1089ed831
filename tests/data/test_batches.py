"""Tasks made of the user's own batches."""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pixels import pixels_of
from sartor.data.batches import IterableSplit, collect
from sartor.data.preprocessing import Preprocessing
from sartor.data.source import DataError
from sartor.task import Split, Task, load_task

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(30, 2, 8, 8))).float()
Y = torch.arange(30) % 3


def loader(x: Tensor = X, y: Tensor = Y, size: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size)


def task(train: Any = None, **options: Any) -> Task:
    part = loader() if train is None else train
    rest = {"validation": loader(), "test": loader()} | options
    return Task.from_batches(part, **rest)


def squared(predictions: Tensor, labels: Tensor) -> Tensor:
    return (predictions.softmax(1) - torch.nn.functional.one_hot(labels, 3)).square().sum()


def top_two(predictions: Tensor, labels: Tensor) -> float:
    return float((predictions.topk(2).indices == labels[:, None]).any(1).double().mean())


@pytest.mark.parametrize("kind", ["loader", "generator", "list", "numpy"])
def test_kinds_of_iterables(kind: str) -> None:
    batches: Any = {
        "loader": loader(),
        "generator": (batch for batch in loader()),
        "list": list(loader()),
        "numpy": [(x.numpy(), y.numpy().astype(np.int32)) for x, y in loader()],
    }[kind]
    made = task(batches, loss=squared, metric=top_two)
    assert (made.loss, made.metric, made.metric_name) == (squared, top_two, "top two")
    assert made.classes == ("0", "1", "2")
    assert made.example.shape == (1, 2, 8, 8)
    assert made.record["sizes"] == {"train": 30, "validation": 30, "test": 30}
    images = torch.cat([x for x, _ in made.train.batches(7)])
    assert torch.equal(images, X)
    x, y = made.train.batch(3, 5, augment=True)
    assert x.dtype == torch.float32
    assert torch.equal(made.train.batch(3, 5)[1], y)


def test_bytes_are_normalised_by_their_statistics_or_as_asked() -> None:
    pixels = torch.from_numpy(RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))
    parts = loader(pixels), loader(pixels), loader(pixels)
    images = torch.cat([x for x, _ in Task.from_batches(*parts).train.batches(8)])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    half = Preprocessing(3, 8, 8, (0.5,) * 3, (0.5,) * 3)
    made = Task.from_batches(*parts, preprocessing=half)
    torch.testing.assert_close(next(iter(made.train.batches(30)))[0], (pixels / 255 - 0.5) / 0.5)
    assert made.preprocessing == half


def test_ready_splits_are_taken_as_they_are() -> None:
    digits = load_task("digits")
    made = Task.from_batches(
        digits.train,
        digits.validation,
        digits.test,
        classes=digits.classes,
        preprocessing=pixels_of(digits),
    )
    assert made.train is digits.train
    assert made.classes == digits.classes


def test_what_exceeds_the_bound_is_read_again_at_every_pass() -> None:
    small = task(memory_mb=0.001)
    assert isinstance(small.train, IterableSplit)
    assert isinstance(small.train, Split)
    assert small.record["storage"]["train"] == "IterableSplit"
    chain, labels = torch.cat([X] * 4), torch.cat([Y] * 4)
    for step in (0, 1, 2, 9, 4, 4, 11, 0):
        x, y = small.train.batch(step, 7)
        assert torch.equal(x, chain[step * 7 : step * 7 + 7])
        assert torch.equal(y, labels[step * 7 : step * 7 + 7])
    assert [len(y) for _, y in small.train.batches(8)] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([x for x, _ in small.train.batches(8)]), X)
    copy = pickle.loads(pickle.dumps(small.train))
    assert torch.equal(copy.batch(9, 7)[0], small.train.batch(9, 7)[0])
    with pytest.raises(ValueError, match="a step is at least 0"):
        small.train.batch(-1, 4)


def test_bytes_beyond_the_bound_are_normalised_too() -> None:
    pixels = torch.from_numpy(RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))
    made = Task.from_batches(loader(pixels), loader(pixels), loader(pixels), memory_mb=0.001)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pixels_of(made).mean, pixels_of(made).std))
    torch.testing.assert_close(made.train.batch(0, 5)[0], (pixels[:5] / 255 - mean) / std)


def test_a_generator_beyond_the_bound_is_refused() -> None:
    with pytest.raises(DataError, match=r"train: an iterator that can be read only once has more than memory_mb"):
        task(iter(loader()), memory_mb=0.001)


class Shrinking:
    """Yields one batch less at every pass."""

    def __init__(self) -> None:
        self.batches = list(loader())

    def __iter__(self) -> Iterator[Any]:
        yield from list(self.batches)
        self.batches.pop()


def test_passes_of_unequal_length_are_refused() -> None:
    train = task(Shrinking(), memory_mb=0.001).train
    with pytest.raises(DataError, match="train: a pass yields 28 samples, the first one yielded 30"):
        list(train.batches(7))


@pytest.mark.parametrize(
    "batches, message",
    [
        (7, r"part is a int; give batches \(images, labels\)"),
        ("text", r"part is a str; give batches"),
        ([], r"part: yields no batches; every split needs some \(is it a used-up generator\?\)"),
        ([X], r"part: batch 0 is a Tensor; batches are pairs \(images, labels\)"),
        ([{"x": X}], r"part: batch 0 is a dict"),
        ([(X, Y, Y)], r"part: batch 0 is a tuple of 3"),
        ([(X, "y")], r"part: batch 0: labels are a str; give a tensor or an array of numbers"),
        ([(X[0], Y)], r"part: batch 0: images have shape \(2, 8, 8\); give \(N, C, H, W\)"),
        ([(X[:, :, :5], Y)], r"shape \(30, 2, 5, 8\); give \(N, C, H, W\) with sides of at least 8"),
        ([(X.long(), Y)], r"images have dtype torch.int64; give uint8 or a float type"),
        ([(X, Y.float())], r"labels have shape \(30,\) and dtype torch.float32; give integers"),
        ([(X, X)], r"labels have shape \(30, 2, 8, 8\)"),
        ([(X, Y[:-1])], r"part: batch 0: 30 images but 29 labels; give one label per image"),
        (
            [(X, Y), (X[:, :1], Y)],
            r"batch 1: images are \(1, 8, 8\) of torch.float32, but earlier ones \(2, 8, 8\)",
        ),
        ([(X, Y), (X.byte(), Y)], r"batch 1: images are \(2, 8, 8\) of torch.uint8, but earlier ones"),
        ([(X, Y), (X / (X > X.min()), Y)], r"batch 1: image \d+ holds NaN or infinity; repair or drop it"),
    ],
)
def test_bad_batches_get_one_line(batches: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        collect(batches, "part", 10)
    assert "\n" not in str(caught.value)


def test_bad_parts_get_one_line() -> None:
    with pytest.raises(DataError, match=r"test has images \(1, 8, 8\) of torch.float32, train has \(2, 8, 8\)"):
        task(test=loader(X[:, :1]))
    with pytest.raises(DataError, match=r"test: labels\[2\]: label 5 is out of range: train: labels has 0..2"):
        task(test=loader(X, torch.where(torch.arange(30) == 2, 5, Y)))
    with pytest.raises(DataError, match=r"label 2 is out of range for 2 classes \(0..1\)"):
        task(classes=("a", "b"))
    with pytest.raises(DataError, match="train: labels start at 1; number the classes from 0"):
        task(loader(X, Y + 1), validation=loader(X, Y + 1), test=loader(X, Y + 1))
    with pytest.raises(DataError, match="class '3' has 1 training samples; give at least 2"):
        task(loader(X, torch.where(torch.arange(30) == 2, 3, Y)))


def test_imbalance_gets_balanced_accuracy() -> None:
    labels = (torch.arange(30) < 4).long()
    made = task(loader(X, labels), validation=loader(X, labels), test=loader(X, labels))
    assert made.metric_name == "balanced accuracy"
    assert "class '0' has 26 training samples and '1' only 4" in made.warnings[0]
