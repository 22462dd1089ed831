"""How good a network is: its predictions over a split, and the error of a sub-network that shares weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import at_resolution, channels_last
from sartor.supernet import extract, recalibrate_batchnorm

__all__ = ["SharedWeightError", "compiled", "predictions", "specialised"]


def predictions(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The network's outputs (N, K), in eval mode and at its own resolution, and the labels (N,) of all batches."""
    network.eval()
    with torch.inference_mode():
        pairs = [(at_resolution(network, images), labels) for images, labels in batches]
    return torch.cat([outputs for outputs, _ in pairs]), torch.cat([labels for _, labels in pairs])


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
        metric: (N, K) outputs, (N,) labels -> fraction, higher is better.
        batches: what it is evaluated on, of the validation split.
        calibration: training images for the batch-norm statistics.
    """

    def __init__(
        self,
        supernet: nn.Module,
        metric: Callable[[Tensor, Tensor], float],
        batches: Sequence[tuple[Tensor, Tensor]],
        calibration: Sequence[Tensor],
    ) -> None:
        self.supernet, self.metric, self.batches, self.calibration = supernet, metric, batches, calibration

    def __call__(self, arch: Architecture) -> float:
        """The error in [0, 1]; NaN where the outputs are not finite."""
        outputs, labels = predictions(specialised(self.supernet, arch, self.calibration), self.batches)
        return 1.0 - self.metric(outputs, labels) if bool(outputs.isfinite().all()) else float("nan")
