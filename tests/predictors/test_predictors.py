# SPDX-License-Identifier: Apache-2.0
"""The contract of every predictor."""

from __future__ import annotations

from functools import partial

from contracts.predictor_contract import PredictorContract
from sartor.predictors import GBDT, GCN, MLP, GaussianProcess, PretrainedMLP, Ridge, RidgeOrSVR
from sartor.predictors.losses import diffkendall


class TestRidge(PredictorContract):
    make = staticmethod(Ridge)


class TestRidgeOrSVR(PredictorContract):
    make = staticmethod(RidgeOrSVR)


class TestGaussianProcess(PredictorContract):
    make = staticmethod(GaussianProcess)


class TestGBDT(PredictorContract):
    make = partial(GBDT, members=1, rounds=60)


class TestMLP(PredictorContract):
    make = partial(MLP, steps=60, members=2)


class TestMLPOfTheOrder(PredictorContract):
    make = partial(MLP, steps=60, members=2, loss=diffkendall)


class TestPretrainedMLP(PredictorContract):
    make = partial(PretrainedMLP, unlabelled=200, pretraining=40, frozen=20, steps=60, units=32, members=2)


class TestGCN(PredictorContract):
    make = partial(GCN, units=32, layers=2, epochs=60, lr=1e-2, draws=2)
