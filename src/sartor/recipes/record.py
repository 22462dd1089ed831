# SPDX-License-Identifier: Apache-2.0
"""What `run.json` says of a run from the start, and whether that still holds when it is resumed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import sartor
from sartor.protocols import Target
from sartor.run import Run
from sartor.task import Task

__all__ = ["arguments_of", "check_same", "new_record", "silent"]


def new_record(arguments: Mapping[str, Any], task: Task, devices: Sequence[Target]) -> dict[str, Any]:
    """What `run.json` says from the start."""
    return {
        "command": sys.argv,
        "arguments": dict(arguments),
        "seed": arguments["seed"],
        "environment": _environment(),
        "task": {
            **task.record,
            "name": task.name,
            "classes": list(task.classes),
            "metric_name": task.metric_name,
            "preprocessing": task.preprocessing.to_dict(),
            "warnings": list(task.warnings),
        },
        "targets": [{"name": device.name, "fingerprint": device.fingerprint()} for device in devices],
    }


def arguments_of(run: Run) -> dict[str, Any]:
    """What the run was asked; ValueError when its record does not say."""
    arguments = run.record.get("arguments")
    needed = (
        "budget_s", "data", "given", "image_size", "limits", "seed", "space", "steps", "strategy", "target", "threads",
        "trial_timeout_s", "trials",
    )  # fmt: skip
    lacking = [name for name in needed if not isinstance(arguments, dict) or name not in arguments]
    kinds = {"task": dict, "targets": list}
    lacking += [name for name, kind in kinds.items() if not isinstance(run.record.get(name), kind)]
    if lacking:
        raise ValueError(f"{run.path / 'run.json'} does not say {', '.join(lacking)}; start the run again with --force")
    return dict(arguments or {})


def check_same(run: Run, task: Task, targets: Sequence[Target]) -> None:
    """A run goes on with the data and on the devices that it started with."""
    before, now = run.record["task"], task.record
    changed = [key for key in now if key in before and before[key] != now[key] and key != "source"]
    if changed:
        raise ValueError(f"the data of {run.path} changed since it started ({', '.join(changed)}); start a new run")
    for recorded, target in zip(run.record["targets"], targets, strict=True):
        was, found = recorded["fingerprint"], target.fingerprint()
        other = [f"{key} was {was.get(key)}, is {found.get(key)}" for key in found if was.get(key) != found[key]]
        if other:
            raise ValueError(f"{run.path} was measured on another target ({other[0]}); start a new run here")


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "sartor": sartor.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def silent(line: str) -> None:
    """Say nothing: the progress of a run that nobody watches."""
