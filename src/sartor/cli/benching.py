# SPDX-License-Identifier: Apache-2.0
"""`sartor bench`, and what `resume` and `report` do with the folder of one."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from sartor.bench.entries import Entry
    from sartor.bench.problem import Problem
    from sartor.bench.running import Outcome

Say = Callable[[str], None]


def is_scoreboard(folder: Path) -> bool:
    """Say whether a run folder is that of a scoreboard."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("kind") == "bench"


def tables() -> dict[str, str]:
    """Return the tables that come with the package, each with the first line of its module's docstring.

    By reading source and the names of files, as all listing, since a table itself needs numpy.
    """
    folder = Path(__file__).parents[1] / "tables"
    found: dict[str, str] = {}
    for path in sorted(folder.glob("[!_]*.py")):
        tree = ast.parse(path.read_bytes())
        title = (ast.get_docstring(tree) or "").partition("\n")[0]
        made = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "table"), None)
        if made is None:  # what the tables share
            continue
        several = [file.stem.removeprefix(f"{path.stem}_") for file in sorted((folder / "data").glob(f"{path.stem}_*"))]
        names = [f"{path.stem}:{one}" for one in several] if len(made.args.args) > 1 else [path.stem]
        found |= dict.fromkeys(names, title)
    return found


def use_one_thread() -> None:
    """Let this process and those it starts compute with one thread each, unless the user said otherwise.

    It must come before anything that computes is imported.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def split_names(names: str, option: str = "--strategies") -> list[str]:
    """Read "all" or "nsga2,random_search"."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise ValueError(f"{option} {names!r} names nothing; give all, or names with commas")
    return found


def searches_by_gradients(problem: Problem, methods: str, steps: int | None) -> list[Entry]:
    """Return the entries of "all" or "darts,gdas"."""
    from sartor.bench import method_entries
    from sartor.bench.methods import STEPS

    return method_entries(problem, split_names(methods, "--methods"), steps=steps or STEPS)


def read_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Read NAME=TEXT, as an option takes it several times."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ValueError(f"{option} {text!r} is not understood; write it as NAME=TEXT")
        found[name.strip()] = value.strip()
    return found


def read_budgets(texts: Sequence[str]) -> dict[float, str]:
    """Read BUDGET=COLUMN, as `--fidelity` takes it several times."""
    try:
        return {float(budget): column for budget, column in read_pairs("--fidelity", texts).items()}
    except ValueError:
        raise ValueError(f"--fidelity {' '.join(texts)} is not understood; write 0.06=COLUMN") from None


