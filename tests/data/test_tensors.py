"""The split in memory: batches are a pure function of seed and step."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from sartor.data.augmentation import Augmentation
from sartor.data.order import ShuffledEpochs, ranges
from sartor.data.preprocessing import Preprocessing
from sartor.data.tensors import TensorSplit, normalised
from sartor.task import Split, load_task

PREPROCESSING = Preprocessing(1, 8, 8, (0.25,), (0.5,))


def split(count: int = 10, seed: int = 0) -> TensorSplit:
    """Images whose every pixel tells which one it is."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return TensorSplit(images, torch.arange(count), PREPROCESSING, Augmentation(1, False, ""), seed)


def test_it_is_a_split_and_keeps_bytes() -> None:
    assert isinstance(split(), Split)
    assert load_task("digits").train._images.dtype == torch.uint8  # type: ignore[attr-defined]


def test_batches_serve_all_in_order_and_the_last_is_short() -> None:
    batches = list(split().batches(4))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(10))
    images = torch.cat([x for x, _ in batches])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0, 3, 3], (torch.arange(10) / 255 - 0.25) / 0.5)


def test_images_go_with_their_labels_and_every_epoch_serves_each_sample_once() -> None:
    served = split()
    labels = []
    for step in range(15):  # six epochs of two and a half batches
        images, y = served.batch(step, 4)
        torch.testing.assert_close(images[:, 0, 0, 0], (y / 255 - 0.25) / 0.5)
        labels.append(y)
    epochs = torch.cat(labels).view(6, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand(6, 10))
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_may_be_larger_than_the_split() -> None:
    _, labels = split(3).batch(1, 7)
    assert len(labels) == 7
    assert torch.bincount(labels).min() >= 2


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_does_not_depend_on_earlier_calls(augment: bool) -> None:
    def take(steps: list[int], seed: int = 0) -> dict[int, torch.Tensor]:
        served = load_task("digits", seed=seed, flip=True).train
        return {step: served.batch(step, 100, augment=augment)[0] for step in steps}

    forwards, backwards = take([0, 1, 12, 13, 40, 90]), take([90, 13, 1, 40, 12, 0])
    assert all(torch.equal(forwards[step], backwards[step]) for step in forwards)
    assert not torch.equal(take([0], seed=1)[0], forwards[0])


def test_another_process_serves_the_same_batch() -> None:
    program = (
        "import torch; torch.set_num_threads(1); from sartor.task import load_task;"
        "x, y = load_task('digits', flip=True).train.batch(17, 64, augment=True);"
        "print(x.double().sum().item(), y.tolist())"
    )
    images, labels = load_task("digits", flip=True).train.batch(17, 64, augment=True)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"{images.double().sum().item()} {labels.tolist()}"


def test_what_is_served_is_the_callers_own() -> None:
    served = split()
    for images, labels in (served.batch(0, 4), next(served.batches(4))):
        images.zero_()
        labels.zero_()
    images, labels = next(served.batches(4))
    assert torch.equal(labels, torch.arange(4))
    assert images.abs().min() > 0


@pytest.mark.parametrize("step, size", [(-1, 4), (0, 0)])
def test_steps_and_sizes_out_of_range(step: int, size: int) -> None:
    with pytest.raises(ValueError, match="a step is at least 0 and a size at least 1"):
        ShuffledEpochs(5, 0).batch(step, size)
    with pytest.raises(ValueError, match="a size is at least 1"):
        ranges(5, 0)


def test_normalisation_equals_the_deployed_one_to_the_last_bit() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    mean, std, scale = np.float32(0.25), np.float32(0.5), np.float32(255)
    expected = (pixels.astype(np.float32) / scale - mean) / std
    assert np.array_equal(normalised(torch.from_numpy(pixels), PREPROCESSING).numpy(), expected)
