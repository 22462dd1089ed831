# SPDX-License-Identifier: Apache-2.0
"""The sub-spaces of AutoDistil: those of the paper, and how a space is cut by size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sartor.architecture import Architecture, Option
from sartor.gates import key
from sartor.sizes import ascending
from sartor.space import SearchSpace

__all__ = ["SUB_SPACES", "Within", "apart", "by_size", "every", "union"]

SUB_SPACES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "tiny": {"depth": (4, 5, 6, 7), "heads": (7, 8, 9, 10), "hidden": (128, 160, 192, 224), "mlp": (2, 2.5, 3, 3.5)},
    "small": {
        "depth": (9, 10, 11, 12), "heads": (7, 8, 9, 10), "hidden": (256, 288, 320, 352), "mlp": (2.5, 3, 3.5, 4),
    },
    "base": {
        "depth": (9, 10, 11, 12), "heads": (9, 10, 11, 12), "hidden": (544, 576, 608, 640), "mlp": (2.5, 3, 3.5, 4),
    },
}  # fmt: skip
"""The paper's sub-spaces of 256 networks: layers, heads, hidden size, and MLP as a multiple of it. A head there is a
twelfth of the hidden size, as the published numbers of parameters say."""


@dataclass(frozen=True)
class Within:
    """A constraint: an architecture is in one of the sub-spaces, and what the space asked for before holds."""

    space: SearchSpace
    parts: tuple[Mapping[str, tuple[Option, ...]], ...]

    def __call__(self, arch: Architecture) -> bool:
        """Tell whether the constraint holds."""
        fits = any(all(key(arch[name]) in map(key, options) for name, options in part.items()) for part in self.parts)
        return fits and (self.space.constraint is None or self.space.constraint(arch))


def by_size(space: SearchSpace, count: int) -> list[dict[str, tuple[Option, ...]]]:
    """The options of the hidden size, or else of a depth, in `count` stretches from small to large."""
    if count < 1:
        raise ValueError(f"parts is {count}: a space has one or more")
    always = [name for name in space.choices if name not in space.gates]
    sized = [name for role in ("hidden", "depth") for name in always if name.rpartition(".")[2] == role]
    if not sized:
        raise ValueError(f"the space has no hidden size and no depth to cut it by; name parts of {', '.join(always)}")
    options = ascending(space.choices[sized[0]])
    cuts = [round(i * len(options) / min(count, len(options))) for i in range(min(count, len(options)) + 1)]
    return [{sized[0]: tuple(options[start:stop])} for start, stop in itertools.pairwise(cuts)]


def apart(parts: Sequence[Mapping[str, Sequence[Option]]]) -> list[dict[str, tuple[Option, ...]]]:
    """The parts that were named; ValueError for none, and for two that share an architecture."""
    kept = [{name: tuple(options) for name, options in part.items()} for part in parts]
    if not kept:
        raise ValueError("parts is empty: name one sub-space or more, or how many there are")
    for (i, one), (j, other) in itertools.combinations(enumerate(kept), 2):
        if all({*map(key, one[name])} & {*map(key, other[name])} for name in one.keys() & other.keys()):
            raise ValueError(f"sub-spaces {i} and {j} overlap: let the options of one choice, such as hidden, differ")
    return kept


def union(space: SearchSpace, parts: Sequence[Mapping[str, tuple[Option, ...]]]) -> SearchSpace:
    """The architectures of a space that are in one of the parts."""
    return SearchSpace(space.choices, space.gates, Within(space, tuple(parts)))


def every(space: SearchSpace) -> Iterable[Architecture]:
    """Every architecture once, those that the constraint excludes left out."""
    archs = (
        space.canonical(dict(zip(space.choices, one, strict=True)))
        for one in itertools.product(*space.choices.values())
    )
    kept = dict.fromkeys(archs)
    return [arch for arch in kept if space.constraint is None or space.constraint(arch)]
