# SPDX-License-Identifier: Apache-2.0
"""Predictors: surrogates of what is dear to measure."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartor.predictors.gaussian_process import GaussianProcess as GaussianProcess
    from sartor.predictors.gbdt import GBDT as GBDT
    from sartor.predictors.gcn import GCN as GCN
    from sartor.predictors.help import HELP as HELP
    from sartor.predictors.la_darts import LADARTS as LADARTS
    from sartor.predictors.mlp import MLP as MLP
    from sartor.predictors.pretrained_mlp import PretrainedMLP as PretrainedMLP
    from sartor.predictors.ridge import Ridge as Ridge
    from sartor.predictors.ridge_or_svr import RidgeOrSVR as RidgeOrSVR
    from sartor.predictors.workload_latency import WorkloadLatency as WorkloadLatency

__all__ = [
    "GBDT",
    "GCN",
    "HELP",
    "LADARTS",
    "MLP",
    "GaussianProcess",
    "PretrainedMLP",
    "Ridge",
    "RidgeOrSVR",
    "WorkloadLatency",
]

_MODULES = {
    "GBDT": "gbdt",
    "GCN": "gcn",
    "HELP": "help",
    "GaussianProcess": "gaussian_process",
    "LADARTS": "la_darts",
    "MLP": "mlp",
    "PretrainedMLP": "pretrained_mlp",
    "Ridge": "ridge",
    "RidgeOrSVR": "ridge_or_svr",
    "WorkloadLatency": "workload_latency",
}


def __getattr__(name: str) -> object:
    """Import a predictor when it is first used: a strategy with boosted trees needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
