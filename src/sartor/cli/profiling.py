# SPDX-License-Identifier: Apache-2.0
"""`sartor profile`: measure a device for a space, adapt an older profile to it, or print one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from sartor import names, units
from sartor.cli import arguments as given

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sartor.costs.ledger import Entry
    from sartor.costs.profile import Profile

File = Annotated[Path | None, Argument(metavar="FILE", help="A .costs file to print, instead of measuring.")]
Name = Annotated[str | None, Option("--target", metavar="NAME", help=f"{given.TARGET}.")]
Space = Annotated[str | None, Option("--space", metavar="NAME", help="Of `sartor list spaces`, or path.py:Class.")]
Out = Annotated[Path | None, Option(metavar="FILE", help="The .costs file to write, or to add to, as cpu.costs.")]
Side = Annotated[
    given.ImageSize | None,
    Option("--size", metavar="HxW", parser=given.ImageSize.parse, help="Of the images, as 32 or 24x32; 32."),
]
Channels = Annotated[int | None, Option(metavar="N", min=1, max=1024, help="Of the images; 3.")]
Classes = Annotated[int | None, Option(metavar="N", min=1, help="Of the classifier; 10.")]
Budget = Annotated[
    float | None,
    Option(metavar="TIME", parser=units.parse_duration, help="Wall-clock time; 10min, if nothing is said."),
]
Samples = Annotated[
    int | None, Option(metavar="N", min=3, help="Networks to learn from: what the budget allows; 10 with --from.")
]
Tests = Annotated[int | None, Option(metavar="N", min=0, help="Networks to test on: a quarter of all, 8 to 48.")]
Old = Annotated[Path | None, Option("--from", metavar="FILE", help="Adapt this profile of another device.")]
Source = Annotated[str | None, Option("--from-target", metavar="NAME", help="Which target's profile of that file.")]


def profile(
    file: File = None,
    target: Name = None,
    space: Space = None,
    out: Out = None,
    size: Side = None,
    channels: Channels = None,
    classes: Classes = None,
    budget: Budget = None,
    samples: Samples = None,
    tests: Tests = None,
    old: Old = None,
    source: Source = None,
    seed: given.Seed = 0,
    threads: given.Threads = 1,
    force: given.Force = False,
    debug: given.Debug = False,
) -> None:
    """Learn how fast a device runs the networks of a space.

    Operators and networks are measured until the budget is spent; the model that predicts held-out networks best goes
    into the file with its error. The same command continues a profile that was stopped. With a file alone, print it.
    """
    shape = {"--size": size, "--channels": channels, "--classes": classes, "--budget": budget, "--tests": tests}
    if file is not None:
        other = {"--out": out, "--from": old, "--from-target": source, **shape, "--samples": samples}
        how = {"--seed": seed or None, "--threads": threads if threads > 1 else None, "--force": force or None}
        if told := _told({**other, **how}):
            raise ValueError(f"{file} is to be printed: leave out {told}, or the file")
        show(file, target=target, space=space)
        return
    if target is None or out is None:
        raise ValueError("name the device and the file to write, as in --target onnxruntime --out cpu.costs")
    names.check("targets", target)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name a file, as {out / 'cpu.costs'}")
    from sartor.cli.commands import _console, progress

    say = progress()
    if old is not None:
        if told := _told(shape):
            raise ValueError(f"{told} cannot be given with --from: the old profile decides")
        from sartor.recipes.profile_device import adapt_profile

        found = adapt_profile(
            old, target=target, out=out, samples=10 if samples is None else samples, source=source, space=space,
            seed=seed, threads=threads, force=force, on_progress=say,
        )  # fmt: skip
    else:
        if space is None:
            raise ValueError("name the space whose networks are to be predicted, as in --space mobilenet")
        if source is not None:
            raise ValueError("--from-target names a profile of the file that --from names: give that too")
        _check_space(space)
        from sartor.recipes.profile_device import profile_device

        height, width = size or (32, 32)
        found = profile_device(
            target=target, space=space, out=out, size=(height, width), channels=channels or 3,
            classes=classes or 10, budget_s=budget, samples=samples, tests=tests, seed=seed, threads=threads,
            force=force, on_progress=say,
        )  # fmt: skip
    print_profile(_console(), found)


def _check_space(space: str) -> None:
    names.check("spaces", space)
    if names.is_pretrained(space):
        raise ValueError(f"{space!r} is profiled by `sartor search` itself, with its data: name a built-in space")


def _told(options: Mapping[str, object]) -> str:
    """Return the names of the options that were given."""
    return ", ".join(name for name, value in options.items() if value is not None)


def show(file: Path, *, target: str | None, space: str | None) -> None:
    """Print the profiles of a file, or the one that is named; the file is not changed."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    from sartor.cli.commands import _console
    from sartor.costs.ledger import Ledger

    entries = Ledger(file, to_read=True).entries()
    asked = [one for one in entries if target in (None, one.target) and space in (None, one.space["name"])]
    if not asked:
        known = ", ".join(one.title for one in entries) or "none"
        raise ValueError(f"{file} holds no such profile; its profiles: {known}")
    for one in asked:
        print_entry(_console(), one)


