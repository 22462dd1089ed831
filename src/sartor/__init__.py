"""Sartor: hardware-aware neural architecture search for PyTorch.

The names below are the ones to learn. Each is imported when it is first used, so `import sartor` is instant
and needs no torch. Whatever belongs to one family stays in its package: `sartor.strategies`,
`sartor.spaces`, `sartor.targets`, and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sartor import bench as bench
    from sartor import calibration as calibration
    from sartor import costs as costs
    from sartor import data as data
    from sartor import deploy as deploy
    from sartor import encodings as encodings
    from sartor import fit as fit
    from sartor import nn as nn
    from sartor import oneshot as oneshot
    from sartor import pareto as pareto
    from sartor import predictors as predictors
    from sartor import ranking as ranking
    from sartor import recipes as recipes
    from sartor import report as report
    from sartor import search as search
    from sartor import spaces as spaces
    from sartor import strategies as strategies
    from sartor import tables as tables
    from sartor import targets as targets
    from sartor import units as units
    from sartor.architecture import Architecture as Architecture
    from sartor.choice import Choice as Choice
    from sartor.choice import Derived as Derived
    from sartor.choice import take as take
    from sartor.objective import Objective as Objective
    from sartor.protocols import Artefact as Artefact
    from sartor.protocols import Learner as Learner
    from sartor.protocols import Measurement as Measurement
    from sartor.protocols import NotReady as NotReady
    from sartor.protocols import Predictor as Predictor
    from sartor.protocols import Strategy as Strategy
    from sartor.protocols import Target as Target
    from sartor.run import Run as Run
    from sartor.space import SearchSpace as SearchSpace
    from sartor.supernet import activated as activated
    from sartor.supernet import extract as extract
    from sartor.supernet import named_choices as named_choices
    from sartor.supernet import recalibrate_batchnorm as recalibrate_batchnorm
    from sartor.supernet import search_space as search_space
    from sartor.task import Task as Task
    from sartor.task import load_task as load_task
    from sartor.trial import Candidate as Candidate
    from sartor.trial import Trial as Trial
    from sartor.trial import TrialLog as TrialLog
    from sartor.workload import Op as Op
    from sartor.workload import Workload as Workload
    from sartor.workload import trace as trace

__version__ = "0.1.0"

# No name is both a module and a function: `sartor.search` is the module, `sartor.search.search` the verb.
_MODULES = (
    "bench",
    "calibration",
    "costs",
    "data",
    "deploy",
    "encodings",
    "fit",
    "nn",
    "oneshot",
    "pareto",
    "predictors",
    "ranking",
    "recipes",
    "report",
    "search",
    "spaces",
    "strategies",
    "tables",
    "targets",
    "units",
)
_NAMES = {
    "Architecture": "architecture",
    "Artefact": "protocols",
    "Candidate": "trial",
    "Choice": "choice",
    "Derived": "choice",
    "Learner": "protocols",
    "Measurement": "protocols",
    "NotReady": "protocols",
    "Objective": "objective",
    "Op": "workload",
    "Predictor": "protocols",
    "Run": "run",
    "SearchSpace": "space",
    "Strategy": "protocols",
    "Target": "protocols",
    "Task": "task",
    "Trial": "trial",
    "TrialLog": "trial",
    "Workload": "workload",
    "activated": "supernet",
    "extract": "supernet",
    "load_task": "task",
    "named_choices": "supernet",
    "recalibrate_batchnorm": "supernet",
    "search_space": "supernet",
    "take": "choice",
    "trace": "workload",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"sartor.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'sartor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sartor.{_NAMES[name]}"), name)
    globals()[name] = value  # the next use is an ordinary look-up
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
