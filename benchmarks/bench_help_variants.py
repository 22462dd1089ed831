"""HELP on NAS-Bench-201 without one part of it each, and in the paper's own form.

Means over six unseen devices, as in bench_help_adaptation.py, and over the four validation devices, which decide. The
paper's form has a graph network, ten fixed references as samples and embedding, no line, sources alone, and the paper's
step sizes; it too is scaled by its ten samples alone. The two forms with a graph network take several times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bench_help_adaptation import on_cells
from help_devices import LINKS, REFERENCES, Cells, cells, learnt
from sartor.predictors import HELP
from sartor.spaces import nasbench201_cell

Row = Mapping[str, str | float | int | None]


def rows(quick: bool) -> Iterator[Row]:
    """A row per form of HELP and way to draw."""
    table, draws = cells(), 5 if quick else 30
    for name, help in variants(table, 100 if quick else 2000).items():
        learnt(table, help)
        episode, rho = max(help.history, key=lambda one: one[1])
        for row in on_cells(table, help, draws, ("references",) if help.references else ("any ten", "suggested")):
            if row["device"] == "mean":
                kept = {column: row[column] for column in ("samples", "HELP", "deviation", "ridge", "mix of sources")}
                yield {"form": name, **kept, "validation": round(rho, 4), "episodes": episode}


def variants(table: Cells, episodes: int) -> dict[str, HELP]:
    """Return the forms."""
    space = nasbench201_cell.space()
    references = [table.archs[row] for row in REFERENCES]
    return {
        "all parts": HELP(space, episodes=episodes),
        "no synthetic devices": HELP(space, episodes=episodes, synthetic=0.0),
        "no z": HELP(space, episodes=episodes, modulation=0.0, kl=0.0),
        "no inner steps": HELP(space, episodes=episodes, steps=0),
        "graph network": HELP(space, episodes=episodes, links=LINKS),
        "the paper's": HELP(
            space,
            episodes=episodes,
            links=LINKS,
            references=references,
            line=False,
            synthetic=0.0,
            rate=1e-3,
            lr=1e-4,
        ),
    }
