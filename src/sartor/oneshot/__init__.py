# SPDX-License-Identifier: Apache-2.0
"""Learners that train the shared weights of a supernet, and the plain one that baselines use."""

from sartor.oneshot._memory import Copies, check_memory, training_memory
from sartor.oneshot._recipe import FINE_TUNING, Recipe
from sartor.oneshot._training import Effort, Means
from sartor.oneshot.bignas import BigNAS
from sartor.oneshot.supervised import Supervised

__all__ = [
    "FINE_TUNING", "BigNAS", "Copies", "Effort", "Means", "Recipe", "Supervised", "check_memory", "training_memory"
]  # fmt: skip
