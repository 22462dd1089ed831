# SPDX-License-Identifier: Apache-2.0
"""The cell of NAS-Bench-201, without torch: 4 nodes, 6 edges, one of 5 operations on each, 15,625 cells.

Dong & Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", ICLR 2020,
arXiv:2001.00326. Node 0 is the input of the cell, node 3 its output; a node is the sum over its incoming
edges of the operation applied to the node the edge comes from. `sartor.spaces.nasbench201` is the network.

The same function can be written as several cells. Two families of keys tell which are the same:

- `official_key`, the rule of the benchmark's own code: 12,751 keys when only skips are followed, and the
  published 6,466 when zeros are followed, too. It keeps zeros as terms of sums, so that equal functions remain.
- `simplified_key` drops zeros from sums (5,390 keys) and, as addition is commutative, also sorts the terms
  that come through skips among the others (4,930 keys, the default): use it for caches.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from functools import cache

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

__all__ = [
    "EDGES",
    "OPERATIONS",
    "choice_name",
    "from_string",
    "is_connected",
    "official_key",
    "representatives",
    "simplified_key",
    "space",
    "to_string",
]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""What can stand on an edge: zero, identity, ReLU-Conv-BN with kernel 1 or 3, 3x3 average pooling."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node, to node, in the order of the official string."""
_ZERO = "#"
_STRING = re.compile(r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|")


def choice_name(edge: tuple[int, int]) -> str:
    """Return the name of an edge's choice: `op_02` for the edge from node 0 to node 2."""
    return f"op_{edge[0]}{edge[1]}"


_NAMES = tuple(map(choice_name, EDGES))


def space() -> SearchSpace:
    """Return the 15,625 cells: six choices among five operations, none of which is ever inactive."""
    return SearchSpace(dict.fromkeys(_NAMES, OPERATIONS))


# ---- strings ------------------------------------------------------------------------------------------


def to_string(arch: Mapping[str, Option]) -> str:
    """Return the official string: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`; ValueError for another architecture."""
    parts: list[list[str]] = [[], [], []]
    for (source, node), operation in _operations(arch).items():
        parts[node - 1].append(f"{operation}~{source}")
    return "+".join(f"|{'|'.join(part)}|" for part in parts)


def from_string(text: str) -> Architecture:
    """Read what `to_string` writes; ValueError for anything else."""
    found = _STRING.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no cell of NAS-Bench-201: write |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
    for operation in found.groups():
        if operation not in OPERATIONS:
            raise ValueError(f"{operation!r} in {text!r} is no operation: these are {', '.join(OPERATIONS)}")
    return Architecture(dict(zip(_NAMES, found.groups(), strict=True)))


def _operations(arch: Mapping[str, Option]) -> dict[tuple[int, int], str]:
    """Return the operation of each edge, in the order of EDGES."""
    found: dict[tuple[int, int], str] = {}
    for edge, name in zip(EDGES, _NAMES, strict=True):
        operation = arch.get(name)
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise ValueError(f"{name} is {operation!r}: each of {', '.join(_NAMES)} is one of {', '.join(OPERATIONS)}")
        found[edge] = operation
    return found


# ---- which cells are the same -------------------------------------------------------------------------


def is_connected(arch: Mapping[str, Option]) -> bool:
    """Tell whether any path without a zero leads from the input to the output of the cell.

    341 cells have none; their networks are constant, and a compiler drops most of them: the latencies of
    phones and boards in the table are then of an empty program.
    """
    operations = _operations(arch)
    reached = {0}
    for source, node in EDGES:  # the edges into a node come before the edges out of it
        if source in reached and operations[source, node] != "none":
            reached.add(node)
    return 3 in reached


def official_key(arch: Mapping[str, Option], *, zeros: bool = True) -> str:
    """Return the benchmark's own key of equal cells: 6,466 in all, or 12,751 without following `zeros`.

    Skips are followed; the terms of a sum are sorted; what is applied to a node that is zero, or is itself
    the zero operation, becomes `#`, which stays in the sum.
    """
    operations = _operations(arch)
    nodes = ["0"]
    for node in (1, 2, 3):
        terms = []
        for source in range(node):
            operation, before = operations[source, node], nodes[source]
            if zeros and (operation == "none" or before == _ZERO):
                terms.append(_ZERO)
            elif operation == "skip_connect":
                terms.append(before)
            else:
                terms.append(f"({before})@{operation}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def simplified_key(arch: Mapping[str, Option], *, flat: bool = True) -> str:
    """Return a key of equal functions: 4,930 in all, or 5,390 where sums behind skips are sorted as one term.

    Zeros vanish from sums, a sum of nothing is zero, and what is applied to zero is zero. With `flat`, a skip
    adds the terms of the node it comes from, one by one. A cell without a path has the key `#`.
    """
    operations = _operations(arch)
    nodes: list[list[str]] = [["0"]]
    for node in (1, 2, 3):
        terms: list[str] = []
        for source in range(node):
            operation, before = operations[source, node], nodes[source]
            if operation == "none" or not before:
                continue
            if operation != "skip_connect":
                terms.append(f"({'+'.join(before)})@{operation}")
            else:
                terms += before if flat else ["+".join(before)]
        nodes.append(sorted(terms))
    return "+".join(nodes[-1]) or _ZERO


@cache
def representatives() -> Mapping[str, Architecture]:
    """Return one cell for each `simplified_key`, the first of the space's enumeration: 4,930 cells."""
    found: dict[str, Architecture] = {}
    for operations in itertools.product(OPERATIONS, repeat=len(EDGES)):
        arch = Architecture(dict(zip(_NAMES, operations, strict=True)))
        found.setdefault(simplified_key(arch), arch)
    return found
