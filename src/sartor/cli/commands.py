# SPDX-License-Identifier: Apache-2.0
"""The commands. Each checks what costs nothing to check, and only then imports what costs something."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sartor
from sartor import names
from sartor.cli import arguments as given
from sartor.cli import asked, profiling, supernets

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_BUDGET_S = 180.0

_EXAMPLES = """\
\b
Examples:
  sartor search digits --latency 0.2ms --out runs/first
  sartor search photos/ --target onnxruntime:int8 --latency 5ms --size 2MB --budget 1h --out runs/photos
  sartor search digits --target onnxruntime --target torch --latency 2ms --out runs/both
  sartor search digits --method fbnet --space fbnet --latency 0.2ms --out runs/fbnet
  sartor search reviews.csv --model models/minilm --latency 8ms --length 32 --budget 30min --out runs/reviews
  sartor resume runs/photos --budget +30min
  sartor train mobilenet digits --method ofa --budget 10min --out runs/net
  sartor specialise runs/net --target torch --target onnxruntime --latency 0.1ms --latency 0.2ms
  sartor profile --target openvino --space mobilenet --out cpu.costs
  sartor bench --space nasbench201 --objective cifar100 --queries 200 --seeds 30 --out runs/scoreboard
"""

# Plain help, since the decorated one would import rich, and take three times as long.
app = typer.Typer(rich_markup_mode=None, add_completion=False, epilog=_EXAMPLES)


def _show_version(asked: bool) -> None:
    if asked:
        _say(f"sartor {sartor.__version__}")
        raise typer.Exit


@app.callback()
def sartor_itself(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find networks that fit your data and your machine."""


@app.command()
def search(
    context: typer.Context,
    data: given.Data,
    out: given.Out,
    target: given.Targets = None,
    latency: given.Latency = None,
    energy: given.Energy = None,
    memory: given.Memory = None,
    size: given.Size = None,
    macs: given.Macs = None,
    params: given.Params = None,
    limit_as: given.LimitAs = "hard",
    weights: given.Weights = None,
    costs: given.Profile = None,
    budget: given.Budget = None,
    steps: given.Steps = None,
    trials: given.Trials = None,
    trial_timeout: given.TrialTimeout = None,
    space: given.Space = "mobilenet",
    model: given.Model = None,
    elastic: given.Elastic = None,
    uniform: given.Uniform = None,
    length: given.Length = None,
    batch: given.Batch = 1,
    method: given.Method = None,
    strategy: given.Strategy = "auto",
    retrain: given.Retrain = None,
    cost_weight: given.CostWeight = None,
    image_size: given.ImageSide = None,
    baselines: given.Baselines = True,
    seed: given.Seed = 0,
    threads: given.Threads = 1,
    resume: given.Resume = False,
    force: given.Force = False,
    debug: given.Debug = False,
) -> None:
    """From data to verified, exported networks.

    Train a supernet, search it, verify and export the networks of the Pareto front.
    """
    asked.check_work(budget, steps, trials)
    if resume and force:
        raise ValueError("--resume continues a run and --force replaces it; give one of them")
    targets, space = target or ["onnxruntime"], asked.space_of(context)
    of_pretrained = asked.pretrained_options(context, space)
    asked.check_names(targets, space, strategy, method)
    if may_write(out, resume=resume, force=force):
        go_on(out, context)
        return

    say = progress()
    from sartor import recipes

    recipes.search_for_device(
        data,
        target=targets,
        out=out,
        limits=asked.limits_of(context.params),
        limit_as=limit_as,
        weights=weights,
        costs=costs,
        budget_s=None if steps else budget or DEFAULT_BUDGET_S,
        steps=steps,
        trials=trials,
        space=space,
        method=method,
        strategy=strategy,
        retrain=retrain,
        cost_weight=cost_weight,
        image_size=image_size,
        batch=batch,
        baselines=baselines,
        seed=seed,
        threads=threads,
        trial_timeout_s=trial_timeout,
        force=force,
        on_progress=say,
        **of_pretrained,
    ).close()
    conclude(out)


@app.command("resume")
def resume_run(run: given.Run, budget: given.MoreTime = None, debug: given.Debug = False) -> None:
    """Continue a run that was stopped.

    It goes on from its last checkpoint and trial, and with a budget beyond its end.
    """
    again(run, budget)


@app.command()
def report(run: given.Run, open_path: given.OpenPath = False, debug: given.Debug = False) -> None:
    """Write the report of a run again.

    The files are report.html, report.json and front.png.
    """
    from sartor.cli import benching

    if scoreboard := benching.is_scoreboard(run):
        page = benching.rewrite(run)
    else:
        from sartor.report import write_report

        page = write_report(run)
    if open_path:
        _say(str(page))
    elif scoreboard:
        benching.show(run)
    else:
        conclude(run)


@app.command()
def measure(
    models: given.Models,
    target: given.Target = "onnxruntime",
    threads: given.Threads = 1,
    debug: given.Debug = False,
) -> None:
    """Time exported networks on a target.

    Exported files, or all networks of a run, are timed in interleaved rounds.
    """
    names.check("targets", target)

    from sartor.cli.measuring import measured
    from sartor.cli.tables import print_measurements

    found, complaints = measured(models, target=target, threads=threads)
    if found:
        print_measurements(_console(), found, target)
    if complaints:
        raise ValueError("; ".join(complaints))


