# SPDX-License-Identifier: Apache-2.0
"""The page's interactive figures, as plain Plotly values (traces and layout).

A colour is a role of the palette, written "@role"; the page fills in light or dark. Text from the run is
escaped here, since Plotly reads a little markup in texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

from sartor.report.progress import Point
from sartor.report.reading import Json, Record, mapping, number

T = TypeVar("T")

CLOUD = 1500  # most points of a cloud or curve in the page; more are thinned evenly


def front_figure(summary: Json, points: Sequence[Point]) -> Json | None:
    """Accuracy against latency: verified networks with p10-p90, baselines, and the predicted candidates."""
    verified, others, baselines = (
        [row for row in summary[part] if row["latency_ms"] is not None]
        for part in ("front", "beside_the_front", "baselines")
    )
    measured = [*verified, *others, *baselines]
    if not measured and not points:
        return None
    known = {row["id"] for row in measured}
    cloud = list({one.arch: one for one in points if one.arch not in known}.values())
    chosen = [row for row in verified if row["recommended"]]
    traces = [
        _cloud(cloud),
        _measured(verified, "verified front, measured", "front", "circle", 9) | {"mode": "markers+lines"},
        _measured(others, "verified, beside the front", "front", "circle-open", 8),
        _measured(baselines, "baseline from scratch, measured", "baseline", "diamond", 10),
        _ring(chosen),
    ]
    axis = latency_axis(measured, points, summary["asked"]["limit_ms"])
    layout = figure_layout("latency (ms)", "validation accuracy (%)")
    layout["xaxis"] |= _scale(axis)
    layout["yaxis"] |= {"range": list(frame(measured)) if measured else _robust_accuracy(cloud)}
    layout["annotations"] = [_label(row, row["name"], "baseline", -19, axis.log) for row in baselines]
    layout["annotations"] += [_label(row, "recommended", "front", 20, axis.log) for row in chosen]
    _draw_limit(layout, summary["asked"]["limit_ms"], axis.log)
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def latency_figure(record: Record) -> Json | None:
    """Predicted against measured latency, networks held out of the fit apart."""
    entries = record.latency_model.get("pairs")
    pairs = []
    for entry in map(mapping, entries if isinstance(entries, list) else []):
        measured, predicted = number(entry.get("measured_ms")), number(entry.get("predicted_ms"))
        if measured is not None and predicted is not None:
            held_out = entry.get("held_out") is True
            pairs.append((measured, predicted, held_out, escape(str(entry.get("id", "")))))
    if not pairs:
        return None
    low = min(min(pair[:2]) for pair in pairs) * 0.95
    high = max(max(pair[:2]) for pair in pairs) * 1.04
    diagonal = {"x": [low, high], "y": [low, high], "mode": "lines", "name": "equal", "hoverinfo": "skip"}
    data: list[Json] = [diagonal | {"line": {"color": "@faint", "width": 1, "dash": "dot"}, "showlegend": False}]
    for held, name, marker in (
        (False, "used in the fit", {"color": "@paper", "line": {"color": "@faint", "width": 1.4}, "size": 7}),
        (True, "held out", {"color": "@front", "line": {"color": "@front", "width": 1.4}, "size": 8}),
    ):
        some = [pair for pair in pairs if pair[2] is held]
        hover = "%{text}<br>measured %{x:.4~g} ms<br>predicted %{y:.4~g} ms<extra></extra>"
        x, y, names = ([pair[place] for pair in some] for place in (0, 1, 3))
        trace = {"x": x, "y": y, "text": names, "mode": "markers", "name": name, "marker": marker}
        data.append(trace | {"hovertemplate": hover})
    layout = figure_layout("measured latency (ms)", "predicted latency (ms)")
    layout["xaxis"] |= {"range": [low, high]}
    layout["yaxis"] |= {"range": [low, high]}
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def training_figure(record: Record) -> Json | None:
    """The learning curve: the logged loss, and its running mean."""
    logged = [(entry["step"], entry["loss"]) for entry in record.training if "loss" in entry]
    if len(logged) < 2:
        return None
    smooth = _running_mean([loss for _, loss in logged], max(1, len(logged) // 40))
    rows = _thinned([(step, loss, mean) for (step, loss), mean in zip(logged, smooth, strict=True)])
    steps = [row[0] for row in rows]
    hover = "step %{x:,}<br>loss %{y:.4~g}<extra></extra>"
    raw = {"x": steps, "y": [row[1] for row in rows], "mode": "lines", "name": "logged", "hoverinfo": "skip"}
    mean = {"x": steps, "y": [row[2] for row in rows], "mode": "lines", "name": "running mean"}
    data = [
        raw | {"line": {"color": "@faint", "width": 1}, "opacity": 0.55},
        mean | {"line": {"color": "@front", "width": 2}, "hovertemplate": hover},
    ]
    return {"data": data, "layout": figure_layout("training step", "loss")}


def search_figure(points: Sequence[Point]) -> Json | None:
    """Search progress: accuracy by trial with the best so far, and below it the hypervolume so far."""
    if len(points) < 2:
        return None
    rows = _thinned(list(points))
    numbers, volume = [one.number for one in rows], [one.hypervolume for one in rows]
    best = [None if one.best is None else 100 * one.best for one in rows]
    cross = {"color": "@faint", "size": 5, "symbol": "x-thin", "line": {"width": 1, "color": "@faint"}}
    data = [
        _trials(rows, True, {"color": "@faint", "size": 4, "opacity": 0.75}) | {"name": "trial within the limit"},
        _trials(rows, False, cross) | {"name": "trial over the limit"},
        _staircase(numbers, best, "best so far", "@front", "%{y:.4~g} %"),
        _staircase(numbers, volume, "hypervolume so far", "@good", "%{y:.4f}") | {"yaxis": "y2"},
    ]
    layout = figure_layout("trial", "validation accuracy (%)")
    layout["yaxis"] |= {"domain": [0.4, 1], "range": _robust([100 * one.accuracy for one in rows])}
    layout["yaxis2"] = axis_of("hypervolume") | {"domain": [0, 0.3], "rangemode": "tozero", "nticks": 4}
    layout["xaxis"]["anchor"] = "y2"
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


@dataclass(frozen=True)
class LatencyAxis:
    """The range of latencies to show, in milliseconds; logarithmic, with its ticks, where it spans much."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...] = ()


