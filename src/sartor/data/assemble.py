"""From the parts of a source to encoded labels, splits, normalisation and augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sartor.data.augmentation import Augmentation, choose_augmentation
from sartor.data.labels import encode_labels, imbalance_warning
from sartor.data.pixels import mean_and_std, to_pixels
from sartor.data.preprocessing import Preprocessing, fitted_size, resized
from sartor.data.rng import permutation
from sartor.data.source import Arrays, DataError, Files, Source
from sartor.data.split import Split
from sartor.data.splits import check_fractions, default_validation, digest, stratified
from sartor.data.streaming import StreamingSplit, common_form, decoded
from sartor.data.tensors import TensorSplit

__all__ = ["Assembled", "Options", "assemble"]

_SAMPLE = 4096  # training images behind the digest, the choice of augmentation and, when streaming, mean and std
_STREAM = 3

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What the user may decide about any source; see `task.load_task`."""

    seed: int = 0
    validation: float | None = None
    test: float = 0.15
    image_size: int | tuple[int, int] | None = None
    flip: bool | None = None
    memory_mb: float = 4096.0
    workers: int | None = None


@dataclass(frozen=True)
class Assembled:
    """Everything about the data that a task holds."""

    splits: Mapping[str, Split]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    record: dict[str, Any]
    warnings: tuple[str, ...]
    imbalanced: bool


def assemble(source: Source, options: Options) -> Assembled:
    """Check a source, cut the splits that it lacks and make all splits ready to serve batches.

    Raises:
        DataError: anything about the data that a classifier cannot be trained on.
    """
    parts = source.parts()
    labels, classes = encode_labels(
        {name: (part.labels, part.labels_place) for name, part in parts.items()}, source.class_names
    )
    cuts = _cuts(labels, classes, options)
    chosen = {name: labels[origin][indices] for name, (origin, indices) in cuts.items()}
    named = source.class_names is not None or source.train.labels.dtype.kind in "US"
    images = _arrays(source, options) if isinstance(source.train, Arrays) else _files(source, options)
    served = _serve(images, cuts, chosen, classes, named, options)
    counts = np.bincount(chosen["train"], minlength=len(classes))
    imbalance = imbalance_warning(counts, classes)
    warnings = images.warnings if imbalance is None else (*images.warnings, imbalance)
    record = {
        **source.record,
        "seed": options.seed,
        "storage": images.storage,
        "sizes": {name: len(indices) for name, (_, indices) in cuts.items()},
        "splits": {
            name: {
                "part": origin,
                "size": len(indices),
                "sha256": digest(indices),
                "labels_sha256": digest(chosen[name]),
            }
            for name, (origin, indices) in cuts.items()
        },
        "train_class_counts": [int(count) for count in counts],
        "train_pixels_sha256": served.digest,
        "augmentation": served.augmentation.to_dict(),
        **images.record,
    }
    return Assembled(served.splits, classes, served.preprocessing, record, warnings, imbalance is not None)


@dataclass(frozen=True)
class _Images:
    """The images of all parts at their final size: decoded, or to be decoded when they are needed."""

    parts: Mapping[str, NDArray[Any] | Files]
    channels: int
    size: tuple[int, int]
    storage: str
    record: dict[str, Any]
    warnings: tuple[str, ...] = ()
    workers: int = 1

    @property
    def mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def pixels(self, part: NDArray[Any] | Files, indices: Indices) -> NDArray[Any]:
        """Return a copy (N, C, H, W) of the images of a part at `indices`."""
        if isinstance(part, Files):
            return decoded(part.images, self.mode, self.size, self.workers, indices)
        return part[indices]


@dataclass(frozen=True)
class _Served:
    splits: dict[str, Split]
    preprocessing: Preprocessing
    augmentation: Augmentation
    digest: str  # SHA-256 of the pixels of the sampled training images


