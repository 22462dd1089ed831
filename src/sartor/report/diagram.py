# SPDX-License-Identifier: Apache-2.0
"""A network as a block diagram: an SVG drawn from the names of its choices alone.

`stages.0.blocks.1.kernel` belongs to the block `stages.0.blocks.1`, which stands in the row of the
outermost group around it that has choices too, `stages.0`; what lies deeper is drawn in the block. So any
space is drawn, known or not; layers without a choice are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TypeAlias

from sartor.architecture import Architecture, Option
from sartor.space import SearchSpace

LABEL, CARD = 180, 164  # widths of the column of labels and of a card, in pixels
GAP, LINE, PAD = 26, 19, 10  # between cards, between lines, inside a card
PER_LINE = 4  # cards beside each other
# The usual names of what comes first in a network, and last.
FIRST = ("input", "resolution", "stem", "patch", "embed")
LAST = ("neck", "final", "pool", "head", "classifier", "output")
NUMBERED = re.compile(r"(?P<chain>.+)[._]\d+")  # the name of a link of a chain


@dataclass(frozen=True)
class Setting:
    """One line of a card: the last part of a choice's name, its option, and its place among the options."""

    leaf: str
    option: Option
    index: int
    count: int


Card: TypeAlias = tuple[str, tuple[Setting, ...]]  # a title and its lines


@dataclass(frozen=True)
class Box:
    """Where a card stands: its left upper corner, and its height."""

    x: int
    y: int
    height: int


@dataclass
class Canvas:
    """What is drawn so far, where the next row begins, how wide all is, and the card drawn last."""

    parts: list[str] = field(default_factory=list)
    y: int = 6
    width: int = 0
    last: Box | None = None


@dataclass(frozen=True)
class Group:
    """The choices that share a prefix, and the groups inside that prefix."""

    prefix: str
    settings: tuple[Setting, ...]
    inner: tuple[Group, ...] = ()

    def cards(self) -> list[Card]:
        """Return a card for each group directly inside; what lies deeper is lines of its card."""
        return [(_title(self.prefix, one.prefix), (*one.settings, *one.deeper())) for one in self.inner]

    def deeper(self) -> Iterator[Setting]:
        """Yield the settings of all groups inside, named from here: `squeeze` for `squeeze.choice`."""
        for group in self.inner:
            name = group.prefix.removeprefix(f"{self.prefix}.")
            for one in (*group.settings, *group.deeper()):
                yield replace(one, leaf=name if one.leaf == "choice" else f"{name}.{one.leaf}")


def _title(root: str, prefix: str) -> str:
    """Return a card's title: its name inside the row, or its whole name where that is a mere number."""
    inside = prefix.removeprefix(f"{root}.")
    return prefix if inside.isdigit() else inside


def block_diagram(arch: Architecture, space: SearchSpace | None, source: str, sink: str) -> str:
    """Return an `<svg>` of the active choices of `arch`; `source` and `sink` label its two ends."""
    groups = grouped(arch, space)
    whole = next((group.settings for group in groups if not group.prefix), ())
    canvas = Canvas()
    ends = [tuple(one for one in whole if one.leaf.lower().startswith(LAST) is last) for last in (False, True)]
    _row(canvas, "", (), [(source, ends[0])])
    for group in (one for one in groups if one.prefix):
        cards = group.cards()
        if cards:
            _row(canvas, group.prefix, group.settings, cards)
        else:
            _row(canvas, "", (), [(group.prefix, group.settings)])
    _row(canvas, "", (), [(sink, ends[1])])
    width, height = canvas.width, canvas.y - GAP + 4
    title = f"Block diagram of network {arch.id}"
    return (
        f'<svg class="diagram" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0 .8 7 4 0 7.2z"/></marker></defs>{"".join(canvas.parts)}</svg>'
    )


def grouped(arch: Architecture, space: SearchSpace | None) -> list[Group]:
    """Return the outermost groups of the active choices, in the order of the network."""
    members: dict[str, list[Setting]] = {}
    chains: dict[str, list[Group]] = {}
    for name, setting in _settings(arch, space):
        if (numbered := NUMBERED.fullmatch(name)) and isinstance(setting.option, str):
            chains.setdefault(numbered["chain"], []).append(Group(name, (replace(setting, leaf=""),)))
        else:
            members.setdefault(name.rpartition(".")[0], []).append(setting)
    groups = _nested("", [prefix for prefix in members if prefix], members)
    groups += [
        Group(chain, (), tuple(sorted(links, key=lambda one: _place(one.prefix)))) for chain, links in chains.items()
    ]
    groups.sort(key=lambda one: _place(one.prefix))
    return groups + ([Group("", tuple(members[""]))] if "" in members else [])


def _settings(arch: Architecture, space: SearchSpace | None) -> Iterator[tuple[str, Setting]]:
    known = space is not None and set(arch) == set(space.choices)
    for name, option in arch.items():
        options: Sequence[Option] = space.choices[name] if known and space is not None else (option,)
        if known and space is not None and not space.is_active(name, arch):
            continue
        index = next((place for place, one in enumerate(options) if repr(one) == repr(option)), 0)
        yield name, Setting(name.rpartition(".")[2], option, index, len(options))


