# SPDX-License-Identifier: Apache-2.0
"""The front as an image for a README: 1600 x 900 pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sartor.report.figures import accuracy_of, frame, latency_axis
from sartor.report.palette import LIGHT
from sartor.report.progress import Point
from sartor.report.reading import Json


def front_image(summary: Json, points: Sequence[Point]) -> bytes:
    """Return a PNG of the measured front, the baselines, the limit and the predicted candidates."""
    with style.context("default"), warnings.catch_warnings():
        # A name may hold characters that the font lacks; they are drawn as boxes, no need to tell.
        warnings.filterwarnings("ignore", message="Glyph")
        return _drawn(summary, points)


def _drawn(summary: Json, points: Sequence[Point]) -> bytes:
    figure = Figure(figsize=(16, 9), dpi=100, facecolor=LIGHT["paper"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.115, 0.895, 0.70), facecolor=LIGHT["paper"])
    front = [row for row in summary["front"] if _drawable(row)]
    baselines = [row for row in summary["baselines"] if _drawable(row)]
    others = [row for row in summary["beside_the_front"] if _drawable(row)]
    _style(axes)
    _scatter(axes, points, {row["id"] for row in (*front, *others, *baselines)})
    _networks(axes, front, "front", "o", "verified front, measured (p10-p90)")
    _networks(axes, others, "faint", "o", "verified, beside the front, measured")
    _networks(axes, baselines, "baseline", "D", "baseline, trained from scratch, measured")
    for row in baselines:
        _note(axes, row, row["name"], "baseline", -28)
    for row in front:
        if row["recommended"]:
            axes.plot(
                row["latency_ms"],
                100 * (accuracy_of(row) or 0),
                "o",
                ms=21,
                mfc="none",
                mec=LIGHT["front"],
                mew=2,
            )
            _note(axes, row, "recommended", "front", 19)
    _limits(axes, [*front, *others, *baselines], points, summary["asked"]["limit_ms"])
    _title(figure, summary)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=False, fontsize=14, labelcolor=LIGHT["muted"])
    # The software's version would be the only thing in the file that depends on more than the run.
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "sartor"})
    return buffer.getvalue()


def _drawable(row: Mapping[str, Any]) -> bool:
    return row["latency_ms"] is not None and accuracy_of(row) is not None


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LIGHT["faint"])
    axes.grid(color=LIGHT["rule"], linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["muted"], labelsize=14)
    axes.set_xlabel("latency (ms)", color=LIGHT["muted"], fontsize=16, labelpad=8)
    axes.set_ylabel("validation accuracy (%)", color=LIGHT["muted"], fontsize=16, labelpad=8)


def _scatter(axes: Axes, points: Sequence[Point], known: set[str]) -> None:
    cloud = [one for one in points if one.arch not in known]
    if cloud:
        x, y = [one.latency_ms for one in cloud], [100 * one.accuracy for one in cloud]
        label = "searched only: predicted, not verified"
        axes.scatter(x, y, s=26, color=LIGHT["faint"], alpha=0.35, linewidths=0, label=label)


def _networks(axes: Axes, rows: Sequence[Mapping[str, Any]], role: str, marker: str, label: str) -> None:
    if not rows:
        return
    x, y = [row["latency_ms"] for row in rows], [100 * (accuracy_of(row) or 0) for row in rows]
    if role == "front":
        axes.plot(x, y, ":", color=LIGHT[role], linewidth=1.4)
    low = [max(0.0, row["latency_ms"] - row["p10"]) for row in rows]
    high = [max(0.0, row["p90"] - row["latency_ms"]) for row in rows]
    look: dict[str, Any] = {
        "color": LIGHT[role],
        "markeredgecolor": LIGHT["paper"],
        "markersize": 12,
        "elinewidth": 1.6,
    }
    axes.errorbar(x, y, xerr=[low, high], fmt=marker, capsize=4, label=label, zorder=3, **look)


def _note(axes: Axes, row: Mapping[str, Any], text: str, role: str, shift: int) -> None:
    place = (row["latency_ms"], 100 * (accuracy_of(row) or 0))
    offset: dict[str, Any] = {"xytext": (0, shift), "textcoords": "offset points", "ha": "center"}
    offset["bbox"] = {"facecolor": LIGHT["paper"], "edgecolor": "none", "alpha": 0.85, "pad": 1}
    axes.annotate(_plain(text), place, color=LIGHT[role], fontsize=15, **offset)


def _limits(axes: Axes, rows: Sequence[Mapping[str, Any]], points: Sequence[Point], limit: float | None) -> None:
    """Set the frame as in the page's figure, and draw the limit."""
    axis = latency_axis(rows, points, limit)
    if axis.log:
        axes.set_xscale("log")
        axes.set_xticks(axis.ticks, [f"{tick:g}" for tick in axis.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(axis.low, axis.high)
    if rows:
        low, high = frame(rows)
        axes.set_ylim(low, high + 0.04 * (high - low))
    if limit is not None:
        axes.axvline(limit, color=LIGHT["ink"], linewidth=1.3, linestyle=(0, (6, 4)))
        place: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (0, 6),
            "textcoords": "offset points",
            "ha": "center",
        }
        axes.annotate(f"limit {limit:g} ms", (limit, 1), color=LIGHT["ink"], fontsize=15, **place)


def _title(figure: Figure, summary: Json) -> None:
    asked, best = summary["asked"], summary["recommended"]
    place: dict[str, Any] = {"x": 0.075, "ha": "left", "va": "baseline"}
    title = f"{asked['data']} on {asked['target']}" if asked["target"] else asked["data"]
    figure.text(y=0.925, s=_plain(title), fontsize=27, color=LIGHT["ink"], **place)
    line = "unfinished run: nothing is recommended yet"
    if best is not None and _drawable(best):
        split = "test" if best["test"] is not None else "validation"
        found = f"{100 * best[split]:.2f} % {split} accuracy in {best['latency_ms']:.3g} ms"
        line = f"recommended: {found}"
    figure.text(y=0.875, s=line, fontsize=17, color=LIGHT["muted"], **place)


def _plain(text: str) -> str:
    """Return `text` without matplotlib's mathematics and controls, short enough for one line."""
    shown = "".join(one for one in text if one.isprintable()).replace("$", r"\$")
    return shown if len(shown) <= 70 else f"{shown[:69]}…"
