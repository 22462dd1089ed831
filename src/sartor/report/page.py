# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that holds all it needs, drawn from the run folder alone."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from sartor.atomic import write_bytes, write_json
from sartor.report.cells import drawn_cells
from sartor.report.diagram import block_diagram, spoken
from sartor.report.evolution import learned
from sartor.report.figures import front_figure, latency_figure, search_figure, training_figure
from sartor.report.image import front_image
from sartor.report.palette import SERIES_DARK, SERIES_LIGHT
from sartor.report.progress import Point, progress, question
from sartor.report.reading import Json, Record, mapping, number, read_run
from sartor.report.summary import summarise
from sartor.report.template import FILTERS, rendered

__all__ = ["FILTERS", "write_report"]

SHOWN = 9  # choices whose effects are shown at once; the others open on demand


def write_report(run_folder: Path) -> Path:
    """Write `report.html`, `front.png` and `report.json` into a run folder, and return the page's path.

    Only the run folder is read; an unfinished run gives a report that says what it lacks. The same folder
    gives the same files, byte for byte.

    Raises:
        ValueError: `run.json` is missing, unreadable or of an unknown format.
        OSError: a file cannot be written.
    """
    record = read_run(run_folder)
    summary = summarise(record)
    points = progress(record.trials, question(record))
    image = front_image(summary, points)
    page = run_folder / "report.html"
    write_json(run_folder / "report.json", summary)
    write_bytes(run_folder / "front.png", image)
    charts, entropy = learned(record, run_folder)
    weights = {"charts": Markup(charts), "entropy": entropy, "read_out": record.part("read_out").get("id")}
    write_bytes(page, _page(record, summary, points, image, weights).encode())
    return page


def _page(record: Record, summary: Json, points: Sequence[Point], image: bytes, weights: Json) -> str:
    figures = {
        "front": front_figure(summary, points),
        "latency": latency_figure(record),
        "training": training_figure(record),
        "search": search_figure(points),
    }
    for place, other in enumerate(summary["other_targets"]):
        found = front_figure(other, progress(record.trials, question(record, other["target"])))
        figures[f"front-{place + 2}"] = found
    cells, diagram = _diagrams(record, summary)
    return rendered(
        "page.html.jinja",
        {name: figure for name, figure in figures.items() if figure is not None},
        light=SERIES_LIGHT,
        dark=SERIES_DARK,
        summary=summary,
        name=record.name,
        graphs=cells,
        diagram=diagram,
        weights=weights,
        verdicts=_verdicts(record),
        method=str(record.part("arguments").get("method") or "bignas"),
        shown=SHOWN,
        listed=_has_index_list(record),
        reach=_reach(summary),
        facts=_facts(record, summary),
        command=_command(record),
        versions=_versions(record),
        image=b64encode(image).decode(),
    )


def _verdicts(record: Record) -> list[Json]:
    """Return what was found for each of several limits; [] where none were asked for or it is not known yet."""
    found = record.specialised.get("verdicts")
    needed = {"target", "limit_ms", "met", "least_ms"}
    return [one for one in found if isinstance(one, dict) and needed <= one.keys()] if isinstance(found, list) else []


def _diagrams(record: Record, summary: Json) -> tuple[list[tuple[str, Markup]], Markup | None]:
    """Draw the recommended network, its cells apart; while there is none, nothing is singled out."""
    if record.best is None:
        return [], None
    shape = mapping(record.part("task").get("preprocessing"))
    sizes = [number(shape.get(key)) for key in ("channels", "height", "width")]
    source = f"input {' x '.join(f'{size:.0f}' for size in sizes if size)}" if all(sizes) else "input"
    classes = summary["asked"]["classes"]
    drawn, rest = drawn_cells(record.best.arch)
    cells = [(name, Markup(svg)) for name, svg in drawn]
    if cells and not rest:
        return cells, None
    space = record.space if len(rest) == len(record.best.arch) else None
    return cells, Markup(block_diagram(rest, space, source, f"{classes:.0f} classes" if classes else "output"))


def _has_index_list(record: Record) -> bool:
    options = record.space.choices.values() if record.space else ()
    return any(isinstance(option, tuple) for each in options for option in each)


def _reach(summary: Json) -> dict[str, float]:
    """Return the largest effect on each axis, which the longest bar stands for."""
    found = {"accuracy": 0.0, "latency_ms": 0.0}
    for choice in summary["effects"]["choices"] if summary["effects"] else ():
        for option in choice["options"]:
            for part in found.keys() & option.keys():
                found[part] = max(found[part], abs(option[part]["value"]))
    return {part: value or 1.0 for part, value in found.items()}


def _facts(record: Record, summary: Json) -> dict[str, list[tuple[str, str]]]:
    """Return the environment, the target and the plan as lines of a page."""
    targets = {
        "Target" if not place else f"Target {place + 1}": {
            "name": one.get("name", ""), **mapping(one.get("fingerprint"))
        }
        for place, one in enumerate(record.targets)
    }  # fmt: skip
    task = {key: value for key, value in record.part("task").items() if key not in ("classes", "warnings", "splits")}
    asked = {key: value for key, value in record.part("arguments").items() if value not in (None, {}, [])}
    parts = {
        "Environment": record.part("environment"),
        **targets,
        "Data": task,
        "Arguments": asked,
        "Plan": {
            "seed": record.run.get("seed", "unknown"),
            **record.part("plan"),
            "objectives": "; ".join(map(_wanted, summary["asked"]["objectives"])),
        },
    }
    return {
        title: [(key.replace("_", " "), _told(value)) for key, value in part.items()]
        for title, part in parts.items()
        if part
    }


def _wanted(objective: Json) -> str:
    """Return an objective as one reads it: latency_ms min, at most 0.2."""
    bounds = [f"{key.replace('_', ' ')} {objective[key]:g}" for key in ("at_most", "at_least") if key in objective]
    return ", ".join([f"{objective['name']} {objective['goal']}", *bounds])


def _told(value: Any) -> str:
    """Return a JSON value in words; long lists by their length."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    return spoken(value)


def _command(record: Record) -> str:
    """Return the command that was given, the program by its name; "" for a call from Python."""
    command = record.run.get("command")
    program, *rest = [str(part) for part in command] if isinstance(command, list) and command else [""]
    if PurePath(program).name in ("", "-c", "-"):
        return ""
    if PurePath(program).name == "__main__.py":
        return shlex.join(["python", "-m", "sartor", *rest])
    return shlex.join([PurePath(program).name if PurePath(program).stem == "sartor" else program, *rest])


def _versions(record: Record) -> str:
    """Return the pip command that installs what the run had, as far as the run says so."""
    environment = record.part("environment")
    known = ((package, environment.get(package)) for package in ("sartor", "torch"))
    # A build tag such as +cpu names another index than PyPI.
    pins = [f"{package}=={str(version).partition('+')[0]}" for package, version in known if version]
    return f"pip install {shlex.join(pins)}" if pins else ""
