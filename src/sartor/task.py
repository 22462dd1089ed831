"""What a network is to learn: data in three splits, a loss and a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sartor.data.assemble import Options, assemble
from sartor.data.batches import splits_of_batches
from sartor.data.labels import imbalance_warning
from sartor.data.preprocessing import Preprocessing
from sartor.data.read import read_source
from sartor.data.source import Arrays, DataError, Source
from sartor.data.split import Batch, Split
from sartor.data.splits import digest
from sartor.data.text_preprocessing import TextPreprocessing

__all__ = [
    "Batch", "DataError", "Preprocessing", "Split", "Task", "TokenLikelihood", "accuracy", "balanced_accuracy",
    "load_task",
]  # fmt: skip

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], float]


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of samples whose largest prediction is at the label; (N, K) and (N,)."""
    return float((predictions.argmax(1) == labels).double().mean())


def balanced_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes that occur of the share of their samples that is recognised."""
    counts = torch.bincount(labels, minlength=predictions.shape[1]).double()
    hits = torch.bincount(labels[predictions.argmax(1) == labels], minlength=predictions.shape[1]).double()
    return float((hits / counts)[counts > 0].mean())


@dataclass(frozen=True)
class TokenLikelihood:
    """The geometric mean of the probabilities that a language model gives the next tokens: 1 / perplexity, 0 to 1.

    It is a metric of logits (N, T, V), or (N * T, V), and next tokens (N, T), or (N * T,), and a `RowMetric`.
    """

    ignored: int = -100
    """The label of what is not counted."""

    def rows(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The log-likelihood of each token that counts, in nats, (M,) float32."""
        logits, wanted = outputs.reshape(-1, outputs.shape[-1]), labels.flatten()
        counted = wanted != self.ignored
        return -torch.nn.functional.cross_entropy(logits[counted].float(), wanted[counted], reduction="none")

    def of_rows(self, rows: Tensor) -> float:
        """exp of the mean of `rows`."""
        return float(rows.double().mean().exp())

    def __call__(self, outputs: Tensor, labels: Tensor) -> float:
        """The metric of logits and next tokens."""
        return self.of_rows(self.rows(outputs, labels))


