# SPDX-License-Identifier: Apache-2.0
"""`sartor train` and `sartor specialise`: shared weights once, then a network for every device and limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sartor import names
from sartor.cli import arguments as given
from sartor.cli.asked import check_same, limits_of, pretrained_options, unused_budget

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["is_training", "print_verdicts", "specialise", "specialised_in", "train"]

DEFAULT_BUDGET_S = 180.0
TRIALS = 200


def train(
    context: typer.Context,
    space: given.TrainSpace,
    data: given.Data,
    out: given.Out,
    method: given.SharedMethod = None,
    elastic: given.Elastic = None,
    uniform: given.Uniform = None,
    length: given.Length = None,
    budget: given.Budget = None,
    steps: given.TrainSteps = None,
    batch_size: given.BatchSize = None,
    recipe: given.Recipe = "short",
    precision: given.Precision = "float32",
    accumulate: given.Accumulate = 1,
    shard: given.Shard = False,
    image_size: given.ImageSide = None,
    seed: given.Seed = 0,
    resume: given.Resume = False,
    force: given.Force = False,
    debug: given.Debug = False,
) -> None:
    """Train shared weights of a space once, for `sartor specialise`.

    Under torchrun several processes train one supernet, as
    torchrun --nproc-per-node 2 -m sartor train SPACE DATA --out RUN.
    """
    from sartor.cli import commands

    _check_asked(steps, budget, resume, force)
    names.check("spaces", space)
    of_pretrained = pretrained_options(context, space)
    if method is not None:
        names.check_train(method)
    first = int(os.environ.get("RANK", 0)) == 0  # of the processes that torchrun started
    say = commands.progress() if first else None
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # of several processes the first makes the folder, and tells all
        commands.may_write(out, resume=resume, force=force)
    if resume and commands.is_run(out):
        check_same(out, context)
        if say and (warning := unused_budget(out, context)):
            say(warning)
    from sartor import recipes

    recipes.train_supernet(
        data,
        space=space,
        out=out,
        method=method,
        steps=steps,
        budget_s=None if steps else budget or DEFAULT_BUDGET_S,
        batch_size=batch_size,
        recipe=recipe,
        precision=precision,
        accumulate=accumulate,
        seed=seed,
        image_size=image_size,
        shard=shard,
        force=force,
        resume=resume,
        on_progress=say,
        **of_pretrained,
    ).close()
    if first:
        commands.conclude(out)


def _check_asked(steps: int | None, budget: float | None, resume: bool, force: bool) -> None:
    if steps and budget:
        raise ValueError("--budget and --steps are two ways to say how long; give one of them")
    if resume and force:
        raise ValueError("--resume continues a run and --force replaces it; give one of them")


def specialise(
    run: given.Supernet,
    latency: given.Latencies,
    target: given.Targets = None,
    out: given.SpecialisedOut = None,
    energy: given.Energy = None,
    memory: given.Memory = None,
    size: given.Size = None,
    macs: given.Macs = None,
    params: given.Params = None,
    costs: given.Profile = None,
    trials: given.SpecialTrials = TRIALS,
    strategy: given.Strategy = "linas",
    finetune: given.Finetune = 0,
    batch: given.Batch = 1,
    threads: given.Threads = 1,
    force: given.Force = False,
    debug: given.Debug = False,
) -> None:
    """From trained shared weights to the best network for each target and limit.

    Nothing is trained, unless --finetune says so; every verdict is measured.
    """
    from sartor.cli import commands

    targets = target or ["onnxruntime"]
    for each in targets:
        names.check("targets", each)
    names.check("strategies", strategy)
    if not (run / "run.json").is_file():
        what = "holds no run" if run.is_dir() else "no such run"
        raise FileNotFoundError(f"{run}: {what}; give the folder of `sartor train`, or of a search")
    folder = specialised_in(run, out)
    commands.may_write(folder, resume=False, force=force)

    say = commands.progress()
    from sartor import recipes

    recipes.specialise(
        run,
        target=targets,
        latencies_ms=_by_target(latency),
        out=folder,
        limits=limits_of({"energy": energy, "memory": memory, "size": size, "macs": macs, "params": params}),
        trials=trials,
        strategy=strategy,
        finetune_steps=finetune,
        batch=batch,
        costs=costs,
        threads=threads,
        force=force,
        on_progress=say,
    ).close()
    commands.conclude(folder)


def specialised_in(run: Path, out: Path | None) -> Path:
    """Return the folder that a specialisation of a run is written to."""
    return run.with_name(f"{run.name}-specialised") if out is None else out


def _by_target(limits: Iterable[given.Limit]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for target, value in limits:
        found.setdefault(target, []).append(value)
    return found


def is_training(folder: Path) -> bool:
    """Say whether a run holds trained shared weights and no front."""
    record = json.loads((folder / "run.json").read_bytes())
    return bool(record.get("arguments", {}).get("work") == "train")


def print_verdicts(console: Console, folder: Path) -> None:
    """Print the network of each target and limit."""
    from rich.table import Table

    verdicts = json.loads((folder / "specialised.json").read_bytes())["verdicts"]
    table = Table(title="the best measured network within each limit")
    for column in ("target", "limit ms", "median ms", "used", "valid. %", "test %", "network"):
        table.add_column(
            column, justify="left" if column in ("target", "network") else "right", no_wrap=column != "target"
        )
    for one in verdicts:
        limit = f"{one['limit_ms']:.4g}"
        if one["met"]:
            accuracy = (f"{100 * one['accuracy'][split]:.2f}" for split in ("validation", "test"))
            told = (f"{one['latency_ms']:.4g}", f"{one['used']:.0%}", *accuracy, one["id"])
        else:
            least = one["least_ms"]
            told = ("none ran" if least is None else f"least {least:.4g} ms", "not met", "", "", "")
        table.add_row(one["target"], limit, *told)
    console.print(table)
    console.print(f"networks are in {folder}/pareto and {folder}/candidates, by name; report: {folder}/report.html")
