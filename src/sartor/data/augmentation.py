"""Random crops with padding and mirrored copies, for a whole batch at once, where they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sartor.data.rng import integers

__all__ = ["Augmentation", "choose_augmentation"]

_STREAM = 2


@dataclass(frozen=True)
class Augmentation:
    """Shift by up to `padding` pixels each way, edges repeated, and mirror every second image if `flip`."""

    padding: int
    flip: bool
    why: str

    def __call__(self, images: Tensor, seed: int, step: int) -> Tensor:
        """Return augmented images (B, C, H, W), of any dtype: a pure function of seed and step."""
        count, channels, height, width = images.shape
        if self.padding == 0 and not self.flip:
            return images
        shifts = torch.from_numpy(integers(2 * self.padding + 1, 2 * count, seed, _STREAM, step, 0))
        down, right = (shifts - self.padding).view(2, count, 1).unbind()
        # Clamping the source coordinate repeats the edge, which suits dark and light backgrounds alike.
        rows = (torch.arange(height) + down).clamp_(0, height - 1)
        columns = torch.arange(width) + right
        if self.flip:
            mirrored = torch.from_numpy(integers(2, count, seed, _STREAM, step, 1)).bool().view(count, 1)
            columns = torch.where(mirrored, columns.flip(1), columns)
        columns.clamp_(0, width - 1)
        places = (rows.mul_(width).unsqueeze(2) + columns.unsqueeze(1)).view(count, 1, -1)
        pixels = images.reshape(count, channels, -1)
        return pixels.gather(2, places.to(images.device).expand_as(pixels)).view_as(images)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def choose_augmentation(
    images: Tensor, labels: Tensor, classes: Sequence[str], *, named: bool, flip: bool | None
) -> Augmentation:
    """Decide what the training images can bear; the reason is part of the result.

    Args:
        images: a sample (N, C, H, W) of the training images, in random order.
        labels: (N,) their class indices.
        classes: the class names.
        named: whether the names come from the user rather than from numbering.
        flip: the user's own decision, which goes first.

    Mirroring is wrong for glyphs and wherever left and right tell classes apart. So it is left out if every
    user-given class name is one character or a number, or if the means of the classes recognise mirrored
    images worse than upright ones (under 0.9 of the balanced accuracy, on held-out images); grey images,
    often glyphs, are mirrored only if the means recognise anything at all, so that the comparison says
    something. Crops shift by up to 1/8 of the shorter side for images that may be mirrored, else by 1/14:
    4 pixels for 32x32 photographs, 2 for 28x28 glyphs, none for 8x8 glyphs, which a shift harms.
    """
    allowed, why = (flip, "as asked") if flip is not None else _mirror_rule(images, labels, classes, named)
    shorter = min(images.shape[2:])
    return Augmentation(shorter // (8 if allowed else 14), allowed, why)


def _mirror_rule(images: Tensor, labels: Tensor, classes: Sequence[str], named: bool) -> tuple[bool, str]:
    if named and all(len(name) == 1 or name.isdigit() for name in classes):
        return False, "the class names are characters or numbers, so the images may be glyphs"
    upright, mirrored = _recognised(images, labels, len(classes))
    seen = f"the class means recognise {upright:.0%} of the images and {mirrored:.0%} of mirrored ones"
    if mirrored < 0.9 * upright:
        return False, seen
    chance = 1.0 / len(classes)
    if images.shape[1] == 1 and upright < chance + 0.1 * (1.0 - chance):
        return False, f"grey images, and {seen}, too few to tell"
    return True, seen


def _recognised(images: Tensor, labels: Tensor, classes: int) -> tuple[float, float]:
    """Return the balanced accuracy of a nearest-class-mean classifier on upright and mirrored images.

    The means come from one half of the sample and are tried on the other; images are pooled to 16x16.
    """
    sides = (min(16, images.shape[2]), min(16, images.shape[3]))
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255.0, sides)
    half = len(pooled) // 2
    onehot = torch.nn.functional.one_hot(labels[:half], classes).float()
    counts = onehot.sum(0).clamp(min=1.0)
    means = (onehot.T @ pooled[:half].flatten(1)) / counts[:, None]
    truth = torch.nn.functional.one_hot(labels[half:], classes).float()
    scores = []
    for tried in (pooled[half:], pooled[half:].flip(3)):
        nearest = (tried.flatten(1) @ means.T - means.square().sum(1) / 2).argmax(1)
        hits = truth[torch.arange(len(truth)), nearest]
        recall = (truth * hits[:, None]).sum(0) / truth.sum(0).clamp(min=1.0)
        scores.append(float(recall[truth.sum(0) > 0].mean()) if len(truth) else 0.0)
    return scores[0], scores[1]
