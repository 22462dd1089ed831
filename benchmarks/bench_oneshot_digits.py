# SPDX-License-Identifier: Apache-2.0
"""Learners of shared weights at equal passes, 5 seeds: how their sub-networks fare, beside uniform sampling.

Noisy digits (500 images to train), the elastic MobileNet for 8x8 images, one recipe, batches of 64; see
`oneshot_common`. Accuracies in percent, of 1,297 images: of the largest and the smallest sub-network, and the mean over
30 from small to large. tau: Kendall's, between the losses of those 32 with shared weights and trained alone (600 steps,
3 seeds). gap: how many points the 30 are behind their twins that were trained from scratch for as many passes as the
whole supernet had, the mean over three of them. against uniform: the difference of the mean accuracy to uniform
sampling (SPOS) with the same seed, and its 95 % interval. Passes are forward-backward passes of a batch.

What is trained is kept in runs/oneshot-digits, or SARTOR_OUT, and several processes may share the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from oneshot_common import Comparison, digits, spread, summary

Row = Mapping[str, str | float | int | None]

METHODS = (
    "spos", "fairnas", "slimmable", "universally_slimmable", "ofa", "bignas", "attentivenas", "alphanet",
    "shiftnas", "pa_da", "few_shot", "gm_nas", "netadaptv2", "mixture_of_supernets",
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "bignas, half on labels": ("bignas", {"label_share": 0.5}),  # as `sartor train` has it
}
BASELINE = "spos"
PASSES, SEEDS = 2400, 5
SCRATCH = (0, 16, 31)  # of the architectures: those trained from scratch for as long as the supernet


def rows(quick: bool) -> Iterator[Row]:
    """A row per learner, then one for the networks trained alone."""
    comparison = digits()
    passes, seeds = (40, range(2)) if quick else (PASSES, range(SEEDS))
    yield from compared(comparison, (*METHODS, *VARIANTS), passes, seeds)


def compared(comparison: Comparison, methods: Sequence[str], passes: int, seeds: Sequence[int]) -> Iterator[Row]:
    """A row per learner, the mean and standard deviation over the seeds."""

    def trained(name: str, seed: int) -> Mapping[str, Any]:
        method, given = VARIANTS.get(name, (name, {}))
        return comparison.trained(method, seed, passes, **given)

    found = {name: [trained(name, seed) for seed in seeds] for name in ordered(methods)}
    alone = [[comparison.alone(comparison.architectures[i], passes, seed)[0] for i in SCRATCH] for seed in seeds]
    base = [summary(comparison, one) for one in found[BASELINE]]
    for name in methods:
        told = [summary(comparison, one) for one in found[name]]
        gaps = [100 * np.mean([alone[s][k] - found[name][s]["scores"][i][0] for k, i in enumerate(SCRATCH)])
                for s in range(len(alone))]  # fmt: skip
        yield {
            "learner": name,
            **{key: spread([one[key] for one in told]) for key in ("largest", "mean", "smallest")},
            "tau": spread([one["tau"] for one in told], 2),
            "gap": spread(gaps),
            "against uniform": "" if name == BASELINE else difference(told, base),
            "passes": int(np.mean([one["effort"][0] for one in found[name]])),
            "looks": int(np.mean([one["effort"][1] for one in found[name]])),
            "updates": int(np.mean([one["effort"][2] for one in found[name]])),
            "CPU s": float(np.median([one["cpu_s"] for one in found[name]])),
        }
    accuracies = [100 * a for a, _ in comparison.truth]
    yield {"learner": "each alone", "largest": accuracies[0], "smallest": accuracies[1],
           "mean": float(np.mean(accuracies[2:])), "passes": comparison.truth_steps * len(accuracies)}  # fmt: skip


def ordered(methods: Sequence[str]) -> Sequence[str]:
    """The learners from the front, or for a second process (SARTOR_BACKWARDS) from the back."""
    return methods[::-1] if os.environ.get("SARTOR_BACKWARDS") else methods


def difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> str:
    """The mean paired difference of the mean accuracy, and its 95 % interval."""
    from scipy.stats import t

    each = np.array([one["mean"] - other["mean"] for one, other in zip(ours, theirs, strict=True)])
    half = float(t.ppf(0.975, len(each) - 1)) * float(np.std(each, ddof=1)) / len(each) ** 0.5
    return f"{each.mean():+.1f} ± {half:.1f}"