def print_profile(console: Console, profile: Profile) -> None:
    """Print a profile that was made just now."""
    space = {"name": profile.space_name, **profile.shape}
    _print(console, profile.target, profile.fingerprint, space, profile.record)


def print_entry(console: Console, entry: Entry) -> None:
    """Print a profile as a file has it, finished or not; no network is made and nothing fitted."""
    _print(console, entry.target, entry.fingerprint, entry.space, entry.record)


def _print(
    console: Console,
    target: str,
    fingerprint: Mapping[str, str],
    space: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    height, width = space["size"]
    console.print(
        f"{target}: {space['name']}, {space['channels']}x{height}x{width}, {space['classes']} classes",
        style="bold", markup=False, soft_wrap=True,
    )  # fmt: skip
    if record is None:
        console.print("not finished: start the same `sartor profile` again", markup=False)
        return
    console.print(_table(record))
    for line in _remarks(record):
        console.print(line, markup=False, soft_wrap=True)
    told = ", ".join(f"{name} {value}" for name, value in fingerprint.items() if name != "flags")
    console.print(f"fingerprint: {told}", markup=False, soft_wrap=True)


def _table(record: Mapping[str, Any]) -> Table:
    """One row per model: error and ranking on the test if there is one; two of the intervals fit 80 characters."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "MAPE %", "R2", "Spearman", "Kendall"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for model in record["models"]:
        mark = "*" if model["name"] == record["chosen"] else " "
        table.add_row(f"{mark} {model['name']}", *_cells(model["test"] or model["validation"]))
    if record["retest"]:
        table.add_row("  again", *_cells(record["retest"]))
    return table


def _cells(found: Mapping[str, Sequence[float | None]]) -> Iterable[str]:
    percent = [None if value is None else 100 * value for value in found["mape"]]
    yield _cell(percent, digits=1, interval=True)
    for name in ("r2", "spearman", "kendall"):
        yield _cell(found[name], digits=3, interval=name == "spearman")


def _cell(values: Sequence[float | None], *, digits: int, interval: bool) -> str:
    value, low, high = values
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.{digits}f}" + f" ({low:.{digits}f} {high:.{digits}f})" * interval


def _remarks(record: Mapping[str, Any]) -> Iterable[str]:
    samples, coverage = record["samples"], record["coverage"]
    least, most = samples["milliseconds"]
    yield f"* chosen: {record['chosen']}. {record['method']} In brackets: 95 % intervals."
    if record["retest"]:
        yield "again: the test's second measurement, as a prediction of the first; expect no model to do better"
    yield (
        f"networks: {samples['train']} to learn from, {samples['test']} to test on, from {units.format_latency(least)} "
        f"to {units.format_latency(most)}, in {record['seconds']:.0f} s"
    )
    if samples["refused"]:
        yield f"refused: {samples['refused']} networks ({'; '.join(samples['reasons'])})"
    if samples["noisy"]:
        yield f"noisy: {samples['noisy']} of {samples['measurements']} measurements; the machine was not quiet"
    if "share_of_operators" in coverage:
        yield (
            f"operators: {coverage['operators_measured']} measured; of those in the tested networks "
            f"{coverage['missing']} of {coverage['operators']} came from the roofline "
            f"({100 * (1 - coverage['share_of_time']):.1f} % of their time)"
        )
    yield f"options: {coverage['options_seen']} of {coverage['options']} are in a network to learn from"
    yield from (f"left out: {line}" for line in record["left_out"])
