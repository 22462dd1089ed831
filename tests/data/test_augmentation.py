"""Crops and mirroring against a plain loop, and the rule that decides about them."""

import numpy as np
import pytest
import torch

from sartor.data.augmentation import Augmentation, choose_augmentation
from sartor.task import Task, load_task

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_result_is_one_of_the_crops_of_the_padded_image(flip: bool, dtype: torch.dtype) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (40, 3, 8, 9), dtype=np.uint8)).to(dtype)
    out = Augmentation(2, flip, "")(images, seed=0, step=3)
    assert out.dtype == dtype
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge"))
    seen = set()
    for image, result in zip(padded, out, strict=True):
        crops = {
            (down, right, mirrored): crop.flip(2) if mirrored else crop
            for down in range(5)
            for right in range(5)
            for crop in [image[:, down : down + 8, right : right + 9]]
            for mirrored in ((False, True) if flip else (False,))
        }
        matching = [key for key, crop in crops.items() if torch.equal(crop, result)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 15
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if flip else {False})


def test_it_depends_on_seed_and_step_alone() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (16, 1, 8, 8), dtype=np.uint8))
    augment = Augmentation(1, True, "")
    first = augment(images, 0, 5)
    assert torch.equal(first, augment(images, 0, 5))
    assert not torch.equal(first, augment(images, 0, 6))
    assert not torch.equal(first, augment(images, 1, 5))


def pictures(channels: int, *, sided: bool, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes: bright above or below, or, if `sided`, bright to the left or right."""
    labels = torch.arange(count) % 2
    noise = torch.from_numpy(RNG.integers(0, 60, (count, channels, 32, 32), dtype=np.uint8))
    bright = torch.zeros(2, 32, 32, dtype=torch.uint8)
    bright[0, :, :16] = bright[1, :, 16:] = 150
    bright = bright if sided else bright.transpose(1, 2)
    return noise + bright[labels][:, None], labels


@pytest.mark.parametrize(
    "channels, sided, classes, named, flip, padding, why",
    [
        (3, False, ("cat", "dog"), True, True, 4, "recognise 100% of the images and 100% of mirrored"),
        (1, False, ("cat", "dog"), True, True, 4, "recognise 100% of the images and 100% of mirrored"),
        (3, True, ("left", "right"), True, False, 2, "recognise 100% of the images and 0% of mirrored"),
        (3, False, ("0", "1"), True, False, 2, "class names are characters or numbers"),
        (3, False, ("0", "1"), False, True, 4, "recognise"),
    ],
)
def test_mirroring_is_left_out_where_left_and_right_matter(
    channels: int, sided: bool, classes: tuple[str, ...], named: bool, flip: bool, padding: int, why: str
) -> None:
    images, labels = pictures(channels, sided=sided)
    chosen = choose_augmentation(images, labels, classes, named=named, flip=None)
    assert (chosen.flip, chosen.padding) == (flip, padding)
    assert why in chosen.why


def test_grey_images_that_tell_nothing_are_not_mirrored() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (2000, 3, 8, 8), dtype=np.uint8))
    labels = torch.arange(2000) % 2
    assert choose_augmentation(images, labels, "ab", named=False, flip=None).flip
    grey = choose_augmentation(images[:, :1], labels, "ab", named=False, flip=None)
    assert not grey.flip
    assert "too few to tell" in grey.why


def test_the_users_word_goes_first() -> None:
    task = load_task("digits", flip=True)
    assert task.record["augmentation"] == {"padding": 1, "flip": True, "why": "as asked"}


def test_digits_are_neither_mirrored_nor_shifted() -> None:
    task = load_task("digits")
    assert (task.record["augmentation"]["flip"], task.record["augmentation"]["padding"]) == (False, 0)
    assert torch.equal(task.train.batch(1, 16, augment=True)[0], task.train.batch(1, 16)[0])


def test_only_training_images_are_augmented() -> None:
    images, labels = pictures(1, sided=False)
    task = Task.from_arrays(images.numpy(), labels.numpy())
    for split in (task.validation, task.test):
        assert torch.equal(split.batch(0, 16)[0], split.batch(0, 16, augment=True)[0])
    assert not torch.equal(task.train.batch(0, 16)[0], task.train.batch(0, 16, augment=True)[0])
