# SPDX-License-Identifier: Apache-2.0
"""The scoreboard's page: one HTML file that holds all it needs, drawn from the folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from sartor.atomic import write_bytes, write_json
from sartor.bench.curves import all_curves, box_of
from sartor.bench.figures import BANDS, figures
from sartor.bench.finds import read_finds, summarise_finds
from sartor.bench.queries import read_queries
from sartor.bench.ranks import rank_diagram
from sartor.bench.running import read_record
from sartor.bench.summary import summarise
from sartor.report.palette import SERIES_DARK, SERIES_LIGHT
from sartor.report.template import rendered

PAIRS = 12  # pairs that are shown at once; the others open on demand


def write_scoreboard(out: Path | str) -> Path:
    """Write `report.html` and `report.json` from the record and `queries.parquet` in `out`; return the page's path.

    Raises:
        ValueError: `out` holds no scoreboard.
        FileNotFoundError: its searches have not ended yet.
    """
    out = Path(out)
    record = read_record(out)
    searches = read_queries(out, record["problem"])
    objectives = record["problem"]["objectives"]
    box = box_of(searches, objectives, record["known"])
    curves = all_curves(searches, objectives, box)
    summary = summarise(out, record, searches, curves, box)
    summary["methods"] = summarise_finds(read_finds(out), record.get("methods"))
    write_json(out / "report.json", summary)
    page = rendered(
        "scoreboard.html.jinja",
        figures(summary, curves, record["known"].get("random")),
        package="sartor.bench",
        light=SERIES_LIGHT,
        dark=SERIES_DARK,
        summary=summary,
        ranks={key: Markup(rank_diagram(one)) for key, one in summary["rankings"].items()},
        pairs=_pairs(summary),
        shown=PAIRS,
        bands=BANDS,
        command=_command(record),
        tall=120 + 26 * len(summary["rows"]),
    )
    write_bytes(out / "report.html", page.encode())
    return out / "report.html"


def _pairs(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of the ranking that orders the page, the better of each first, in the order of the table."""
    ranking = summary["rankings"].get(summary["primary"])
    if ranking is None:
        return []
    place = {row["name"]: number for number, row in enumerate(summary["rows"])}
    found = []
    for pair in ranking["pairs"]:
        swapped = place[pair["one"]] > place[pair["other"]]
        one, other = (pair["other"], pair["one"]) if swapped else (pair["one"], pair["other"])
        difference = -pair["difference"] if swapped else pair["difference"]
        found.append(pair | {"one": one, "other": other, "difference": difference})
    return sorted(found, key=lambda pair: (place[pair["one"]], place[pair["other"]]))


def _command(record: Mapping[str, Any]) -> str:
    """Return the command that was given; "" for a call from Python."""
    words = [str(word) for word in record.get("command", [])]
    if not words or PurePath(words[0]).stem not in ("sartor", "__main__"):
        return ""
    return shlex.join(["sartor", *words[1:]])
