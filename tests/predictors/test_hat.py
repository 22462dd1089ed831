# SPDX-License-Identifier: Apache-2.0
"""HAT's latency predictor: it learns what multiplications do not tell, and refuses what it cannot use."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from sartor.architecture import Architecture
from sartor.predictors.hat import HAT
from sartor.protocols import Predictor
from sartor.ranking import spearman
from sartor.space import SearchSpace

SPACE = SearchSpace({"depth": (1, 2, 3, 4, 5, 6), "width": (512, 640), "ffn": (1024, 2048, 3072)})


def described(arch: Architecture) -> tuple[float, ...]:
    return tuple(float(arch[name]) for name in ("depth", "width", "ffn"))  # type: ignore[arg-type]


def latency(arch: Architecture) -> float:
    depth, width, ffn = described(arch)
    return 5.0 + 20.0 * depth + depth * width * ffn / 1e6


make = partial(HAT, described, steps=300, lr=1e-3)


def test_it_predicts_latencies_it_has_not_seen() -> None:
    archs = list(dict.fromkeys(SPACE.sample(random.Random(i)) for i in range(80)))
    values = np.array([latency(arch) for arch in archs])
    predictor = make().fit(archs[:-8], values[:-8])
    assert isinstance(predictor, Predictor)
    mean, deviation = predictor.predict(archs[-8:])
    assert spearman(mean, values[-8:]) > 0.95 and not deviation.any()
    assert np.mean(np.abs(mean - values[-8:]) / values[-8:]) < 0.1
    again = make().fit(archs[:-8], values[:-8]).predict(archs[-8:])[0]
    assert np.array_equal(mean, again), "the same seed, the same predictor"
    other = make(seed=1).fit(archs[:-8], values[:-8]).predict(archs[-8:])[0]
    assert not np.array_equal(mean, other)


def test_features_can_be_given_themselves() -> None:
    archs = [SPACE.sample(random.Random(i)) for i in range(20)]
    values = np.array([latency(arch) for arch in archs])
    x = np.array([described(arch) for arch in archs])
    by_arch, by_feature = make().fit(archs, values), make().fit_features(x, values)
    assert np.array_equal(by_arch.predict(archs)[0], by_feature.predict_features(x))


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="steps 0, batch 128: give 1 or more"):
        HAT(described, steps=0)
    archs = [SPACE.sample(random.Random(i)) for i in range(3)]
    with pytest.raises(ValueError):
        make().predict(archs)
    with pytest.raises(ValueError):
        make().fit(archs, np.array([1.0, np.nan, 2.0]))
