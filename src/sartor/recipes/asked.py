# SPDX-License-Identifier: Apache-2.0
"""What a device search is asked for, checked before any work: limits, targets, and the weights of an earlier run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sartor import names
from sartor.limits import FORMS
from sartor.protocols import Target
from sartor.recipes.job import COUNTED, LIMITS
from sartor.recipes.methods import BIGNAS
from sartor.run import Run
from sartor.targets import load_target

__all__ = ["check_ladder", "check_limits", "check_method", "check_weights", "earlier_plan", "load_targets"]


def check_limits(limits: Mapping[str, float], targets: Sequence[str], limit_as: str) -> None:
    """Raise ValueError for a limit or a form that is not known, or a limit of a target that is not searched for."""
    if limit_as not in FORMS:
        raise ValueError(f"no limit is taken as {limit_as!r}: use {', '.join(FORMS)}")
    for key in limits:
        name, at, target = key.partition("@")
        if name not in LIMITS or (at and name in COUNTED):
            raise ValueError(f"no limit is named {key!r}; the limits are {', '.join(LIMITS)}")
        if at and target not in targets:
            raise ValueError(f"{key!r} limits a target that is not searched for; the targets are {', '.join(targets)}")
    if limit_as in ("penalty", "exponent", "lagrangian") and not limits:
        raise ValueError(f"limits taken as {limit_as!r} need a limit; give one, or take them as 'hard' or 'pareto'")


def check_ladder(ladder: Mapping[str, Sequence[float]], limits: Mapping[str, float], targets: Sequence[str]) -> None:
    """Raise ValueError for limits that are no times, of a target that is not searched for, or beside a single one."""
    if ladder and any(name.partition("@")[0] == "latency_ms" for name in limits):
        raise ValueError("one latency limit and several do not go together: give all in the ladder")
    for target, values in ladder.items():
        if target and target not in targets:
            raise ValueError(f"limits of {target!r}, which is not searched for; the targets are {', '.join(targets)}")
        if not values or any(not 0.0 < value < math.inf for value in values):
            raise ValueError(f"the latency limits are {list(values)}: give milliseconds above 0")


def check_method(method: str, space: str, *, retrain: bool | None, cost_weight: float | None, weights: bool) -> None:
    """Raise ValueError for a method that searches nothing, and for what does not go with the method."""
    names.check_search(method)
    if names.is_pretrained(space) and names.reads_out(method):
        raise ValueError(
            f"the method {method!r} searches by gradients among operations, and {space!r} has none: "
            "name a method of shared weights, as instatune or llama_nas"
        )
    if cost_weight is not None and not 0.0 <= cost_weight < math.inf:
        raise ValueError(f"the cost weight is {cost_weight:g}: give a number from 0")
    if not names.reads_out(method) and (retrain is not None or cost_weight is not None):
        what = "to retrain or to inherit" if retrain is not None else "a cost weight"
        raise ValueError(f"{what} is for methods of differentiable search; name one, as method 'fbnet'")
    if names.reads_out(method) and weights:
        raise ValueError(f"the weights of an earlier run are for methods of shared weights; {method!r} trains its own")


def load_targets(texts: str | Sequence[str], *, threads: int) -> tuple[Target, ...]:
    """Return the targets that are named; ValueError where there is none, or two have one name."""
    wanted = [texts] if isinstance(texts, str) else list(texts)
    targets = tuple(load_target(text, threads=threads) for text in wanted)
    known = [target.name for target in targets]
    if not known or len(set(known)) < len(known):
        raise ValueError(f"the targets are {', '.join(known) or 'none'}: name at least one, and each once")
    return targets


def check_weights(folder: Path, record: Mapping[str, Any], out: Path) -> None:
    """Raise ValueError unless `folder` is a run with trained weights for the space, image and classes of `record`.

    out: where the new run is written, which must be another folder: it would replace the weights.
    """
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} holds the weights that are asked for: name another folder for what is made of them")
    run = Run.open(folder, lock=False)
    if "train" not in run.stages:
        raise ValueError(f"{folder} has no trained weights yet: `sartor resume {folder}` finishes it")
    if names.reads_out(method := run.record["arguments"].get("method", BIGNAS)):
        raise ValueError(
            f"{folder} is a run of --method {method}: --weights takes shared weights, of a run without one"
        )
    if (asked := record["arguments"]["method"]) != method:
        raise ValueError(f"the weights of {folder} were trained by {method}, not {asked}: name that method, or none")
    theirs, ours = run.record["arguments"]["space"], record["arguments"]["space"]
    if theirs != ours:
        raise ValueError(f"the weights of {folder} are of space {theirs!r}, and {ours!r} is searched: name that")
    for key in ("channels", "height", "width"):
        before, now = (one["task"]["preprocessing"].get(key) for one in (run.record, record))
        if before != now:
            raise ValueError(f"the weights of {folder} are for images of {key} {before}, not {now}: train again")
    theirs, ours = run.record["task"], record["task"]
    if theirs.get("source") == ours.get("source") and theirs.get("splits") != ours.get("splits"):
        raise ValueError(
            f"the weights of {folder} were trained on another split of this data, some of which would now test them: "
            f"search with seed {run.record['seed']}"
        )
    if theirs["classes"] != ours["classes"]:
        raise ValueError(f"the weights of {folder} are for other classes: train again, without weights")


def earlier_plan(folder: Path) -> dict[str, int]:
    """Return what a plan takes over from the run that trained the shared weights: their steps, and the threads."""
    plan = Run.open(folder, lock=False).record["plan"]
    steps = plan.get("shared_steps", plan["steps"])
    return {"shared_steps": int(steps), "training_threads": int(plan["training_threads"])}
