# SPDX-License-Identifier: Apache-2.0
"""How a differentiable search came to prefer what it prefers: the probabilities of all options, step by step.

Each choice is a small chart: a band for each option, as high as its probability, so that equal bands are no preference
and one that fills the chart is a decision. Options keep their colours across choices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from sartor.report.diagram import shortened, spoken
from sartor.report.reading import Json, Record, mapping, number
from sartor.space import SearchSpace

__all__ = ["Snapshot", "evolution_charts", "read_evolution"]

WIDTH, HEIGHT, HEAD, FOOT = 216, 76, 34, 4  # of a chart, of what is above it, and of what is below
GAP, PER_ROW = 24, 4
COLOURS = 8  # of the palette; further options repeat them, paler


@dataclass(frozen=True)
class Snapshot:
    """What was learned after so many steps: the probabilities of each choice's options, and the entropy in nats."""

    step: int
    probabilities: Mapping[str, tuple[float, ...]]
    entropy: float | None = None


def read_evolution(path: Path) -> tuple[Snapshot, ...]:
    """Return the snapshots of `architecture.jsonl` in order; () where there are none, and without damaged lines.

    Of a step that is there twice the later line holds. Only choices with equally many options throughout are kept.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    found: dict[int, Snapshot] = {}
    for line in lines:
        try:
            entry = mapping(json.loads(line))
        except ValueError:
            continue
        step, rows = number(entry.get("step")), mapping(entry.get("probabilities"))
        known = {name: values for name, row in rows.items() if (values := _row(row))}
        if step is not None and known:
            found[int(step)] = Snapshot(int(step), known, number(entry.get("entropy")))
    snapshots = tuple(found[step] for step in sorted(found))
    last = snapshots[-1].probabilities if snapshots else {}
    whole = [
        name for name, row in last.items() if all(len(one.probabilities.get(name, ())) == len(row) for one in snapshots)
    ]
    return tuple(
        Snapshot(one.step, {name: one.probabilities[name] for name in whole}, one.entropy) for one in snapshots if whole
    )


def _row(row: object) -> tuple[float, ...]:
    values = [number(one) for one in row] if isinstance(row, list) else []
    return tuple(max(0.0, one) for one in values if one is not None) if None not in values else ()


def evolution_charts(snapshots: Sequence[Snapshot], space: SearchSpace | None) -> str:
    """Return an `<svg>` with a chart for each choice; "" where fewer than two snapshots tell of one."""
    if len(snapshots) < 2:
        return ""
    names = sorted(snapshots[-1].probabilities, key=_by_number)
    labels = {name: _labels(name, snapshots, space) for name in names}
    places = {label: place for place, label in enumerate(dict.fromkeys(one for name in names for one in labels[name]))}
    parts = []
    for index, name in enumerate(names):
        row, column = divmod(index, PER_ROW)
        x, y = column * (WIDTH + GAP), row * (HEAD + HEIGHT + GAP)
        parts.append(_chart(x, y, name, snapshots, labels[name], places))
    columns, rows = min(PER_ROW, len(names)), -(-len(names) // PER_ROW)
    width, height = columns * (WIDTH + GAP) - GAP, rows * (HEAD + HEIGHT + GAP) - GAP + FOOT
    title = f"Probabilities of the options of {len(names)} choices over {snapshots[-1].step:,} steps"
    return (
        f'<svg class="diagram evolution" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>{_legend(places)}'
    )


def entropies(snapshots: Sequence[Snapshot]) -> Json | None:
    """Return the first and the last entropy in nats, and the number of steps between; None where it is not known."""
    known = [one for one in snapshots if one.entropy is not None]
    if len(known) < 2:
        return None
    return {"first": known[0].entropy, "last": known[-1].entropy, "steps": known[-1].step}


def learned(record: Record, folder: Path) -> tuple[str, Json | None]:
    """Return the charts of a run and its entropies; "" and None where it learned no distribution."""
    snapshots = read_evolution(folder / "architecture.jsonl")
    return evolution_charts(snapshots, record.space), entropies(snapshots)


def _labels(name: str, snapshots: Sequence[Snapshot], space: SearchSpace | None) -> list[str]:
    """What the options of a choice are called: by the space, or else by their numbers."""
    count = len(snapshots[-1].probabilities[name])
    options = space.choices.get(name, ()) if space else ()
    return [spoken(option) for option in options] if len(options) == count else [f"option {i}" for i in range(count)]


def _chart(
    x: int, y: int, name: str, snapshots: Sequence[Snapshot], labels: Sequence[str], places: Mapping[str, int]
) -> str:
    """Draw one choice: its name, what it prefers at the end, and the bands of its options, the first one on top."""
    last = snapshots[-1].probabilities[name]
    best = max(range(len(last)), key=last.__getitem__)
    head = f'<text class="name" x="{x}" y="{y + 12}">{shortened(name, 32)}</text>'
    value = f"{100 * last[best] / (sum(last) or 1.0):.0f} % {labels[best]}"
    head += f'<text x="{x}" y="{y + 27}">{shortened(value, 34)}</text>'
    steps = [one.step for one in snapshots]
    across = [x + WIDTH * (step - steps[0]) / max(1, steps[-1] - steps[0]) for step in steps]
    before, bands = [0.0] * len(snapshots), []
    for option, label in enumerate(labels):
        above = [
            low + one.probabilities[name][option] / (sum(one.probabilities[name]) or 1.0)
            for low, one in zip(before, snapshots, strict=True)
        ]
        top = y + HEAD
        edge = [f"{px:.1f} {top + HEIGHT * part:.1f}" for px, part in zip(across, before, strict=True)]
        back = [f"{px:.1f} {top + HEIGHT * part:.1f}" for px, part in zip(across, above, strict=True)]
        told = f"{label}: {100 * last[option] / (sum(last) or 1.0):.1f} % at the end"
        bands.append(
            f'<path class="{_colour(places[label])}" d="M{"L".join([*edge, *reversed(back)])}Z">'
            f"<title>{escape(told)}</title></path>"
        )
        before = above
    return head + "".join(bands)


def _legend(places: Mapping[str, int]) -> str:
    entries = "".join(
        f'<li><svg viewBox="0 0 10 10" width="10" height="10" aria-hidden="true"><rect class="{_colour(place)}" '
        f'width="10" height="10"/></svg>{escape(label)}</li>'
        for label, place in places.items()
    )
    return f'<ul class="legend evolution">{entries}</ul>'


def _colour(place: int) -> str:
    return f"s{place % COLOURS}" + (" pale" if place >= COLOURS else "")


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
