# SPDX-License-Identifier: Apache-2.0
"""The scoreboard's interactive figures, as plain Plotly values in the roles of the report's palette."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from sartor.bench.curves import Curves
from sartor.bench.queries import Floats
from sartor.bench.statistics import Goal, band
from sartor.bench.summary import RANDOM, reached_share
from sartor.report.figures import figure_layout

Json = dict[str, Any]
COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot")
BANDS = 4  # entries whose bands are shown at once: more of them would hide each other
POINTS = 400  # most points of a line; more are thinned evenly


@dataclass(frozen=True)
class Style:
    """How an entry is drawn; those far down the ranking wait in the legend, and so do most bands."""

    colour: str
    dash: str
    visible: bool | str
    band: bool | str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each entry, best first; colours repeat with another dash."""
    return {
        name: Style(
            f"@s{place % COLOURS}",
            DASHES[place // COLOURS % len(DASHES)],
            True if place < COLOURS or name == RANDOM else "legendonly",
            True if place < BANDS else "legendonly",
        )
        for place, name in enumerate(names)
    }


def figures(summary: Json, curves: Mapping[str, Curves], random: Sequence[float] | None) -> dict[str, Json]:
    """Return all figures that this scoreboard has, by the id of their place in the page."""
    goal: Goal = summary["goal"]
    names = [row["name"] for row in summary["rows"]]
    look = styles(names)
    reported, signal = summary["problem"]["reported"], summary["problem"]["objectives"][0]["name"]
    optimum = summary["known"].get("optimum")
    found: dict[str, Json] = {
        "best": curve_figure({n: curves[n].reported for n in names}, look, reported, optimum, random),
        "final": _final(summary["rows"], curves, look, reported, optimum),
    }
    if optimum is not None:
        regret = _regret({n: curves[n].reported for n in names}, look, optimum, goal, random)
        found["regret"] = _small(regret, len(names))
    if signal != reported:
        best = summary["known"].get("signal_optimum")
        read = curve_figure({n: curves[n].signal for n in names}, look, f"{signal}, best so far", best, None)
        found["signal"] = _small(read, len(names))
    for part, title in (("volume", "hypervolume as read"), ("reported_volume", "hypervolume as reported")):
        volumes = {n: volume for n in names if (volume := getattr(curves[n], part)) is not None}
        if volumes:
            found[part] = _small(curve_figure(volumes, look, title, None, None), len(names))
    if summary["levels"]:
        level = summary["levels"][min(1, len(summary["levels"]) - 1)]
        found["reach"] = _reach({n: getattr(curves[n], level["of"]) for n in names}, look, level["level"], goal)
    if sum(row["cpu_ms"] is not None for row in summary["rows"]):
        found["cpu"] = _cpu(summary["rows"], reported)
    return found


def curve_figure(
    values: Mapping[str, Floats],
    look: Mapping[str, Style],
    title: str,
    optimum: float | None,
    random: Sequence[float] | None,
) -> Json:
    """Means over seeds of (seeds, queries) values with 95 % bands; the exact random search and the optimum beside."""
    data: list[Json] = []
    shown: list[float] = [] if optimum is None else [optimum]
    for name, rows in values.items():
        mean, low, high = band(rows)
        places = _places(len(mean))
        data += _banded(name, look[name], places, mean, low, high)
        if look[name].visible is True:
            late = slice(min(len(mean) - 1, len(mean) // 12), None)
            shown += [value for part in (mean, low, high) for value in part[late].tolist() if math.isfinite(value)]
    if random is not None:
        places = _places(len(random))
        data.append(_line("random, exact", "@faint", "dot", places, np.asarray(random)))
    layout = figure_layout("queries", title)
    if shown:
        room = 0.05 * (max(shown) - min(shown)) or 0.5
        layout["yaxis"] |= {"range": [min(shown) - room, max(shown) + room]}
    layout["hovermode"] = "x unified"
    layout["xaxis"] |= {"rangemode": "tozero"}
    if optimum is not None:
        _draw_level(layout, optimum, "optimum")
    return {"data": data, "layout": layout}


def _small(figure: Json, entries: int) -> Json:
    """Leave out the legend of a figure that stands beside another, where it would take half of the room."""
    figure["layout"]["showlegend"] = entries <= BANDS
    return figure


def _banded(name: str, style: Style, places: Sequence[int], mean: Floats, low: Floats, high: Floats) -> Iterator[Json]:
    known = [place for place in places if math.isfinite(low[place])]
    if known:
        outline = [*(high[known].tolist()), *reversed(low[known].tolist())]
        x = [place + 1 for place in known]
        yield {
            "x": [*x, *reversed(x)],
            "y": outline,
            "fill": "toself",
            "fillcolor": style.colour,
            "line": {"width": 0},
            "mode": "lines",
            "opacity": 0.16,
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": name,
            "visible": style.band,
        }
    yield _line(name, style.colour, style.dash, places, mean) | {"legendgroup": name, "visible": style.visible}


def _line(name: str, colour: str, dash: str, places: Sequence[int], values: Floats) -> Json:
    return {
        "x": [place + 1 for place in places],
        "y": [value if math.isfinite(value) else None for value in values[list(places)].tolist()],
        "name": escape(name),
        "mode": "lines",
        "line": {"color": colour, "width": 2, "dash": dash},
        "hovertemplate": "%{y:.5~g}",
    }


def _regret(
    values: Mapping[str, Floats],
    look: Mapping[str, Style],
    optimum: float,
    goal: Goal,
    random: Sequence[float] | None,
) -> Json:
    """Mean distance to the optimum, on a logarithmic axis."""
    sign = 1.0 if goal == "max" else -1.0
    data = []
    for name, rows in values.items():
        mean = sign * (optimum - rows.mean(axis=0))
        line = _line(name, look[name].colour, look[name].dash, _places(len(mean)), _positive(mean))
        data.append(line | {"visible": look[name].visible})
    if random is not None:
        exact = _positive(sign * (optimum - np.asarray(random)))
        data.append(_line("random, exact", "@faint", "dot", _places(len(random)), exact))
    layout = figure_layout("queries", "mean regret")
    layout["yaxis"] |= {"type": "log", "dtick": "D2", "tickformat": "~g"}
    layout["hovermode"] = "x unified"
    return {"data": data, "layout": layout}


def _positive(values: Floats) -> Floats:
    return np.where(values > 1e-9, values, np.nan)  # a logarithm has no zero: the line ends where regret does


def _final(
    rows: Sequence[Json], curves: Mapping[str, Curves], look: Mapping[str, Style], title: str, optimum: float | None
) -> Json:
    """Each seed's final value as a point beside the box of its entry, best entry on top."""
    data = []
    for row in reversed(rows):
        name = row["name"]
        final = curves[name].reported[:, -1]
        kept = [value for value in final.tolist() if math.isfinite(value)]
        data.append(
            {
                "type": "box",
                "orientation": "h",
                "x": kept,
                "y": [escape(name)] * len(kept),
                "name": escape(name),
                "boxpoints": "all",
                "pointpos": 0,
                "jitter": 0.55,
                "fillcolor": "rgba(0,0,0,0)",
                "line": {"color": look[name].colour, "width": 1.3},
                "marker": {"color": look[name].colour, "size": 4, "opacity": 0.45},
                "hovertemplate": "%{x:.5~g}<extra></extra>",
            }
        )
    layout = figure_layout(f"{title} at the end", "")
    layout |= {"showlegend": False}
    layout["yaxis"] |= {"automargin": True, "gridcolor": "rgba(0,0,0,0)"}
    if optimum is not None:
        line = {"type": "line", "x0": optimum, "x1": optimum, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [line | {"line": {"color": "@ink", "width": 1, "dash": "dash"}}]
    return {"data": data, "layout": layout}


def _reach(values: Mapping[str, Floats], look: Mapping[str, Style], level: float, goal: Goal) -> Json:
    """Share of seeds that had reached a level, by queries."""
    data = []
    for name, rows in values.items():
        share = reached_share(rows, level, goal)
        line = _line(name, look[name].colour, look[name].dash, _places(len(share)), 100 * share)
        line["line"]["shape"] = "hv"
        data.append(line | {"visible": look[name].visible})
    layout = figure_layout("queries", "seeds that reached it (%)")
    layout["yaxis"] |= {"range": [-2, 102]}
    layout["hovermode"] = "x unified"
    return {"data": data, "layout": layout}


def _cpu(rows: Sequence[Json], title: str) -> Json:
    """Final mean against the CPU time of a query, on a logarithmic axis, each entry a point with its name."""
    known = [row for row in rows if row["cpu_ms"] and row["reported"]]
    points = {
        "x": [row["cpu_ms"] for row in known],
        "y": [row["reported"]["mean"] for row in known],
        "text": [escape(row["name"]) for row in known],
        "mode": "markers+text",
        "textposition": "top center",
        "textfont": {"size": 11, "color": "@muted"},
        "marker": {"color": "@front", "size": 9},
        "cliponaxis": False,
        "hovertemplate": "%{text}<br>%{x:.3~g} ms of CPU per query<br>%{y:.5~g}<extra></extra>",
    }
    layout = figure_layout("CPU time per query (ms)", f"mean {title} at the end")
    layout |= {"showlegend": False}
    layout["xaxis"] |= {"type": "log", "dtick": "D2", "tickformat": "~g"}
    return {"data": [points], "layout": layout}


def _draw_level(layout: Json, value: float, name: str) -> None:
    line = {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": value, "y1": value}
    layout["shapes"] = [line | {"line": {"color": "@ink", "width": 1, "dash": "dash"}}]
    text = {"x": 1, "xref": "paper", "xanchor": "right", "y": value, "yanchor": "bottom", "text": f"{name} {value:.5g}"}
    layout["annotations"].append(text | {"showarrow": False, "font": {"color": "@ink", "size": 12}})


def _places(count: int) -> list[int]:
    """Return the queries, from 0, at which a line has points."""
    if count <= POINTS:
        return [*range(count)]
    return sorted({int(place) for place in np.linspace(0, count - 1, POINTS)})