def latency_axis(rows: Sequence[Mapping[str, Any]], points: Sequence[Point], limit: float | None) -> LatencyAxis:
    """Return the axis that shows all that is measured, and the limit; or else what is predicted."""
    ends = [float(row[key]) for row in rows for key in ("p10", "p90")] or [one.latency_ms for one in points]
    ends += [limit] if limit is not None else []
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if low <= 0 or high < 5 * low:
        return LatencyAxis(0.0, 1.06 * high, log=False)
    low, high = 0.86 * low, 1.16 * high
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5))
    return LatencyAxis(low, high, log=True, ticks=tuple(tick for tick in ticks if low <= tick <= high))


def accuracy_of(row: Mapping[str, Any]) -> float | None:
    """Return the accuracy by which a row is drawn: on validation, which decides the front, else on the test split."""
    value = row["validation"] if row["validation"] is not None else row["test"]
    return None if value is None else float(value)


def frame(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the range of accuracies, in percent, that shows all measured rows with room around them."""
    known = [100 * value for row in rows if (value := accuracy_of(row)) is not None]
    if not known:
        return 0.0, 100.0
    low, high = min(known), max(known)
    room = max(0.12 * (high - low), 0.4)
    return max(0.0, low - 2 * room), min(100.4, high + room)


def _cloud(cloud: Sequence[Point]) -> Json:
    rows = _thinned(cloud)
    return {
        "x": [one.latency_ms for one in rows],
        "y": [100 * one.accuracy for one in rows],
        "text": [escape(one.arch) for one in rows],
        "mode": "markers",
        "name": "searched only, predicted",
        "marker": {"color": "@faint", "size": 5, "opacity": 0.4},
        "hovertemplate": "%{text}, not verified<br>predicted %{x:.3~g} ms and %{y:.2f} %<extra></extra>",
    }


def _measured(rows: Sequence[Json], name: str, role: str, symbol: str, size: int) -> Json:
    known = [row for row in rows if accuracy_of(row) is not None]
    return {
        "x": [row["latency_ms"] for row in known],
        "y": [100 * (accuracy_of(row) or 0.0) for row in known],
        "text": [_hover(row) for row in known],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, row["p90"] - row["latency_ms"]) for row in known],
            "arrayminus": [max(0.0, row["latency_ms"] - row["p10"]) for row in known],
            "color": f"@{role}",
            "thickness": 1.2,
            "width": 3,
        },
        "mode": "markers",
        "name": name,
        "line": {"color": f"@{role}", "width": 1, "dash": "dot"},
        "marker": {
            "color": f"@{role}",
            "size": size,
            "symbol": symbol,
            "line": {"color": "@paper", "width": 1},
        },
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(str(row['name']))}</b>",
        *(f"{split} accuracy {100 * row[split]:.2f} %" for split in ("validation", "test") if row[split] is not None),
        f"{row['latency_ms']:.3g} ms (p10 {row['p10']:.3g}, p90 {row['p90']:.3g})",
    ]
    if row["size_mb"] is not None:
        lines.append(f"{row['size_mb']:.3g} MB")
    return "<br>".join(lines)


def _ring(rows: Sequence[Json]) -> Json:
    known = [row for row in rows if accuracy_of(row) is not None]
    return {
        "x": [row["latency_ms"] for row in known],
        "y": [100 * (accuracy_of(row) or 0.0) for row in known],
        "mode": "markers",
        "name": "recommended",
        "marker": {
            "symbol": "circle-open",
            "size": 19,
            "color": "@front",
            "line": {"width": 1.6, "color": "@front"},
        },
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _label(row: Mapping[str, Any], text: str, role: str, shift: int, log: bool) -> Json:
    latency = row["latency_ms"]
    return {
        "x": math.log10(latency) if log else latency,
        "y": 100 * (accuracy_of(row) or 0.0),
        "text": escape(text),
        "showarrow": False,
        "yshift": shift,
        "font": {"color": f"@{role}", "size": 12.5},
        "bgcolor": "@paper",
        "borderpad": 1,
        "opacity": 0.9,
    }


def _scale(axis: LatencyAxis) -> Json:
    if not axis.log:
        return {"range": [axis.low, axis.high]}
    ends = [math.log10(axis.low), math.log10(axis.high)]
    names = [f"{tick:g}" for tick in axis.ticks]
    return {
        "type": "log",
        "range": ends,
        "tickmode": "array",
        "tickvals": list(axis.ticks),
        "ticktext": names,
    }


def _robust_accuracy(cloud: Sequence[Point]) -> list[float]:
    return _robust([100 * one.accuracy for one in cloud]) if cloud else [0.0, 100.0]


def _robust(values: Sequence[float]) -> list[float]:
    """Return a range that leaves out the lowest tenth, as a few collapsed networks would flatten the rest."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1]
    room = max(0.08 * (high - low), 0.2)
    return [low - room, high + room]


def _draw_limit(layout: Json, limit: float | None, log: bool) -> None:
    if limit is None:
        return
    line = {"type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"] = [line | {"line": {"color": "@ink", "width": 1, "dash": "dash"}}]
    place = math.log10(limit) if log else limit  # unlike a shape, an annotation takes the logarithm
    text = {
        "x": place,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "text": f"limit {limit:g} ms",
        "showarrow": False,
    }
    layout["annotations"].append(text | {"font": {"color": "@ink", "size": 12}})


def figure_layout(x: str, y: str) -> Json:
    """Return the layout that all figures share, with the titles of its axes."""
    return {
        "xaxis": axis_of(x),
        "yaxis": axis_of(y),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "@muted", "size": 12.5},
        "margin": {"l": 58, "r": 16, "t": 26, "b": 48},
        "hoverlabel": {"bgcolor": "@panel", "bordercolor": "@rule", "font": {"color": "@ink", "size": 12.5}},
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top", "font": {"size": 12}},
        "hovermode": "closest",
        "showlegend": True,
        "annotations": [],
    }


