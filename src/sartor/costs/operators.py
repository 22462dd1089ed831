# SPDX-License-Identifier: Apache-2.0
"""A table of operators: what each takes alone on a device, and how much a runtime saves by fusing neighbours.

Cai, Zhu and Han, "ProxylessNAS", ICLR 2019, arXiv:1812.00332 (latency as the sum of a table); Zhang et al., "nn-Meter",
MobiSys 2021 (rules of fusion from tests of pairs).

An operator is measured as a network of that operator alone, less what calling a network takes. Runtimes fuse
neighbours, so that the sum is too high: pairs are measured too, and what the second of a pair takes is lowered by the
share that the pair saves. What is fused into an operator becomes part of it: in convolution, batch norm and ReLU, the
ReLU follows a convolution.

Differs from the papers: the saving is a share from 0 to 1 instead of a rule that holds or not (nn-Meter's, at .5,
decides which operator the next one follows), and kernels are not measured whole but priced from their parts. Operators
that are not in the table are estimated by a roofline that was fitted to those that are.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np

from sartor.costs.roofline import Roofline
from sartor.workload import Op, Workload

__all__ = ["CALL", "OperatorTable", "fused", "key", "pair_key", "pairs", "parse"]

CALL = Op("relu", ((1, 8),), (1, 8), (), "float32")
"""The network that does next to nothing: what it takes is the call."""

FUSED = 0.5  # the share saved from which on two operators are one (nn-Meter's alpha)
_SHAPES_OF_A_PAIR = 3


@lru_cache(maxsize=1 << 16)
def key(op: Op) -> str:
    """Return what decides an operator's cost as text: kind, shapes, attributes, dtype.

    Which operator reads a parameter first does not matter for it.
    """
    shapes = ",".join("x".join(map(str, shape)) for shape in op.inputs)
    attributes = ",".join(f"{name}={value}" for name, value in op.attributes if name != "parameters")
    return "|".join((op.kind, shapes, "x".join(map(str, op.output)), attributes, op.dtype))


def parse(text: str) -> Op:
    """Return the operator of a key; ValueError for text that is none."""
    try:
        kind, shapes, output, attributes, dtype = text.split("|")
        pairs = [part.split("=") for part in attributes.split(",") if part]
        inputs = tuple(_shape(part) for part in shapes.split(",")) if shapes else ()
        return Op(kind, inputs, _shape(output), tuple((name, int(value)) for name, value in pairs), dtype)
    except ValueError:
        raise ValueError(f"{text!r} is no key of an operator: it has other parts") from None


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x"))) if text else ()


def pair_key(first: Op, second: Op) -> str:
    """Return the key of two operators that run one after the other."""
    return f"{key(first)}>{key(second)}"


@dataclass(frozen=True)
class OperatorTable:
    """Milliseconds of operators on one device, a call of the network taken off; a `Cost` that sums them.

    ms: key of an operator -> what it adds to a network.
    roofline: of the same device, for operators that are not in the table.
    savings: kinds of two neighbours -> the share of the second's time that fusing them saves, 0 to 1.
    call_ms: of calling a network, once.
    """

    ms: Mapping[str, float]
    roofline: Roofline
    savings: Mapping[tuple[str, str], float] = field(default_factory=dict)
    call_ms: float = 0.0

    @classmethod
    def of(cls, measured: Mapping[str, float | None]) -> Self:
        """Make the table of measured milliseconds by key: of networks of one operator, of pairs, and of `CALL`.

        What was refused, None, is left out. Without a measurement of `CALL`, the fastest network stands for it.
        ValueError if no operator was measured.
        """
        whole = {name: ms for name, ms in measured.items() if ms is not None}
        ops = {name: parse(name) for name in whole if ">" not in name and name != key(CALL)}
        if not ops:
            raise ValueError("none of the operators was measured: a table needs one at least")
        call = whole.get(key(CALL), min(whole[name] for name in ops))
        ms = {name: max(0.0, whole[name] - call) for name in ops}
        seen = [name for name in ops if ms[name] > 0]
        values = [ms[name] for name in seen] or [whole[name] for name in ops]
        roofline = Roofline.fitted([ops[name] for name in seen or ops], values)
        return cls(ms, roofline, _savings(whole, call), call)

    def op(self, op: Op) -> float:
        """Return the milliseconds that an operator takes alone: of the table, else of the roofline."""
        known = self.ms.get(key(op))
        return self.roofline.op(op) if known is None else known

    def __call__(self, workload: Workload) -> float:
        """Return the call and the plain sum over a network's operators, in milliseconds."""
        return self.call_ms + math.fsum(map(self.op, workload))

    def missing(self, workload: Workload) -> int:
        """Count the operators of a network that only the roofline knows."""
        return sum(key(op) not in self.ms for op in workload)

    def coverage(self, workloads: Sequence[Workload]) -> dict[str, float]:
        """Say how much of some networks the table holds: `operators`, `missing`, and the shares of calls and time."""
        ops = [op for workload in workloads for op in workload]
        lacking = [op for op in ops if key(op) not in self.ms]
        time = math.fsum(map(self.op, ops))
        return {
            "operators": len(ops),
            "missing": len(lacking),
            "kinds_missing": len({key(op) for op in lacking}),
            "share_of_operators": 1.0 - len(lacking) / len(ops) if ops else 1.0,
            "share_of_time": 1.0 - math.fsum(map(self.op, lacking)) / time if time else 1.0,
        }