def usable_cores() -> int:
    """Return how many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    problem: Problem,
    entries: Sequence[Entry],
    out: Path,
    say: Say,
    *,
    queries: int,
    seeds: int,
    workers: int | None,
    resume: bool,
    force: bool,
) -> None:
    """Run a scoreboard, and print it whatever became of single entries."""
    from sartor.bench import bench

    say(f"{problem.name}: {len(entries)} entries, {seeds} seeds of {queries} queries")
    try:
        bench(
            problem,
            entries,
            queries=queries,
            seeds=seeds,
            out=out,
            workers=workers or usable_cores(),
            resume=resume,
            force=force,
            progress=_progress(say, seeds),
        )
    finally:
        if (out / "report.json").is_file():
            show(out)


def again(folder: Path, say: Say) -> None:
    """Continue the scoreboard in `folder` as it was started.

    Raises:
        ValueError: it was started from Python with what a command cannot make again.
    """
    from sartor.bench import Entry, method_entries, table_problem
    from sartor.bench.running import read_record

    record = read_record(folder)
    arguments = dict(record["arguments"])
    if not arguments or any(entry["given"] is None for entry in record["entries"]):
        raise ValueError(f"{folder} was started from Python; continue it there, with bench(..., resume=True)")
    arguments["fidelities"] = {float(budget): name for budget, name in arguments["fidelities"].items()}
    problem = table_problem(arguments.pop("space"), arguments.pop("objective"), **arguments)
    entries: list[Entry] = []
    for one in record["entries"]:
        if one.get("method"):
            entries += method_entries(problem, [one["given"]], steps=one["settings"]["steps"])
            continue
        entries.append(
            Entry(
                one["name"],
                one["given"],
                settings={key: one["settings"][key] for key in one["changed"]},
                tuned=one["tuned"],
                limit_as=one["settings"].get("limit_as", "hard"),
            )
        )
    counts = {"queries": record["queries"], "seeds": record["seeds"]}
    run(problem, entries, folder, say, **counts, workers=None, resume=True, force=False)


def rewrite(folder: Path) -> Path:
    """Write the page again, and return its path."""
    from sartor.bench.page import write_scoreboard

    return write_scoreboard(folder)


def show(folder: Path) -> None:
    """Print the scoreboard, the items of the check-list that are not met, and where the page is."""
    from rich.console import Console

    summary = json.loads((folder / "report.json").read_bytes())
    console = Console(highlight=False)
    console.print(
        f"{summary['name']}: {summary['queries']} queries, {summary['seeds']} seeds", style="bold", markup=False
    )
    console.print(_table(summary))
    if summary.get("methods"):
        console.print(_methods(summary))
    for item in summary["checklist"]:
        if item["state"] == "not met":
            console.print(f"not met: {item['asked']}. {item['answer']}", markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def _table(summary: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    several = "volume" in summary["rankings"] or summary["box"] is not None
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("entry", no_wrap=True, overflow="ellipsis")
    columns = [summary["problem"]["reported"], "sd", "regret", *(["volume"] if several else []), "rank", "CPU ms"]
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in summary["rows"]:
        reported, regret = row["reported"] or {}, row["regret"] or {}
        volume = [_shown((row["reported_volume"] or {}).get("mean"), 4)] if several else []
        shown.add_row(
            escape(row["name"]),
            _shown(reported.get("mean"), 2),
            _shown(reported.get("sd"), 2),
            _shown(regret.get("mean"), 3),
            *volume,
            _shown(row["rank"], 2),
            _shown(row["cpu_ms"], 3),
        )
    return shown


def _methods(summary: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    known = summary["methods"]
    title = f"against the truth of {summary['known']['architectures']} networks; means and 95 % intervals"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="")
    shown.add_column("method", no_wrap=True)
    for column in ("rank", "regret", "random, same budget", "skips", "all skip", "passes", "trainings", "CPU s"):
        shown.add_column(column, justify="right")
    for row in known["rows"]:
        shown.add_row(
            escape(row["name"]),
            _interval(row["rank"], 1),
            _interval(row["regret"], 2),
            f"{_shown(row['random_rank'], 1)} {row['verdict']}",
            _shown(row["skips"], 2),
            f"{row['all_skip']} of {row['seeds']}",
            _shown(row["search_passes"], 0),
            _shown(row["search_trainings"], 1),
            _shown(row["search_cpu_s"], 1),
        )
    for row in known["baselines"]:
        shown.add_row(row["name"], _shown(row["rank"], 1), _shown(row["regret"], 2), "", _shown(row["skips"], 2))
    return shown


def _interval(part: Mapping[str, Any] | None, digits: int) -> str:
    if part is None:
        return ""
    ends = "" if part["low"] is None else f" [{part['low']:.{digits}f}-{part['high']:.{digits}f}]"
    return f"{part['mean']:.{digits}f}{ends}"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _progress(say: Say, seeds: int) -> Callable[[Outcome], None]:
    """Return what says when an entry is through, and at once when it failed."""
    ended: dict[str, list[Outcome]] = {}

    def take(outcome: Outcome) -> None:
        ended.setdefault(outcome.entry, []).append(outcome)
        if outcome.error:
            say(f"{outcome.entry} failed: {outcome.error}")
        elif outcome.seed == seeds - 1:
            say(f"{outcome.entry}: {_cost(ended[outcome.entry])}")

    return take


def _cost(outcomes: Iterable[Outcome]) -> str:
    ran = [*outcomes]
    return f"{len(ran)} seeds, {sum(one.cpu_s for one in ran):.1f} s of CPU"