@dataclass(frozen=True)
class Task:
    """Data, loss and metric of one classification problem, or of the modelling of a language.

    Args:
        name: what reports call it.
        train: what weights are trained on.
        validation: what architectures are compared on.
        test: what is reported at the end; a search never reads it.
        loss: (N, K) logits, (N,) labels -> scalar tensor, lower is better.
        metric: (N, K) logits, (N,) labels -> number in 0..1, higher is better; see `evaluation.scored` for one that
            is given batch by batch.
        metric_name: ``accuracy`` or ``balanced accuracy``, ``token likelihood``, or the user's own.
        example: one input (1, C, H, W), float32, or token ids (1, T), int64.
        classes: class names in the order of the logits; of a language model none.
        preprocessing: how an image file, or a text, becomes an input.
        record: JSON-able facts: source, seed, sizes and SHA-256 of every split's indices, augmentation.
        warnings: one line each, for the user.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    loss: Loss
    metric: Metric
    metric_name: str
    example: Tensor
    classes: tuple[str, ...]
    preprocessing: Preprocessing | TextPreprocessing
    record: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        *,
        x_validation: ArrayLike | None = None,
        y_validation: ArrayLike | None = None,
        name: str = "arrays",
        **options: Any,
    ) -> Task:
        """Make a task of arrays; layouts, options and errors are those of `load_task` for ``.npz``."""
        given = {
            "train": (x_train, y_train),
            "validation": (x_validation, y_validation),
            "test": (x_test, y_test),
        }
        parts: dict[str, Arrays] = {}
        for split, (x, y) in given.items():
            if (x is None) != (y is None):
                raise DataError(f"x_{split} and y_{split} go together; give both or neither")
            if x is not None and y is not None:
                parts[split] = Arrays.checked(np.asarray(x), np.asarray(y), f"x_{split}", f"y_{split}")
        source = Source(parts["train"], parts.get("validation"), parts.get("test"), record={"kind": "arrays"})
        return _task(name, name, source, Options(**options))

    @classmethod
    def from_batches(
        cls,
        train: Iterable[Any] | Split,
        validation: Iterable[Any] | Split,
        test: Iterable[Any] | Split,
        *,
        loss: Loss = torch.nn.functional.cross_entropy,
        metric: Metric | None = None,
        metric_name: str | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        name: str = "batches",
        seed: int = 0,
        memory_mb: float = 4096.0,
    ) -> Task:
        """Make a task of iterables of (images, labels) batches, or of objects that are a `Split` already.

        Args:
            train, validation, test: batches of images (B, C, H, W), float or uint8, and class indices (B,).
                Each is read once; up to `memory_mb` it stays in memory, as the first pass yields it, and its
                batches are cut and shuffled anew. What can be iterated again may be larger, and is then read
                anew in its own order, see `data.batches.IterableSplit`.
            loss, metric: see `Task`; without a metric it is accuracy, balanced if classes are imbalanced.
            metric_name: what reports call the metric; default its ``__name__``.
            classes: the class names; without them the classes are the numbers 0..K-1 that `train` has.
            preprocessing: how an image file becomes one of these images. uint8 images are normalised by it
                (default: by their own mean and deviation); float images are taken as they come.
            name, seed: as for `load_task`.
            memory_mb: bound for each split.

        Raises:
            DataError: batches of a wrong kind, shape or dtype, bad labels, or a generator over the bound.
        """
        splits, names, used = splits_of_batches(
            {"train": train, "validation": validation, "test": test}, classes, preprocessing, seed, memory_mb
        )
        counts = np.bincount(splits["train"].labels.numpy(), minlength=len(names))
        warning = imbalance_warning(counts, names) if metric is None else None
        metric = metric or (balanced_accuracy if warning else accuracy)
        example, _ = next(iter(splits["train"].batches(1)))
        return cls(
            name=name,
            **splits,
            loss=loss,
            metric=metric,
            metric_name=metric_name or getattr(metric, "__name__", "metric").replace("_", " "),
            example=example,
            classes=names,
            preprocessing=used,
            record={"source": name, "kind": "batches", "seed": seed, **_record(splits, counts.tolist())},
            warnings=(warning,) if warning else (),
        )


def _record(splits: Mapping[str, Split], counts: list[int]) -> dict[str, Any]:
    """Return what is known about splits that the user made."""
    return {
        "storage": {name: type(split).__name__ for name, split in splits.items()},
        "sizes": {name: len(split) for name, split in splits.items()},
        "splits": {
            name: {"size": len(split), "labels_sha256": digest(split.labels.numpy())} for name, split in splits.items()
        },
        "train_class_counts": counts,
        "augmentation": None,
    }


def load_task(
    source: str | Path,
    *,
    seed: int = 0,
    validation: float | None = None,
    test: float = 0.15,
    image_size: int | tuple[int, int] | None = None,
    flip: bool | None = None,
    memory_mb: float = 4096.0,
    workers: int | None = None,
) -> Task:
    """Load data, check it and cut the splits that it lacks.

    Args:
        source: ``digits``; a ``.npz`` file with x_train, y_train and perhaps x_test, y_test; a folder with
            IDX files (or the common start of their names, as ``emnist/emnist-letters``); a folder with
            ``train/<class>/*.png`` and perhaps ``test/<class>/``, ``validation/<class>/``; a folder with
            ``<class>/*.png``; ``hf:`` and a Hugging Face data set id or path.
        seed: the cut of the splits, the order of the samples and the augmentation depend on it.
        validation: share of the training samples that becomes the validation split if the source has none; 15 %, and
            up to 25 % where those are fewer than 500 samples, if nothing is said.
        test: the same for the test split.
        image_size: side, or (height, width), that all images are resized to; without it images must have one
            size, and sides above 224 are scaled down to 224.
        flip: whether training mirrors images; None decides by the data, see
            `data.augmentation.choose_augmentation`.
        memory_mb: bound on decoded images in memory; folders and Hugging Face sets beyond it are streamed.
        workers: threads that decode images; None is one for each processor, 8 at most.

    Raises:
        DataError: the data cannot be used; one line with the value, the place and the remedy.
    """
    options = Options(seed, validation, test, image_size, flip, memory_mb, workers)
    typed = str(source)
    return _task(_name(typed), typed, read_source(typed, memory_mb=memory_mb), options)


def _task(name: str, typed: str, source: Source, options: Options) -> Task:
    data = assemble(source, options)
    train = data.splits["train"]
    example, _ = next(iter(train.batches(1)))
    return Task(
        name=name,
        train=train,
        validation=data.splits["validation"],
        test=data.splits["test"],
        loss=torch.nn.functional.cross_entropy,
        metric=balanced_accuracy if data.imbalanced else accuracy,
        metric_name="balanced accuracy" if data.imbalanced else "accuracy",
        example=example,
        classes=data.classes,
        preprocessing=data.preprocessing,
        record={"source": typed, **data.record},
        warnings=data.warnings,
    )


def _name(typed: str) -> str:
    """Return a short name for reports: the last part of what the user typed."""
    path = Path(typed.removeprefix("hf:"))
    return (path.name or path.resolve().name).removesuffix(".npz") or typed
