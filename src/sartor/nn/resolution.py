"""Searched input resolution: a choice of the network that the data side reads.

A network whose input resolution is searched holds that choice as its attribute `resolution`; after extraction
the attribute is an int. Whoever feeds the network resizes, in training as in deployment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.choice import Size

__all__ = ["at_resolution", "resize", "resized"]


def resized(images: Tensor, model: torch.nn.Module) -> Tensor:
    """(N, C, H, W) float images at the resolution that `model` asks for, bilinear and antialiased when
    shrinking.

    A model without the attribute `resolution` gets the images as they are. Raises ValueError under a soft
    resolution: then the network must run once for each, see `at_resolution`.
    """
    resolution = getattr(model, "resolution", None)
    return images if resolution is None else resize(images, int(resolution))


def at_resolution(model: torch.nn.Module, images: Tensor) -> Tensor:
    """`model`'s output for images at its own resolution; the expectation of that when the choice is soft."""
    resolution = getattr(model, "resolution", None)
    if not isinstance(resolution, Size) or not resolution.is_soft:
        out: Tensor = model(resized(images, model))
        return out
    weights = resolution.probabilities(images)
    terms = [
        weight * model(resize(images, option))
        for weight, option, chance in zip(weights, resolution.options, weights.tolist(), strict=True)
        if isinstance(option, int) and chance != 0.0
    ]
    return torch.stack(terms).sum(0)


def resize(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) images at `size` x `size`, bilinear, antialiased when shrinking; as they are if they fit."""
    if images.shape[-2:] == (size, size):
        return images
    shrinks = size < max(images.shape[-2:])
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=shrinks)
