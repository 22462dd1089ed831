# SPDX-License-Identifier: Apache-2.0
"""The four learners that did best on digits, by the mean of three accuracies, on MNIST at equal passes, 3 seeds.

As `oneshot_digits`, of whose table the columns are; MNIST resized to 14x14, 1,500 passes, and the networks of the truth
trained alone for 500 steps, once; 4,096 images to evaluate on. SARTOR_MNIST names `mnist.npz`; what is trained is kept
in runs/oneshot-mnist, or SARTOR_OUT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from bench_oneshot_digits import BASELINE, Row, compared
from oneshot_common import mnist

BEST = ("mixture_of_supernets", "fairnas", "netadaptv2", "few_shot")
PASSES, SEEDS = 1500, 3


def rows(quick: bool) -> Iterator[Row]:
    """A row per learner, then one for the networks trained alone."""
    passes, seeds = (40, range(2)) if quick else (PASSES, range(SEEDS))
    yield from compared(mnist(os.environ.get("SARTOR_MNIST", "mnist.npz")), (BASELINE, *BEST), passes, seeds)