def _nested(parent: str, prefixes: Sequence[str], members: Mapping[str, list[Setting]]) -> list[Group]:
    """Return the groups among `prefixes` that lie in no other one, each with its inner groups."""
    outer = [one for one in prefixes if not any(one.startswith(f"{other}.") for other in prefixes)]
    groups = []
    for prefix in sorted(outer, key=lambda one: _place(one.removeprefix(parent).lstrip("."))):
        inside = [one for one in prefixes if one.startswith(f"{prefix}.")]
        groups.append(Group(prefix, tuple(members[prefix]), tuple(_nested(prefix, inside, members))))
    return groups


def _place(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Return a sorting key: usual first and last parts of a network at its ends, numbers by value."""
    low = name.lower()
    rank = -1 if low.startswith(FIRST) else 1 if low.startswith(LAST) else 0
    return rank, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", low)]


def _row(canvas: Canvas, label: str, settings: Sequence[Setting], cards: Sequence[Card]) -> None:
    """Draw one group below what is there: its label, then its cards, each linked to the one before."""
    y = canvas.y
    if label:
        canvas.parts.append(f'<text class="group" x="0" y="{y + 19}">{shortened(label, 24)}</text>')
        canvas.parts += _settings_at(settings, 0, y + 21, CARD)
    height = PAD + LINE * (1 + max(len(inside) for _, inside in cards)) + 4
    bottom = y
    for index, (title, inside) in enumerate(cards):
        line, column = divmod(index, PER_LINE)
        box = Box(LABEL + column * (CARD + GAP), y + line * (height + GAP), height)
        canvas.parts.append(_link(canvas.last, box) if canvas.last else "")
        canvas.parts.append(_card(box, title, inside))
        canvas.last, canvas.width = box, max(canvas.width, box.x + CARD + GAP // 2)
        bottom = box.y + height
    canvas.y = max(bottom, y + 24 + LINE * len(settings) if label else 0) + GAP


def _link(source: Box, card: Box) -> str:
    """Draw the arrow into a card: from its left neighbour, from the card above, or around the corner."""
    middle, end = card.x + CARD // 2, card.y - 2
    if source.y == card.y:
        path = f"M{source.x + CARD} {source.y + source.height // 2}H{card.x - 2}"
    elif source.x == card.x:
        path = f"M{middle} {source.y + source.height}V{end}"
    else:
        turn = card.y - GAP // 2
        start = f"M{source.x + CARD} {source.y + source.height // 2}h4q7 0 7 7"
        path = f"{start}V{turn - 7}q0 7 -7 7H{middle + 7}q-7 0 -7 7V{end}"
    return f'<path class="link" d="{path}" marker-end="url(#tip)"/>'


def _card(box: Box, title: str, settings: Sequence[Setting]) -> str:
    x, y = box.x, box.y
    outline = f'<rect class="card" x="{x}" y="{y}" width="{CARD}" height="{box.height}" rx="5"/>'
    base = y + PAD + 9 if settings else y + box.height // 2 + 4
    head = f'<text class="name" x="{x + PAD}" y="{base}">{shortened(title, 22)}</text>'
    lines = _settings_at(settings, x + PAD, y + PAD + 9, CARD - 2 * PAD)
    return outline + head + "".join(lines)


def _settings_at(settings: Sequence[Setting], x: int, y: int, width: int) -> list[str]:
    return [_setting(one, x, y + LINE * index, width) for index, one in enumerate(settings, start=1)]


def _setting(setting: Setting, x: int, y: int, width: int) -> str:
    """Draw `kernel 5 . o .`: name, option, and one dot for each option with the chosen one filled.

    Without a name it is an operation, which has the line for itself.
    """
    if not setting.leaf:
        return f'<text x="{x}" y="{y}">{shortened(spoken(setting.option), 21)}</text>'
    text = f'<text x="{x}" y="{y}">{shortened(setting.leaf, max(5, 15 - len(spoken(setting.option))))}</text>'
    value = f'<text class="value" x="{x + width - 46}" y="{y}">{shortened(spoken(setting.option), 9)}</text>'
    if not 1 < setting.count <= 6:
        return text + value
    first = x + width - 3 - 7 * (setting.count - 1)
    dots = "".join(
        f'<circle class="{"on" if index == setting.index else "off"}" cx="{first + 7 * index}" cy="{y - 4}" r="2.4"/>'
        for index in range(setting.count)
    )
    return text + value + dots


def spoken(option: object) -> str:
    """Return an option as a reader would say it; an index list in parentheses, as (2) is not the number 2."""
    if option is None or isinstance(option, bool):
        return {True: "yes", False: "no", None: "none"}[option]
    if isinstance(option, list | tuple):
        listed = ", ".join(map(spoken, option))
        return f"({listed})" if isinstance(option, tuple) else listed
    return f"{option:g}" if isinstance(option, float) else str(option)


def shortened(text: str, most: int) -> str:
    """Return text for an SVG, with an ellipsis where it is longer than `most` letters."""
    return escape(text if len(text) <= most else text[: most - 1] + "…")
