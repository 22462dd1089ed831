# SPDX-License-Identifier: Apache-2.0
"""Costs: what networks take on a device, kept or computed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sartor.costs.store import CostStore

if TYPE_CHECKING:
    from sartor.costs.datasheet import Datasheet as Datasheet
    from sartor.costs.datasheet_target import DatasheetTarget as DatasheetTarget
    from sartor.costs.energy import AcceleratorEnergy as AcceleratorEnergy
    from sartor.costs.energy import AccessEnergy as AccessEnergy
    from sartor.costs.expected import CostTable as CostTable
    from sartor.costs.expected import OfWorkload as OfWorkload
    from sartor.costs.expected import cost_table as cost_table
    from sartor.costs.memory_tiers import TieredMemory as TieredMemory
    from sartor.costs.operator_pool import OperatorStudy as OperatorStudy
    from sartor.costs.operator_pool import study_layers as study_layers
    from sartor.costs.operator_pool import study_networks as study_networks
    from sartor.costs.operator_pool import study_on_target as study_on_target
    from sartor.costs.profile import Profile as Profile
    from sartor.costs.profile import load_profile as load_profile
    from sartor.costs.roofline import Roofline as Roofline
    from sartor.costs.systolic import SystolicArray as SystolicArray

__all__ = [
    "AcceleratorEnergy",
    "AccessEnergy",
    "CostStore",
    "CostTable",
    "Datasheet",
    "DatasheetTarget",
    "OfWorkload",
    "OperatorStudy",
    "Profile",
    "Roofline",
    "SystolicArray",
    "TieredMemory",
    "cost_table",
    "load_profile",
    "study_layers",
    "study_networks",
    "study_on_target",
]

_MODULES = {
    "AcceleratorEnergy": "energy",
    "AccessEnergy": "energy",
    "CostTable": "expected",
    "Datasheet": "datasheet",
    "DatasheetTarget": "datasheet_target",
    "OfWorkload": "expected",
    "OperatorStudy": "operator_pool",
    "Profile": "profile",
    "Roofline": "roofline",
    "SystolicArray": "systolic",
    "TieredMemory": "memory_tiers",
    "cost_table": "expected",
    "load_profile": "profile",
    "study_layers": "operator_pool",
    "study_networks": "operator_pool",
    "study_on_target": "operator_pool",
}


def __getattr__(name: str) -> object:
    """Import a cost when it is first used: a store needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
