"""How good a network is: its predictions over a split, and the error of a sub-network that shares weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import at_resolution, channels_last
from sartor.supernet import extract, recalibrate_batchnorm

__all__ = ["RowMetric", "SharedWeightError", "compiled", "predicted", "predictions", "scored", "specialised"]

Pair = tuple[Tensor, Tensor]
"""The outputs for a batch, and its labels."""


@runtime_checkable
class RowMetric(Protocol):
    """A metric that is a function of numbers that each batch has by itself, so that no one holds all logits at once."""

    def __call__(self, outputs: Tensor, labels: Tensor, /) -> float:
        """The metric of all samples."""

    def rows(self, outputs: Tensor, labels: Tensor, /) -> Tensor:
        """What the metric needs of a batch, one row for each thing it counts."""

    def of_rows(self, rows: Tensor, /) -> float:
        """The metric from the rows of all batches."""


def predicted(network: nn.Module, batches: Iterable[Pair]) -> Iterator[Pair]:
    """Yield the network's outputs, in eval mode and at its own resolution, and the labels, batch by batch."""
    network.eval()
    for images, labels in batches:
        with torch.inference_mode():
            outputs = at_resolution(network, images)
        yield outputs, labels


def predictions(network: nn.Module, batches: Iterable[Pair]) -> Pair:
    """The network's outputs (N, K), in eval mode and at its own resolution, and the labels (N,) of all batches."""
    pairs = list(predicted(network, batches))
    return torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs])


def scored(metric: Callable[[Tensor, Tensor], float], pairs: Iterable[Pair]) -> float:
    """The metric over the (outputs, labels) of all batches.

    A `RowMetric` gets one batch at a time: the logits of a language model over a split would not fit into memory.
    Raises ValueError without a batch.
    """
    rows = metric.rows if isinstance(metric, RowMetric) else None
    found = [(outputs if rows is None else rows(outputs, labels), labels) for outputs, labels in pairs]
    if not found:
        raise ValueError("a metric of no batch: give the batches of a split")
    every = torch.cat([first for first, _ in found])
    if isinstance(metric, RowMetric):
        return metric.of_rows(every)
    return metric(every, torch.cat([labels for _, labels in found]))


def specialised(supernet: nn.Module, arch: Architecture, calibration: Iterable[Tensor]) -> nn.Module:
    """The sub-network as it would be deployed: extracted, with batch-norm statistics of its own, in eval mode.

    `calibration` holds batches of training images (N, C, H, W); the supernet's own statistics are not touched.
    """
    network = channels_last(extract(supernet, arch))
    recalibrate_batchnorm(network, calibration)
    return network.eval()


def compiled(network: nn.Module, example: Tensor) -> nn.Module:
    """The network behind `torch.compile`, tried on `example` (N, C, H, W); itself, with a warning, where that fails.

    It is for extracted networks: a supernet would be compiled anew for every sub-network. Nothing is compiled for
    another shape of the batch before it is met. A warning says why, such as that there is no C++ compiler.
    """
    fast: nn.Module = torch.compile(network)  # type: ignore[assignment]
    try:
        with torch.no_grad():
            at_resolution(fast, example)
    except (RuntimeError, ImportError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"{type(network).__name__} runs uncompiled, as torch.compile fails: {reason}", stacklevel=2)
        return network
    return fast


class SharedWeightError:
    """An objective: 1 - metric of a sub-network with the supernet's weights, without any training of its own.

    Args:
        supernet: the trained shared weights.
        metric: (N, K) outputs, (N,) labels -> fraction, higher is better; batch by batch if it is a `RowMetric`.
        batches: what it is evaluated on, of the validation split; once through for each call.
        calibration: training images for the batch-norm statistics.
    """

    def __init__(
        self,
        supernet: nn.Module,
        metric: Callable[[Tensor, Tensor], float],
        batches: Iterable[tuple[Tensor, Tensor]],
        calibration: Sequence[Tensor],
    ) -> None:
        self.supernet, self.metric, self.batches, self.calibration = supernet, metric, batches, calibration

    def __call__(self, arch: Architecture) -> float:
        """The error in [0, 1]; NaN where the outputs are not finite."""
        network = specialised(self.supernet, arch, self.calibration)
        finite = True

        def checked() -> Iterator[Pair]:
            nonlocal finite
            for outputs, labels in predicted(network, self.batches):
                finite = finite and bool(outputs.isfinite().all())
                yield outputs, labels

        value = scored(self.metric, checked())
        return 1.0 - value if finite else float("nan")
