# SPDX-License-Identifier: Apache-2.0
"""Whether `search --resume` or `train --resume` asks for what the run in the folder was started with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from sartor import names
from sartor.own import absolute

_LIMITS = {
    "latency": ("latency_ms", 1.0, "ms"),
    "energy": ("energy_mj", 1.0, "mJ"),
    "memory": ("memory_mb", 1e-6, "MB"),
    "size": ("size_bytes", 1.0, "B"),
    "macs": ("macs", 1.0, ""),
    "params": ("params", 1.0, ""),
}
"""The options that are limits: the name that the record has, its value for 1 of the option's, and its unit."""

_OTHERS = (
    "target",
    "limit_as",
    "weights",
    "costs",
    "steps",
    "trials",
    "trial_timeout",
    "space",
    "model",
    "elastic",
    "uniform",
    "length",
    "batch",
    "method",
    "strategy",
    "retrain",
    "cost_weight",
    "image_size",
    "baselines",
    "batch_size",
    "recipe",
    "precision",
    "accumulate",
    "shard",
    "seed",
    "threads",
)
_RECORDED_AS = {"trial_timeout": "trial_timeout_s", "model": "space"}


def limits_of(params: Mapping[str, Any]) -> dict[str, float]:
    """Return the limits that were written, by the names that a search has for them."""
    found: dict[str, float] = {}
    for option, (name, scale, _) in _LIMITS.items():
        given = params.get(option)
        for target, value in [("", given)] if isinstance(given, float) else given or ():
            found[f"{name}@{target}" if target else name] = float(value) * scale
    return found


def check_names(targets: Iterable[str], space: str, strategy: str, method: str | None) -> None:
    """Raise ValueError for a name that nothing has, or a method that searches nothing."""
    for family, named in (("targets", targets), ("spaces", [space]), ("strategies", [strategy])):
        for one in named:
            names.check(family, one)
    if method is not None:
        names.check_search(method)


def check_work(budget: float | None, steps: int | None, trials: int | None) -> None:
    """Raise ValueError unless the amount of work is said in one way, or none."""
    if (steps or trials) and budget:
        raise ValueError("--budget and --steps/--trials are two ways to say how much work; give one of them")
    if bool(steps) != bool(trials):
        raise ValueError("--steps and --trials go together; give both, or a --budget")


def space_of(context: typer.Context) -> str:
    """Return the space that is searched, a pretrained network included; ValueError where two are named."""
    space, model = context.params["space"], context.params["model"]
    if model is None:
        return str(space)
    if is_written(context, "space"):
        raise ValueError("--model is the space that is searched, so --space does not go with it; give one of them")
    return f"{names.PRETRAINED}{model}"


def pretrained_options(context: typer.Context, space: str) -> dict[str, Any]:
    """Return what a recipe is told of a pretrained network; ValueError where that is said of another space."""
    given = {name: context.params[name] for name in ("elastic", "uniform", "length")}
    wrong = next((name for name, value in given.items() if value), None)
    if wrong and not names.is_pretrained(space):
        raise ValueError(f"--{wrong} is of a pretrained network, and {space!r} is none: give --model, or leave it out")
    roles = [one.role for one in given["elastic"] or ()]
    if twice := next((role for role in roles if roles.count(role) > 1), None):
        raise ValueError(f"--elastic says twice what {twice} can be; give all of its options at once")
    return {"elastic": dict(given["elastic"] or ()), "uniform": given["uniform"] or (), "length": given["length"]}


def check_same(run: Path, context: typer.Context) -> None:
    """Compare DATA and the options that the user wrote with the record of `run`; a budget may differ.

    What is not written is as the run has it. A record that cannot be read is left to the resume to tell.

    Raises:
        ValueError: naming the first difference, and what to do.
    """
    recorded = _recorded(run)
    if not recorded:
        return
    recorded = {**recorded, **(recorded.get("means") or {})}
    if not recorded.get("given") and not _same_data(recorded.get("data"), context.params["data"]):
        raise ValueError(_told(run, "data", recorded.get("data"), context.params["data"]))
    limits, asked = recorded.get("limits") or {}, limits_of(context.params)
    for name in _LIMITS:
        same = [{key: one for key, one in each.items() if _option_of(key) == name} for each in (limits, asked)]
        if is_written(context, name) and same[0] != same[1]:
            raise ValueError(_told(run, f"--{name}", _limits_shown(same[0]), _limits_shown(same[1])))
    for name in _OTHERS:
        if not is_written(context, name):
            continue
        before, now = recorded.get(_RECORDED_AS.get(name, name)), context.params[name]
        if name == "image_size":
            before, now = _sides(before), _sides(now)
        elif name == "model":
            now = absolute(f"{names.PRETRAINED}{now}")
        elif name == "elastic":
            now = {role: _listed(values) for role, values in now}
        elif name in ("weights", "costs"):
            now = os.path.realpath(now)  # as it is recorded
        elif name == "target":
            now = [absolute(one) for one in now]
        elif isinstance(now, str):
            now = absolute(now)
        if before != now:
            raise ValueError(_told(run, f"--{name.replace('_', '-')}", _shown(name, before), _shown(name, now)))


def unused_budget(run: Path, context: typer.Context) -> str:
    """Return a warning if the user wrote another budget than `run` was started with; "" otherwise."""
    recorded = _recorded(run)
    if not recorded or not is_written(context, "budget") or context.params["budget"] == recorded.get("budget_s"):
        return ""
    trains = recorded.get("work") == "train"  # its length was fixed, which the learning rate follows
    more = "" if trains else f"; for more time, `sartor resume {run} --budget +TIME`"
    return f"warning: --budget is not used, for {run} goes on with the work that it was started with{more}"


def _option_of(limit: str) -> str:
    """Return the option that a recorded limit was written with."""
    return next((option for option, (name, _, _) in _LIMITS.items() if name == limit.partition("@")[0]), "")


def _limits_shown(limits: Mapping[str, float]) -> str | None:
    """Return limits as they are written on the command line; None where there is none."""
    if not limits:
        return None
    written = []
    for key, value in limits.items():
        text = f"{value:.12g}{_LIMITS[_option_of(key)][2]}"
        _, at, target = key.partition("@")
        written.append(f"{target}={text}" if at else text)
    return " and ".join(written)


def _listed(values: tuple[Any, ...]) -> list[Any]:
    """Return options as JSON holds them."""
    return [list(one) if isinstance(one, tuple) else one for one in values]


def is_written(context: typer.Context, name: str) -> bool:
    """Tell whether the user wrote an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _recorded(run: Path) -> Mapping[str, Any]:
    try:
        arguments = json.loads((run / "run.json").read_bytes())["arguments"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _same_data(before: object, now: str) -> bool:
    return before == now or (isinstance(before, str) and os.path.realpath(before) == os.path.realpath(now))


def _sides(size: Any) -> tuple[int, ...] | None:
    """Return height and width; one number is a square."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def _shown(name: str, value: Any) -> str | None:
    """Return a value as it is written on the command line."""
    if value is None:
        return None
    if name == "image_size":
        return "x".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " and ".join(map(str, value))
    unit = "s" if name == "trial_timeout" else ""
    return f"{value:.12g}{unit}" if isinstance(value, float | int) else str(value)


def _told(run: Path, what: str, before: object, now: object) -> str:
    had = f"without {what}" if before is None else f"with {what} {before}"
    return (
        f"{run} was started {had}, and {now} is asked for now; continue it as it is with `sartor resume {run}`, "
        "or replace it with --force"
    )
