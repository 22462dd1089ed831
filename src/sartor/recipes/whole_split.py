# SPDX-License-Identifier: Apache-2.0
"""The error of sub-networks with the shared weights on the whole validation split, of which trials see a part."""

from __future__ import annotations

import math

from sartor.architecture import Architecture
from sartor.evaluation import SharedWeightError
from sartor.recipes.job import Job
from sartor.recipes.supernets import Serving

__all__ = ["WholeSplitError"]

BATCH = 256


class WholeSplitError:
    """1 - metric of an architecture with shared weights and statistics of its own; each is evaluated once."""

    def __init__(self, job: Job, serving: Serving) -> None:
        self.job, self.serving = job, serving
        self.known: dict[Architecture, float] = {}

    def __call__(self, arch: Architecture) -> float:
        """The error in [0, 1]; infinite where it is not finite."""
        if arch not in self.known:
            task = self.job.task
            batches = task.validation.batches(BATCH)  # one after the other: all need not fit into memory
            error = SharedWeightError(self.serving(arch), task.metric, batches, self.job.calibration)(arch)
            self.known[arch] = error if math.isfinite(error) else math.inf
        return self.known[arch]
