# SPDX-License-Identifier: Apache-2.0
"""When a choice matters: conditions on other choices, and how many architectures they leave distinct."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sartor.architecture import Option, frozen

Condition = tuple[str, tuple[Option, ...]]
"""Holds where the choice of that name is active and has one of these options."""
Gate = tuple[tuple[Condition, ...], ...]
"""Holds where all conditions of any of the alternatives do; the alternative `()` always does."""
ALWAYS: Gate = ((),)


def key(option: object) -> object:
    """Return a hashable that tells options of different types apart: True is not 1, and 1 is not 1.0."""
    kind = type(option)
    if kind is int or kind is str:
        return option
    if isinstance(option, (tuple, list)):
        return tuple, tuple(map(key, option))
    return kind, option


def checked_gate(name: str, gate: Gate, choices: Mapping[str, tuple[Option, ...]]) -> Gate:
    """Return the gate of choice `name` as nested tuples; ValueError for names and options unknown."""
    if name not in choices:
        raise ValueError(f"a gate is set for {name!r}, but no choice has that name")
    try:
        checked = tuple(
            tuple((other, tuple(map(frozen, options))) for other, options in alternative) for alternative in gate
        )
    except TypeError:
        raise ValueError(f"the gate of {name!r} must be alternatives of (name, options) pairs, not {gate!r}") from None
    for other, options in (condition for alternative in checked for condition in alternative):
        if other not in choices:
            raise ValueError(f"the gate of {name!r} asks for {other!r}, but no choice has that name")
        known = set(map(key, choices[other]))
        for option in options:
            if key(option) not in known:
                raise ValueError(f"the gate of {name!r} asks for {option!r}, which is no option of {other!r}")
    return checked


def parents_first(gates: Mapping[str, Gate]) -> list[str]:
    """Order the gated choices so that each comes after those it depends on; ValueError for a circle."""
    order: dict[str, None] = {}
    while len(order) < len(gates):
        ready = [
            name
            for name, gate in gates.items()
            if name not in order and all(other in order or other not in gates for other in _parents(gate))
        ]
        if not ready:
            raise ValueError(f"the gates of {', '.join(n for n in gates if n not in order)} depend on each other")
        order.update(dict.fromkeys(ready))
    return list(order)


def narrowed(gate: Gate, choices: Mapping[str, tuple[Option, ...]]) -> Gate:
    """Return the gate after choices lost options; an alternative that can no longer hold is left out."""
    left = {name: set(map(key, options)) for name, options in choices.items()}
    alternatives = (
        tuple((other, tuple(option for option in options if key(option) in left[other])) for other, options in one)
        for one in gate
    )
    return tuple(one for one in alternatives if all(options for _, options in one))


def count(choices: Mapping[str, tuple[Option, ...]], gates: Mapping[str, Gate]) -> int:
    """Return the number of distinct architectures, in which an inactive choice counts once.

    Choices that no gate connects are counted apart and multiplied. In what is connected, some choice is
    always decided to be active; its options are tried by group (those that the gates cannot tell apart),
    which disconnects the rest, so that nested blocks cost their sum and not their product.
    """
    return _count(_open({name: _simplified(gates.get(name, ALWAYS)) for name in choices}), choices, {})


_Open = dict[str, Gate]


def _count(
    gates: _Open, choices: Mapping[str, tuple[Option, ...]], known: dict[frozenset[tuple[str, Gate]], int]
) -> int:
    return math.prod(_count_connected(part, choices, known) for part in _components(gates))


def _count_connected(
    gates: _Open, choices: Mapping[str, tuple[Option, ...]], known: dict[frozenset[tuple[str, Gate]], int]
) -> int:
    if len(gates) == 1:
        ((name, gate),) = gates.items()
        return len(choices[name]) if gate == ALWAYS else 1
    state = frozenset(gates.items())
    if state not in known:
        asked = [other for gate in gates.values() for other in _parents(gate)]
        root = max((name for name, gate in gates.items() if gate == ALWAYS), key=asked.count)
        known[state] = sum(
            len(group) * _count(_decided(gates, root, group[0]), choices, known)
            for group in _groups(root, choices[root], gates)
        )
    return known[state]


def _groups(root: str, options: tuple[Option, ...], gates: _Open) -> Iterable[list[Option]]:
    """Group the options of `root` that satisfy the same conditions."""
    asked = {held for gate in gates.values() for one in gate for other, held in one if other == root}
    groups: dict[tuple[bool, ...], list[Option]] = {}
    for option in options:
        holds = tuple(key(option) in set(map(key, held)) for held in asked)
        groups.setdefault(holds, []).append(option)
    return groups.values()


def _decided(gates: _Open, root: str, option: Option) -> _Open:
    """Return the gates that are open once `root` holds `option`."""
    return _open({name: _simplified(gate, root, option) for name, gate in gates.items() if name != root})


def _open(gates: _Open) -> _Open:
    """Drop the gates that are shut, and with them what depends on them."""
    while shut := [name for name, gate in gates.items() if not gate]:
        gates = {name: _simplified(gate, shut[0], active=False) for name, gate in gates.items() if name != shut[0]}
    return gates


def _simplified(gate: Gate, name: str = "", option: Option = None, active: bool = True) -> Gate:
    """Settle the conditions on one choice: drop those that hold, and the alternatives of those that fail."""
    kept = []
    for alternative in gate:
        if all(other != name or (active and key(option) in set(map(key, held))) for other, held in alternative):
            kept.append(tuple(condition for condition in alternative if condition[0] != name))
    return ALWAYS if () in kept else tuple(dict.fromkeys(kept))


def _components(gates: _Open) -> list[_Open]:
    """Split into parts between which no gate asks."""
    linked: dict[str, set[str]] = {name: set() for name in gates}
    for name, gate in gates.items():
        for other in _parents(gate):
            linked[name].add(other)
            linked[other].add(name)
    parts = []
    while linked:
        part, border = set(), {next(iter(linked))}
        while border:
            part |= border
            border = {other for name in border for other in linked.pop(name)} - part
        parts.append({name: gate for name, gate in gates.items() if name in part})
    return parts


def _parents(gate: Gate) -> set[str]:
    return {other for alternative in gate for other, _ in alternative}
