# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file computes what the network computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "TOLERANCE", "ExportError", "Parity", "compare", "evaluating", "outputs", "pair", "require",
    "single_line",
]  # fmt: skip

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output (at least 1): float32 sums in other orders."""

_BATCH = 256

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
"""An exported file as a function of its input: float32, or int64 token ids."""


class ExportError(RuntimeError):
    """A network that cannot be exported, or a file that does not compute what the network computes."""


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from torch: errors over all outputs of `samples` real inputs.

    `max_rel_error` is relative to the largest output, or to 1 if all are smaller; `agreement` is the share of
    samples, or of the tokens of sequences, whose largest output is the same one.
    """

    samples: int
    max_abs_error: float
    max_rel_error: float
    agreement: float
    tolerance: float = TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[nn.Module]:
    """Put `net` into evaluation mode without gradients; every module's mode is as before afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        with torch.no_grad():
            yield net
    finally:
        for module in training:
            module.training = True


def outputs(net: nn.Module, samples: Tensor) -> NDArray[np.float32]:
    """Return torch's outputs (N, ...) for `samples` (N, C, H, W) or (N, T); ExportError if the network fails."""
    with evaluating(net):
        try:
            parts = [net(part) for part in torch.split(samples, _BATCH)]
        except Exception as error:
            raise ExportError(f"the network fails on {tuple(samples.shape)}: {single_line(error)}") from error
    if not all(isinstance(part, Tensor) for part in parts):
        raise ExportError(f"the network returns {type(parts[0]).__name__}: only one tensor can be exported")
    return np.asarray(torch.cat(parts).float().numpy())


def compare(run: Run, reference: NDArray[np.float32], samples: Tensor) -> Parity:
    """Compare what `run` computes with the reference (N, ...): in batches, and for the first sample alone.

    The one sample is there because an exporter may bake the batch size in.
    """
    inputs = samples.numpy()
    try:
        found = np.concatenate([run(inputs[at : at + _BATCH]) for at in range(0, len(inputs), _BATCH)])
        alone = run(inputs[:1])
    except Exception as error:
        raise ExportError(f"the file fails on {tuple(inputs.shape)}: {single_line(error)}") from error
    if found.shape != reference.shape or alone.shape != reference[:1].shape:
        raise ExportError(f"the file returns {found.shape} where the network returns {reference.shape}")
    errors = np.abs(found - reference), np.abs(alone - reference[:1])
    worst = max(float(error.max(initial=0.0)) for error in errors)
    worst = worst if all(np.isfinite(error).all() for error in errors) else float("inf")
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    shape = (-1, found.shape[-1]) if found.ndim == 3 else (len(found), -1)  # of sequences each token is one
    flat = found.reshape(shape), reference.reshape(shape)
    same = float(np.mean(flat[0].argmax(axis=1) == flat[1].argmax(axis=1)))
    return Parity(len(reference), worst, worst / scale, same)


def require(parity: Parity, name: str) -> Parity:
    """Return `parity` if it is within its tolerance, else raise ExportError with the numbers."""
    if parity.max_rel_error <= parity.tolerance:
        return parity
    raise ExportError(
        f"{name} differs from torch by {parity.max_abs_error:.2g} ({parity.max_rel_error:.2g} relative,"
        f" {parity.tolerance:.2g} allowed) on {parity.samples} samples: an operation is exported wrongly"
    )


def pair(example: Tensor) -> Tensor:
    """Return a batch of two like `example` (N, ...): a tracer takes a size of 1 for a constant."""
    if example.ndim < 2 or not len(example) or not (example.is_floating_point() or example.dtype == torch.int64):
        raise ExportError(
            f"an example of shape {tuple(example.shape)} and {example.dtype} cannot be exported:"
            " a float batch such as (1, C, H, W), or token ids (1, T) of int64, is needed"
        )
    return torch.cat([example[:1].detach(), example[:1].detach()]).contiguous()


def single_line(error: BaseException) -> str:
    """Return the first line that says something of an error's message, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
