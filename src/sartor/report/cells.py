# SPDX-License-Identifier: Apache-2.0
"""Searched cells as SVG, drawn from the names of their choices alone.

`normal_op_02` is the operation on the edge from node 0 to node 2 of the cell `normal`, `normal_inputs_2` lists the
nodes that node 2 reads; where a cell has no such list, every node reads all that come before it. A node is a vertical
line, and an edge a line of its own from node to node, so that no two edges ever cross or share a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from sartor.architecture import Architecture, Option
from sartor.report.diagram import shortened, spoken
from sartor.sizes import indices

__all__ = ["Cell", "cell_diagram", "cells_of"]

COLUMN, TRACK, TOP, LEFT = 128, 30, 44, 24  # pixels between nodes and between edges, above the edges, and beside
NOTHING = ("none", "zero")  # operations that let nothing through

_EDGE = re.compile(r"(?:(?P<cell>.+)_)?op_(?P<source>\d)(?P<node>\d)")
_INPUTS = re.compile(r"(?:(?P<cell>.+)_)?inputs_(?P<node>\d+)")


@dataclass(frozen=True)
class Cell:
    """One cell: its name, and its edges as (source, node, operation), by node and then by source."""

    name: str
    edges: tuple[tuple[int, int, str], ...]

    @property
    def nodes(self) -> list[int]:
        """The numbers of all nodes, inputs first."""
        return sorted({end for source, node, _ in self.edges for end in (source, node)})

    @property
    def inputs(self) -> list[int]:
        """The nodes that read nothing."""
        return [node for node in self.nodes if node not in {end for _, end, _ in self.edges}]


def cells_of(arch: Mapping[str, Option]) -> tuple[list[Cell], dict[str, Option]]:
    """Return the cells of an architecture, and its choices that belong to none."""
    kept: dict[tuple[str, int], tuple[int, ...]] = {}
    edges: dict[str, list[tuple[int, int, str]]] = {}
    rest: dict[str, Option] = {}
    for name, option in arch.items():
        if (found := _INPUTS.fullmatch(name)) and isinstance(option, tuple):
            kept[found["cell"] or "", int(found["node"])] = tuple(indices(option))
        elif found := _EDGE.fullmatch(name):
            edge = int(found["source"]), int(found["node"]), spoken(option)
            edges.setdefault(found["cell"] or "", []).append(edge)
        else:
            rest[name] = option
    cells = []
    for cell, several in edges.items():
        taken = [one for one in several if one[0] in kept.get((cell, one[1]), (one[0],))]
        cells.append(Cell(cell or "cell", tuple(sorted(taken, key=lambda one: (one[1], one[0])))))
    return cells, rest


def cell_diagram(cell: Cell) -> str:
    """Return the `<svg>` of one cell; edges whose operation lets nothing through are dotted."""
    nodes = cell.nodes
    place = {node: LEFT + i * COLUMN for i, node in enumerate(nodes)}
    height = TOP + TRACK * len(cell.edges) + 12
    width = LEFT + COLUMN * (len(nodes) - 1) + LEFT + 28
    parts = [_node(place[node], height, node, node in cell.inputs) for node in nodes]
    parts += [
        _edge(place[source], place[node], TOP + TRACK * row + 20, operation)
        for row, (source, node, operation) in enumerate(cell.edges)
    ]
    title = f"Cell {cell.name}: {len(cell.edges)} edges between {len(nodes)} nodes"
    tip = f"tip-{re.sub(r'[^a-z0-9]', '-', cell.name.lower())}"
    return (
        f'<svg class="diagram cell" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0 .8 7 4 0 7.2z"/></marker></defs>{"".join(parts).replace("#tip", f"#{tip}")}</svg>'
    )


def _node(x: int, height: int, node: int, is_input: bool) -> str:
    """Draw a node: its number in a circle, and the line that its edges start from and end at."""
    label = f'<text class="role" x="{x + 16}" y="15">input</text>' if is_input else ""
    return (
        f'<line class="node" x1="{x}" y1="22" x2="{x}" y2="{height}"/>'
        f'<circle class="card" cx="{x}" cy="11" r="10.5"/><text class="name" x="{x}" y="15.5">{node}</text>{label}'
    )


def _edge(start: int, end: int, y: int, operation: str) -> str:
    """Draw an edge: a dot where it reads, an arrow where it adds, and its operation above the line."""
    dotted = " nothing" if operation.lower() in NOTHING else ""
    return (
        f'<path class="link{dotted}" d="M{start} {y}H{end - 2}" marker-end="url(#tip)"/>'
        f'<circle class="on" cx="{start}" cy="{y}" r="2.8"/>'
        f'<text class="operation{dotted}" x="{start + 9}" y="{y - 6}">{shortened(operation, 17)}</text>'
    )


def drawn_cells(arch: Architecture) -> tuple[Sequence[tuple[str, str]], Architecture]:
    """Return the name and the drawing of each cell of a network, and what is left of its choices."""
    cells, rest = cells_of(arch)
    return [(cell.name, cell_diagram(cell)) for cell in cells], Architecture(rest)