def axis_of(title: str) -> Json:
    """Return an axis with its title."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12.5}},
        "gridcolor": "@rule",
        "linecolor": "@faint",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "@faint",
        "ticklen": 4,
    }


def _trials(points: Sequence[Point], within: bool, marker: Json) -> Json:
    """Return the trials within the limit, or over it, as marks."""
    some = [one for one in points if one.within_limit is within]
    x, y = [one.number for one in some], [100 * one.accuracy for one in some]
    hover = "trial %{x}<br>%{y:.4~g} %<extra></extra>"
    return {"x": x, "y": y, "mode": "markers", "marker": marker, "hovertemplate": hover}


def _staircase(x: Sequence[int], y: Sequence[float | None], name: str, colour: str, shown: str) -> Json:
    """Return a value that holds until the next trial changes it."""
    line = {"width": 2, "shape": "hv", "color": colour}
    hover = f"trial %{{x}}<br>{name} {shown}<extra></extra>"
    return {"x": list(x), "y": list(y), "name": name, "mode": "lines", "line": line, "hovertemplate": hover}


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean over a centred window of 2 * width + 1 values, shorter at the ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, index - width), min(len(values), index + width + 1)) for index in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


def _thinned(rows: Sequence[T]) -> list[T]:
    step = max(1, math.ceil(len(rows) / CLOUD))
    return [*rows[::step], *([rows[-1]] if rows and (len(rows) - 1) % step else [])]