def _cuts(
    labels: Mapping[str, NDArray[np.int64]], classes: tuple[str, ...], options: Options
) -> dict[str, tuple[str, Indices]]:
    """Return, by split, the part that it comes from and the indices into that part."""
    validation = options.validation
    if validation is None:
        validation = default_validation(len(labels["train"]), 0.0 if "test" in labels else options.test)
    shares = {"validation": validation, "test": options.test}
    fractions = {name: share for name, share in shares.items() if name not in labels}
    check_fractions(fractions)
    cut = stratified(labels["train"], fractions, classes, options.seed)
    return {
        name: ("train", cut[name]) if name in cut else (name, np.arange(len(labels[name])))
        for name in ("train", "validation", "test")
    }


def _arrays(source: Source, options: Options) -> _Images:
    """Return the images of parts that are in memory."""
    given = {
        name: (part.images, part.images_place) for name, part in source.parts().items() if isinstance(part, Arrays)
    }
    pixels = to_pixels(given)
    train = pixels["train"]
    original = (train.shape[2], train.shape[3])
    size = fitted_size(original, options.image_size, given["train"][1])
    if size != original:
        pixels = {name: resized(images, size) for name, images in pixels.items()}
    return _Images(
        parts=pixels,
        channels=train.shape[1],
        size=size,
        storage=f"memory, {train.dtype}",
        record={"image_size": list(original)},
        warnings=_shrunk(original, size, options),
    )


def _files(source: Source, options: Options) -> _Images:
    """Return the images of parts that are encoded: decoded if they fit the memory bound."""
    parts = {name: part for name, part in source.parts().items() if isinstance(part, Files)}
    form = common_form(parts, options.image_size is not None, options.workers)
    size = fitted_size(form.size, options.image_size, form.place)
    channels = 1 if form.grey else 3
    needed = sum(len(part.images) for part in parts.values()) * channels * size[0] * size[1] / 2**20
    mode = "L" if form.grey else "RGB"
    fits = needed <= options.memory_mb
    images: dict[str, NDArray[Any] | Files] = dict(parts)
    if fits:
        images = {name: decoded(part.images, mode, size, form.workers) for name, part in parts.items()}
    return _Images(
        parts=images,
        channels=channels,
        size=size,
        storage="memory, uint8" if fits else f"streamed, {needed:.0f} MB exceed {options.memory_mb:g} MB",
        record={"image_size": list(form.size) if form.uniform else "various"},
        warnings=_shrunk(form.size, size, options),
        workers=form.workers,
    )


def _shrunk(original: tuple[int, int], size: tuple[int, int], options: Options) -> tuple[str, ...]:
    """Say so if images were made smaller though nobody asked for it."""
    if options.image_size is not None or size == original:
        return ()
    before, after = (f"{height}x{width}" for height, width in (original, size))
    return (f"images of {before} pixels are resized to {after}, the largest size that is served",)


def _serve(
    images: _Images,
    cuts: Mapping[str, tuple[str, Indices]],
    labels: Mapping[str, NDArray[np.int64]],
    classes: tuple[str, ...],
    named: bool,
    options: Options,
) -> _Served:
    """Measure the training images and build the splits."""
    origin, train = cuts["train"]
    part = images.parts[origin]
    shuffled = permutation(len(train), options.seed, _STREAM)[:_SAMPLE]
    sample = images.pixels(part, train[shuffled])
    if sample.min() == sample.max():
        raise DataError(f"all training images have the one pixel value {sample.max()}; check how they were made")
    mean, std = mean_and_std(sample) if isinstance(part, Files) else mean_and_std(part, train)
    preprocessing = Preprocessing(images.channels, *images.size, mean, std)
    augmentation = choose_augmentation(
        torch.from_numpy(sample),
        torch.from_numpy(labels["train"][shuffled]),
        classes,
        named=named,
        flip=options.flip,
    )
    splits: dict[str, Split] = {}
    for name, (origin, indices) in cuts.items():
        part, target = images.parts[origin], torch.from_numpy(labels[name])
        common = (target, preprocessing, augmentation if name == "train" else None, options.seed)
        splits[name] = (
            StreamingSplit(part.images, indices, *common, images.workers)
            if isinstance(part, Files)
            else TensorSplit(torch.from_numpy(part[indices]), *common)
        )
    return _Served(splits, preprocessing, augmentation, hashlib.sha256(sample.tobytes()).hexdigest())
