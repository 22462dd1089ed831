# SPDX-License-Identifier: Apache-2.0
"""Whether a converted file still computes what the network computes; what every converter's output passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sartor.deploy.parity import ExportError, compare, outputs, require
from sartor.targets.artefacts import Run

__all__ = ["require_same_outputs"]


def require_same_outputs(run: Run, model: nn.Module, example: Tensor, converter: str) -> None:
    """Compare a converted network with `model` on noise of the example's shape (N, C, H, W).

    Converters may go wrong without a word: an operator that they half understand gives a file that runs, at a
    latency of something else.

    Raises:
        ExportError: it fails, or differs by more than float32 does.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    try:
        found = compare(run, outputs(model, noise), noise)
    except ExportError as error:
        raise ExportError(f"what {converter} made of the network does not run: {error}") from error
    require(found, f"what {converter} made of the network")