def _savings(measured: Mapping[str, float], call: float) -> dict[tuple[str, str], float]:
    """Return what each pair of kinds saves: the median over the pairs of the share of the second's time."""
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, both in measured.items():
        first, _, second = name.partition(">")
        if second and (a := measured.get(first)) is not None and (b := measured.get(second)) is not None and b > call:
            shares[parse(first).kind, parse(second).kind].append((a + b - call - both) / (b - call))
    return {kinds: min(1.0, max(0.0, float(np.median(found)))) for kinds, found in sorted(shares.items())}


def fused(workload: Workload, savings: Mapping[tuple[str, str], float]) -> Iterator[tuple[Op, float]]:
    """Yield each operator with the share of its time that is left where it follows its neighbour, 0 to 1."""
    head: Op | None = None
    for op in workload:
        saved = savings.get((head.kind, op.kind), 0.0) if head is not None and _follows(head, op) else 0.0
        yield op, 1.0 - saved
        if saved < FUSED:
            head = op


def pairs(workloads: Sequence[Workload]) -> list[tuple[Op, Op]]:
    """Return the pairs of operators whose fusion is worth testing, those of the commonest kinds first.

    That is neighbours, and what stands beside a batch norm, for this usually becomes part of a convolution. Of each
    pair of kinds the smallest, a middle and the largest are taken.
    """
    found: dict[tuple[str, str], Counter[tuple[Op, Op]]] = defaultdict(Counter)
    for workload in workloads:
        for place, op in enumerate(workload[1:], start=1):
            before = workload[place - 1]
            if before.kind == "batch_norm" and place > 1 and _follows(workload[place - 2], op):
                found[workload[place - 2].kind, op.kind][_plain(workload[place - 2]), _plain(op)] += 1
            if _follows(before, op):
                found[before.kind, op.kind][_plain(before), _plain(op)] += 1
    ranked = sorted(found.values(), key=lambda counted: -counted.total())
    return [pair for counted in ranked for pair in _spread(list(counted))]


def _spread(several: list[tuple[Op, Op]]) -> list[tuple[Op, Op]]:
    several.sort(key=lambda pair: (math.prod(pair[0].output), pair_key(*pair)))
    count = min(_SHAPES_OF_A_PAIR, len(several))
    return [several[round(i * (len(several) - 1) / max(1, count - 1))] for i in range(count)]


def _follows(first: Op, second: Op) -> bool:
    """Say whether the second may read what the first writes; a trace tells shapes and an order, not the edges."""
    return bool(second.inputs) and first.output in second.inputs


def _plain(op: Op) -> Op:
    """Return the operator without what does not change its cost, so that equal ones are one."""
    return Op(op.kind, op.inputs, op.output, tuple(a for a in op.attributes if a[0] != "parameters"), op.dtype)
