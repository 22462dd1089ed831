# SPDX-License-Identifier: Apache-2.0
"""The value that a search is about: one option for each choice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from operator import is_
from typing import Any, TypeAlias

Option: TypeAlias = int | float | str | bool | tuple["Option", ...] | None


def frozen(value: object) -> Option:
    """Return `value` as an option: lists become tuples, -0.0 becomes 0.0.

    Raises ValueError for anything that JSON cannot carry there and back: other types (numpy scalars
    among them), NaN and infinities.
    """
    kind = type(value)
    if kind is int or kind is str or kind is bool or value is None:
        return value  # type: ignore[return-value]
    if isinstance(value, float) and kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value!r} cannot be an option: use a finite number")
        return value + 0.0
    if isinstance(value, (tuple, list)):
        return tuple(frozen(item) for item in value)
    raise ValueError(
        f"{value!r} of type {kind.__name__} cannot be an option: use int, float, str, bool, None or a tuple of these"
    )


def same(a: Option, b: Option) -> bool:
    """Tell whether two options are the same value of the same type: True is not 1, and 1 is not 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Architecture(Mapping[str, Option]):
    """An immutable, hashable mapping from the names of choices to options, ordered by name.

    Two architectures are equal if they hold the same options of the same types, that is, if their JSON is
    equal.
    """

    __slots__ = ("_hash", "_json", "_values")
    _values: dict[str, Option]
    _hash: int | None
    _json: str | None

    def __init__(self, values: Mapping[str, Option]) -> None:
        """Copy `values`; ValueError for a name that is no string or an option that JSON cannot carry."""
        for name in values:
            if type(name) is not str:
                raise ValueError(f"the name {name!r} of a choice is no string: use a str")
        self._values = {name: frozen(values[name]) for name in sorted(values)}
        self._hash = self._json = None

    @classmethod
    def _trusted(cls, values: dict[str, Option]) -> Architecture:
        """Wrap, without copy or check, a dict that is ordered by name and holds options only."""
        arch = cls.__new__(cls)
        arch._values = values
        arch._hash = arch._json = None
        return arch

    def __getitem__(self, name: str) -> Option:
        """Return the option of the choice `name`."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in their order."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of choices."""
        return len(self._values)

    def __hash__(self) -> int:
        """Hash the options, once; names differ between spaces only."""
        if self._hash is None:
            self._hash = hash(tuple(self._values.values()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Compare by name, option and type of option; never equal to another kind of mapping."""
        if self is other:
            return True
        if not isinstance(other, Architecture):
            return NotImplemented
        if self._values != other._values:
            return False
        if all(map(is_, self._values.values(), other._values.values())):
            return True  # the very options of one space
        types = list(map(type, self._values.values()))
        if types != list(map(type, other._values.values())):
            return False
        return tuple not in types or all(map(same, self._values.values(), other._values.values()))

    def __repr__(self) -> str:
        """Return an expression that makes an equal architecture."""
        return f"Architecture({self._values!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the values alone."""
        return Architecture, (self._values,)

    def replace(self, changes: Mapping[str, Option] | None = None, /, **named: Option) -> Architecture:
        """Return a copy in which some choices hold other options; ValueError for a name that is not here."""
        changes = {**(changes or {}), **named}
        for name in changes:
            if name not in self._values:
                raise ValueError(f"no choice is named {name!r}: the names are {', '.join(self._values)}")
        return Architecture({**self._values, **changes})

    @property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return a JSON object, names in order, tuples as lists."""
        if self._json is None:
            options = self._values.values()
            pair = _kept_pair if _TOLD_APART.issuperset(map(type, options)) else _pair
            self._json = "{" + ", ".join(map(pair, self._values, options)) + "}"
        return self._json

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read what `to_json` wrote; ValueError for anything else."""
        try:
            values = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"not the JSON of an architecture: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"not the JSON of an architecture: {type(values).__name__} where an object should be")
        return cls(values)


def _pair(name: str, option: Option) -> str:
    return f"{json.dumps(name)}: {json.dumps(option)}"


_kept_pair = lru_cache(maxsize=4096)(_pair)  # a search has few pairs, and writes each of them thousands of times
_TOLD_APART = frozenset({str, int})  # as keys, which 1, 1.0 and True together are not


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values
