# SPDX-License-Identifier: Apache-2.0
"""The cell network of DARTS: two searched cells, normal and reduction, stacked.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv:1806.09055. A cell has two inputs,
the outputs of the two cells before it, and four nodes; a node is the sum of edges from all that come before it, and
the cell's output is the four nodes side by side. Found cells keep two edges into each node, with one operation each.

The search form and the evaluation form have the same choices under the same names, so that what was searched in one
is extracted from the other:

    arch = from_genotype(text, search_space(DartsNetwork()))
    network = extract(DartsNetwork(form="evaluation", cells=20, width=36), arch)

`normal_inputs_4` holds the two nodes that node 4 keeps of 0 to 3 (0 and 1 are the cell's inputs), `normal_op_14` the
operation of the edge from node 1 to node 4; the reduction cell has the same under `reduce_`.

Differs from the published code:
- Images of any size from 4x4 fit; odd sides are rounded up where they are halved, and the auxiliary head's pool leaves
  2x2 pixels of any size (the published one of 8x8 pixels).
- "none" among the options makes the space larger than the paper's 10^18, which leaves it out, as the read-out does.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture, Option
from sartor.choice import Choice, indices
from sartor.nn import Inputs, OneOf, channels_last, graph
from sartor.space import SearchSpace
from sartor.spaces.cell_operations import OPERATIONS, DropPath, FactorizedReduce, Operation, ReLUConvBN, set_progress

__all__ = [
    "NODES",
    "AuxiliaryHead",
    "DartsCell",
    "DartsNetwork",
    "Mixed",
    "from_genotype",
    "plain_mixed",
    "to_genotype",
]

NODES = (2, 3, 4, 5)
"""The nodes of a cell that are searched; 0 and 1 are its inputs."""
KINDS = ("normal", "reduce")

Mixed = Callable[[Callable[[int], dict[str, nn.Module]], int, int], nn.Module]
"""(make, width, stride) -> an edge with a settable attribute `choice`; `make(width)` gives its operations by name."""


def plain_mixed(make: Callable[[int], dict[str, nn.Module]], width: int, stride: int) -> nn.Module:
    """Return the mixed operation of DARTS: all channels through all operations."""
    return OneOf(make(width))


class DartsCell(nn.Module):
    """One cell: (N, C0, H0, W0) and (N, C1, H, W) -> (N, 4 * width, H, W), or half the sides for a reduction cell.

    choices: the choice of each searched node and edge by name. edge: (choice's name, stride) -> the module of an edge.
    after_reduction: the first input has twice the sides of the second.
    """

    def __init__(
        self,
        kind: str,
        channels: tuple[int, int],
        width: int,
        choices: Mapping[str, Choice],
        edge: Callable[[str, int], nn.Module],
        *,
        after_reduction: bool,
        affine: bool,
    ) -> None:
        super().__init__()
        before, last = channels
        first = FactorizedReduce(before, width, affine) if after_reduction else ReLUConvBN(before, width, 1, 1, affine)
        self.preprocess = nn.ModuleList([first, ReLUConvBN(last, width, 1, 1, affine)])
        self.nodes = nn.ModuleList()
        for node in NODES:
            edges = {}
            for source in range(node):
                name = _op(kind, source, node)
                edges[str(source)] = edge(name, 2 if kind == "reduce" and source < 2 else 1)
            self.nodes.append(Inputs(edges, choices[_inputs(kind, node)]))

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """The nodes' outputs, one after the other along the channels."""
        states = [preprocess(x) for preprocess, x in zip(self.preprocess, (before, last), strict=True)]
        return torch.cat(graph(list(self.nodes), states)[2:], 1)


class AuxiliaryHead(nn.Sequential):
    """A second classifier, on a map (N, channels, *size) in the middle of the network; sides of at least 2."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
        height, width = (min(-(-5 * side // 8), side - 1) for side in size)  # 5 of 8 pixels, as published; leaves 2 x 2
        pool = nn.AvgPool2d((height, width), (size[0] - height, size[1] - width), count_include_pad=False)
        super().__init__(
            nn.ReLU(),
            pool,
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )


class DartsNetwork(nn.Module):
    """A classifier of searched cells: (N, channels, H, W) normalised images -> (N, classes) logits.

    Args:
        classes: number of classes.
        channels: of the images, 1 for grey.
        size: (H, W) of the images, at least 4 (8 with the auxiliary head).
        width: channels of a node in the first cells; each of two reduction cells doubles it. The paper searches with
            16 and evaluates with 36.
        cells: at least 3, of which those at one and at two thirds reduce. The paper: 8 and 20.
        form: "search", no scales in the cells' batch norms and normalised pools; or "evaluation".
        mixed: makes an edge; see `Mixed`.
        operations: by name, those among which an edge chooses.
        edges: for single edges, by the name of their choice (`normal_op_02`), the names of fewer operations.
        auxiliary: with an auxiliary head, which trains the evaluation network; see `with_auxiliary`.
        drop_path: probability with which an edge that is no identity is dropped, at the end of training (0.2 in the
            paper). It follows `progress`, and is there in the evaluation form only.

    Raises ValueError for a form, a size or a number of cells that is none of these, and for unknown edges or
    operations.
    """

    auxiliary_weight = 0.4  # of the auxiliary head's loss, in the paper's evaluation

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        *,
        width: int = 16,
        cells: int = 8,
        form: Literal["search", "evaluation"] = "search",
        mixed: Mixed = plain_mixed,
        operations: Mapping[str, Operation] = OPERATIONS,
        edges: Mapping[str, Sequence[str]] | None = None,
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(form, size, cells, auxiliary)
        self.searching = searching = form == "search"
        choices = _choices(operations, edges or {})
        self.stem = nn.Sequential(nn.Conv2d(channels, 3 * width, 3, padding=1, bias=False), nn.BatchNorm2d(3 * width))
        self.cells = nn.ModuleList()
        self.auxiliary_at = 2 * cells // 3
        before = last = 3 * width
        after_reduction = False
        for i in range(cells):
            reducing = i in (cells // 3, 2 * cells // 3)
            if reducing:
                width, size = 2 * width, (-(-size[0] // 2), -(-size[1] // 2))
            edge = _edge_maker(choices, operations, mixed, width, searching, drop_path)
            kind = KINDS[reducing]
            widths = (before, last)
            self.cells.append(
                DartsCell(kind, widths, width, choices, edge, after_reduction=after_reduction, affine=not searching)
            )
            before, last, after_reduction = last, len(NODES) * width, reducing
            if auxiliary and i == self.auxiliary_at:
                self.auxiliary = AuxiliaryHead(last, classes, size)
        self.classifier = nn.Linear(last, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        if self.searching and x.device.type == "cpu":
            x = channels_last(x)  # in which pools and depthwise convolutions are several times as fast
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        logits: Tensor = self.classifier(last.mean((2, 3)))
        return logits

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and those of the auxiliary head: its loss counts `auxiliary_weight`.

        Raises ValueError where there is no auxiliary head.
        """
        head = self._modules.get("auxiliary")
        if head is None:
            raise ValueError("the network has no auxiliary head: make it with auxiliary=True")
        seen: list[Tensor] = []
        hook = self.cells[self.auxiliary_at].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            logits = self(x)
        finally:
            hook.remove()
        return logits, head(seen[0])

    def progress(self, share: float) -> None:
        """Set drop-path for the share of training that is done, from 0 to 1 (an epoch's share, in the paper)."""
        set_progress(self, share)

    def reset_parameters(self) -> None:
        """Initialise anew, elastic or extracted, by torch's defaults, as the paper did."""
        if self.classifier.weight.is_meta:
            return  # there is nothing to fill
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()


def from_genotype(text: str, space: SearchSpace) -> Architecture:
    """Read DARTS's notation: `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=..., reduce=..., ...)`.

    Each cell has eight pairs of operation and source, two for each node in order. Raises ValueError for another text,
    for two edges from one source, for a concatenation of other nodes than 2 to 5, and for what `space` does not have.
    """
    fields = _fields(text)
    values: dict[str, Option] = {}
    for kind in KINDS:
        if (nodes := fields.get(f"{kind}_concat")) is not None and tuple(nodes) != NODES:
            raise ValueError(f"{kind}_concat is {nodes}: the cells here give out nodes {list(NODES)}")
        pairs = fields.get(kind)
        if not isinstance(pairs, list) or len(pairs) != 2 * len(NODES):
            raise ValueError(f"{kind} is {pairs!r}: give {2 * len(NODES)} pairs of operation and source")
        for i, node in enumerate(NODES):
            both = dict(sorted((source, operation) for operation, source in pairs[2 * i : 2 * i + 2]))
            if len(both) < 2:
                raise ValueError(f"node {node} of the {kind} cell reads one source twice: give two sources")
            values[_inputs(kind, node)] = tuple(both)
            values.update({_op(kind, source, node): operation for source, operation in both.items()})
    return space.canonical(values)


def to_genotype(arch: Mapping[str, Option]) -> str:
    """Return an architecture in DARTS's notation, which `from_genotype` reads."""
    cells = []
    for kind in KINDS:
        edges = [(source, node) for node in NODES for source in indices(arch[_inputs(kind, node)])]
        pairs = [(arch[_op(kind, source, node)], source) for source, node in edges]
        cells.append(f"{kind}={pairs}, {kind}_concat={list(NODES)}")
    return f"Genotype({', '.join(cells)})"


def _fields(text: str) -> dict[str, Any]:
    """Read the keywords of a call that holds literals only; `range(2, 6)` is one of them."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("it is no call")
        return {str(one.arg): _literal(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"{text!r} is no genotype of DARTS: {error}") from None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return range(*map(ast.literal_eval, node.args))
    return ast.literal_eval(node)


def _inputs(kind: str, node: int) -> str:
    return f"{kind}_inputs_{node}"


def _op(kind: str, source: int, node: int) -> str:
    return f"{kind}_op_{source}{node}"


def _edge_names() -> list[str]:
    return [_op(kind, source, node) for kind in KINDS for node in NODES for source in range(node)]


def _choices(operations: Mapping[str, Operation], edges: Mapping[str, Sequence[str]]) -> dict[str, Choice]:
    """The choices of both cells: of two nodes out of all before a node, and of an operation for each edge."""
    if unknown := edges.keys() - set(_edge_names()):
        raise ValueError(f"no edge is named {min(unknown)!r}: the names are {', '.join(_edge_names())}")
    for name, few in edges.items():
        if absent := set(few) - operations.keys():
            raise ValueError(f"{name} is to choose {min(absent)!r}: the operations are {', '.join(operations)}")
    found = {name: Choice(tuple(edges.get(name, operations)), name=name) for name in _edge_names()}
    for kind, node in itertools.product(KINDS, NODES):
        name = _inputs(kind, node)
        found[name] = Choice(tuple(itertools.combinations(range(node), 2)), name=name)
    return found


def _edge_maker(
    choices: Mapping[str, Choice],
    operations: Mapping[str, Operation],
    mixed: Mixed,
    width: int,
    searching: bool,
    drop_path: float,
) -> Callable[[str, int], nn.Module]:
    """Return what makes the edge of a name and a stride, in cells of one width."""

    def edge(name: str, stride: int) -> nn.Module:
        choice = choices[name]

        def make(width: int) -> dict[str, nn.Module]:
            made = {str(one): operations[str(one)](width, stride, searching) for one in choice.options}
            if searching or not drop_path:
                return made
            return {key: _dropped(operation, drop_path) for key, operation in made.items()}

        module: Any = mixed(make, width, stride)
        module.choice = choice  # one decision for all cells of a kind
        return module  # type: ignore[no-any-return]

    return edge


def _dropped(operation: nn.Module, probability: float) -> nn.Module:
    """The operation followed by drop-path, which spares an identity."""
    return operation if isinstance(operation, nn.Identity) else nn.Sequential(operation, DropPath(probability))


def _check(form: str, size: tuple[int, int], cells: int, auxiliary: bool) -> None:
    if form not in ("search", "evaluation"):
        raise ValueError(f'the form is {form!r}: it is "search" or "evaluation"')
    if min(size) < (least := 8 if auxiliary else 4):
        raise ValueError(f"images of {size[0]}x{size[1]} do not fit: give at least {least} pixels a side")
    if cells < 3:
        raise ValueError(f"{cells} cells cannot be of both kinds: give at least 3")