@app.command()
def bench(
    space: given.BenchSpace,
    objective: given.Column,
    out: given.BenchOut,
    queries: given.Queries,
    seeds: given.Seeds,
    strategies: given.Strategies = None,
    strategy: given.OwnStrategies = None,
    methods: given.GradientMethods = None,
    steps: given.MethodSteps = None,
    device: given.Device = None,
    latency: given.DeviceLatency = None,
    limit_as: given.LimitAs = "hard",
    cost: given.Costs = None,
    signal: given.Signal = None,
    fidelity: given.Fidelities = None,
    tuned: given.Tuned = None,
    workers: given.Workers = None,
    resume: given.Resume = False,
    force: given.Force = False,
    debug: given.Debug = False,
) -> None:
    """Compare strategies on a table, over seeds, at equal budgets.

    Write a page with curves, ranks and tests, and every query as parquet.
    """
    from sartor.cli import benching

    if resume and force:
        raise ValueError("--resume continues a scoreboard and --force replaces it; give one of them")
    benching.use_one_thread()
    asked = benching.split_names(strategies) if strategies else [] if strategy or methods else ["all"]
    begun = may_write(out, resume=resume, force=force)

    from sartor.bench import named_entries, table_problem

    said = benching.read_pairs("--tuned", tuned or [])
    named = [*asked, *(strategy or [])]
    entries = named_entries(named, tuned=said, limit_as=limit_as) if named else []
    problem = table_problem(
        space,
        objective,
        device=device,
        costs=cost or (),
        signal=signal,
        latency_ms=latency,
        fidelities=benching.read_budgets(fidelity or []),
    )
    if methods:
        entries += benching.searches_by_gradients(problem, methods, steps)
    counts = {"queries": queries, "seeds": seeds}
    benching.run(problem, entries, out, progress(), **counts, workers=workers, resume=begun, force=force)


app.command("train")(supernets.train)
app.command("specialise")(supernets.specialise)
app.command("profile")(profiling.profile)


@app.command("list")
def list_built_in(family: given.Family = None, debug: given.Debug = False) -> None:
    """Say which spaces, strategies, methods, targets and tables are built in."""
    families: Iterable[str] = [family] if family else [*names.FAMILIES, "tables"]
    for each in families:
        known = _tables() if each == "tables" else names.built_in(each)
        width = max(map(len, known), default=0)
        if not family:
            _say(f"{each}:")
        for name, text in known.items():
            _say(f"{'' if family else '  '}{name:{width}}  {text}")
        if each == "targets" and not family:
            _say("  beside these: remote:COMMAND, datasheet:TEXT and path.py:Class")


def _tables() -> dict[str, str]:
    from sartor.cli.benching import tables

    return tables()


def is_run(folder: Path) -> bool:
    """Say whether a folder was written by a search; a damaged record still counts beside the run's lock."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return (folder / "run.lock").is_file()
    return isinstance(record, dict) and isinstance(record.get("format"), int)


def _never_began(folder: Path) -> bool:
    """Say whether a folder holds no more than a search leaves that was killed before it wrote its record."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(found) and found <= {"run.lock", "run.json.tmp"}


def go_on(out: Path, context: typer.Context) -> None:
    """Continue the search in `out`, if it is the one that is asked for."""
    asked.check_same(out, context)
    if warning := asked.unused_budget(out, context):
        _say(warning)
    again(out, None)


def may_write(out: Path, *, resume: bool, force: bool) -> bool:
    """Check the folder of a new run; return True if it holds a run that is to be continued.

    Raises:
        OSError: it is a file, cannot be written, or holds something that may not be replaced.
    """
    if out.is_dir() and any(out.iterdir()) and not _never_began(out):
        if not is_run(out):
            raise FileExistsError(f"{out} holds files that no search wrote; name another folder with --out")
        if not (resume or force):
            raise FileExistsError(
                f"{out} holds a run; continue it with `sartor resume {out}`, or replace it with --force"
            )
        return resume
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a folder with --out")
    _try_to_write(out)
    return False


def _try_to_write(out: Path) -> None:
    """Fail now rather than after the work; of the folders made to find out, the parents stay."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            writable = os.access(out, os.W_OK | os.X_OK)
        else:
            out.mkdir()
            out.rmdir()
            writable = True
    except OSError as error:
        raise PermissionError(f"{out} cannot be written ({error.strerror}); name another folder") from None
    if not writable:
        raise PermissionError(f"{out} cannot be written (no permission); name another folder")


def again(folder: Path, budget_s: float | None = None) -> None:
    """Continue the run or scoreboard in a folder, and print what it ends with."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such run folder")
    if _never_began(folder):
        raise ValueError(f"{folder} has nothing to resume: its search was killed as it began; start the search again")
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run folder (a search writes run.json into it)")

    say = progress()
    from sartor.cli import benching

    if benching.is_scoreboard(folder):
        if budget_s is not None:
            raise ValueError(f"{folder} is a scoreboard, which has no --budget; give its command more --queries")
        benching.again(folder, say)
        return

    from sartor import recipes

    recipes.resume(folder, budget_s=budget_s, on_progress=say).close()
    if int(os.environ.get("RANK", 0)) == 0:  # of the processes that torchrun started
        conclude(folder)


def conclude(folder: Path) -> None:
    """Print what a finished run has."""
    if (folder / "run.json").is_file() and supernets.is_training(folder):
        _say(f"{folder} holds shared weights; next: sartor specialise {folder} --target NAME --latency TIME")
        return
    if (folder / "specialised.json").is_file():
        supernets.print_verdicts(_console(), folder)
        return
    from sartor.cli.tables import print_front
    from sartor.report import write_report
    from sartor.report.reading import read_run

    page = folder / "report.html"
    if not page.is_file():
        page = write_report(folder)
    print_front(_console(), read_run(folder), folder, page)


def progress() -> Callable[[str], None]:
    """Return what prints a line behind the seconds that have passed since now."""
    started = time.monotonic()
    return lambda line: _say(f"{time.monotonic() - started:6.0f} s  {line}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
