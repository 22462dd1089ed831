# SPDX-License-Identifier: Apache-2.0
"""The critical-difference diagram: entries on an axis of mean ranks, bars over those that cannot be told apart.

Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006, Figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, SIDE = 960, 235  # of the drawing, and of a column of names, in pixels
AXIS, BAR, LINE = 62, 9, 21  # height of the axis, distance of bars, distance of names
SHORT = 26


def rank_diagram(ranking: Mapping[str, Any]) -> str:
    """Return an `<svg>` of a ranking of the summary: the best at the left."""
    ranks: Sequence[tuple[str, float]] = [(name, rank) for name, rank in ranking["ranks"]]
    place = {name: _x(rank, len(ranks)) for name, rank in ranks}
    bars, depth = _bars(ranking["groups"], place)
    left = (len(ranks) + 1) // 2
    first = AXIS + BAR * depth + 26
    parts = [*_axis(len(ranks)), *_difference(ranking["nemenyi"], len(ranks)), *bars]
    for row, (name, rank) in enumerate(ranks[:left]):
        parts += _entry(name, rank, place[name], first + LINE * row, left=True)
    for row, (name, rank) in enumerate(reversed(ranks[left:])):
        parts += _entry(name, rank, place[name], first + LINE * row, left=False)
    height = first + LINE * left
    return (
        f'<svg class="diagram" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="Critical-difference diagram"><title>Mean ranks</title>{"".join(parts)}</svg>'
    )


def _x(rank: float, entries: int) -> float:
    return SIDE + (rank - 1) / max(1, entries - 1) * (WIDTH - 2 * SIDE)


def _axis(entries: int) -> list[str]:
    parts = [f'<path class="link" d="M{SIDE} {AXIS}H{WIDTH - SIDE}"/>']
    step = max(1, round(entries / 10))
    for rank in range(1, entries + 1):
        x = _x(rank, entries)
        parts.append(f'<path class="link" d="M{x:.1f} {AXIS}v-6"/>')
        if (rank - 1) % step == 0:
            parts.append(f'<text x="{x:.1f}" y="{AXIS - 11}" text-anchor="middle">{rank}</text>')
    return parts


def _difference(value: float, entries: int) -> list[str]:
    """Draw Nemenyi's critical difference above the axis, if it fits beside the ranks at all."""
    text = f"Nemenyi's critical difference {value:.2f}"
    if value > entries - 1:
        return [f'<text x="{SIDE}" y="18">{text}: wider than the axis</text>']
    end = _x(1 + value, entries)
    return [
        f'<path class="link" d="M{SIDE} 19v6M{SIDE} 22H{end:.1f}M{end:.1f} 19v6"/>',
        f'<text x="{end + 9:.1f}" y="26">{text}</text>',
    ]


def _bars(groups: Sequence[Sequence[str]], place: Mapping[str, float]) -> tuple[list[str], int]:
    """Draw a bar for each group, in as few rows as they need; return the rows too."""
    ends: list[float] = []
    parts = []
    for group in groups:
        start, end = min(place[name] for name in group) - 5, max(place[name] for name in group) + 5
        row = next((row for row, taken in enumerate(ends) if taken < start), len(ends))
        ends[row : row + 1] = [end]
        y = AXIS + BAR * (row + 1)
        parts.append(
            f'<path d="M{start:.1f} {y}H{end:.1f}" style="stroke:var(--front);stroke-width:3.5;stroke-linecap:round"/>'
        )
    return parts, len(ends)


def _entry(name: str, rank: float, x: float, y: int, *, left: bool) -> list[str]:
    edge, anchor = (SIDE - 18, "end") if left else (WIDTH - SIDE + 18, "start")
    shown = escape(name if len(name) <= SHORT else name[: SHORT - 1] + "…")
    number = f'<tspan style="font-weight:400;fill:var(--muted)">{rank:.2f}</tspan>'
    text = f"{shown} {number}" if left else f"{number} {shown}"
    return [
        f'<path class="link" d="M{x:.1f} {AXIS}V{y}H{edge}"/>',
        f'<text class="name" x="{edge + (-5 if left else 5)}" y="{y + 4}" text-anchor="{anchor}">{text}</text>',
    ]
