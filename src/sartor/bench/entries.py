# SPDX-License-Identifier: Apache-2.0
"""Who takes part: strategies by name, class or object, and anything else that returns a log of trials."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from sartor import names
from sartor.limits import Form, under_limits
from sartor.objective import Objective
from sartor.own import absolute, content_digest, is_own
from sartor.protocols import Strategy
from sartor.space import SearchSpace
from sartor.trial import TrialLog

Factory: TypeAlias = Callable[..., Strategy]
Search: TypeAlias = Callable[[int, int], TrialLog]

ALL = "all"
BUILT_IN = "none for this comparison: defaults as published, see its file"
UNKNOWN = "not stated"


@dataclass(frozen=True)
class Entry:
    """One row of a scoreboard: a strategy, or a search of another kind; exactly one of the two.

    name: as the report shows it.
    strategy: a name of `sartor list strategies`, `path.py:Class`, a callable `(space, objectives, **settings)` that
        gives a new strategy, or a strategy that was told nothing yet, of which each seed gets a copy.
    search: `(seed, queries) -> TrialLog`, for whatever is no strategy, such as a learner. Its done trials hold all
        objectives of the problem by name; it must return at least `queries` trials.
    settings: keyword arguments of the strategy. One with a parameter `queries` is given the budget by it.
    tuned: what its hyper-parameters were tuned on, and at what cost, for the check-list.
    limit_as: how the strategy takes the bounds of the problem, see `sartor.limits`.

    Several processes need an entry that can be pickled: classes and functions of a module, no lambda.
    """

    name: str
    strategy: str | Factory | Strategy | None = None
    search: Search | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: str = ""
    limit_as: Form = "hard"

    def __post_init__(self) -> None:
        """Check the fields; ValueError names the entry."""
        if not self.name.strip():
            raise ValueError("an entry of the scoreboard has no name: give it one")
        if (self.strategy is None) == (self.search is None):
            raise ValueError(f"entry {self.name!r} needs a strategy or a search, and not both")
        if self.settings and (self.search is not None or _is_made(self.strategy)):
            raise ValueError(f"entry {self.name!r} has settings, but nothing is made from them: make it with them")
        if self.limit_as != "hard" and (self.search is not None or _is_made(self.strategy)):
            raise ValueError(f"entry {self.name!r} takes limits as {self.limit_as!r}: give a strategy's name or class")

    def new_strategy(self, space: SearchSpace, objectives: Sequence[Objective], queries: int) -> Strategy:
        """Return a strategy that was told nothing, for a budget of so many queries."""
        assert self.strategy is not None
        if _is_made(self.strategy):
            return copy.deepcopy(self.strategy)
        factory: Any = _class_of(self.strategy) if isinstance(self.strategy, str) else self.strategy
        made: Strategy = factory(space, objectives, **self._budget(queries), **self.settings)
        return made

    def under_limits(
        self, space: SearchSpace, objectives: Sequence[Objective], queries: int
    ) -> tuple[Strategy, Sequence[Objective]]:
        """Return a new strategy under the bounds of the objectives, and the objectives to search with."""
        if self.limit_as == "hard":
            return self.new_strategy(space, objectives, queries), objectives
        return under_limits(
            lambda domain, goals: self.new_strategy(domain, goals, queries), space, objectives, self.limit_as
        )

    def folder(self, queries: int) -> str:
        """Return the name of the folder with its trials; one that knows its budget has a folder for each."""
        return folder_name(self.name) + (f"@{queries}" if self._budget(queries) else "")

    def described(self, queries: int) -> dict[str, Any]:
        """Return what the report says of it: where it comes from, its hyper-parameters, what they were tuned on."""
        repeatable = isinstance(self.strategy, str) and all(_plain(one) == one for one in self.settings.values())
        settings = {**self._defaults(), **self._budget(queries), **self.settings}
        settings |= {"limit_as": self.limit_as} if self.limit_as != "hard" else {}
        own = not isinstance(self.strategy, str) or is_own(self.strategy)
        file = {"digest": content_digest(self.strategy)} if isinstance(self.strategy, str) and own else {}
        return {
            "name": self.name,
            "source": self._source(),
            "given": absolute(str(self.strategy)) if repeatable else None,
            **file,
            "folder": self.folder(queries),
            "settings": {name: _plain(value) for name, value in settings.items()},
            "changed": sorted(self.settings),
            "tuned": self.tuned or (UNKNOWN if own or self.settings else BUILT_IN),
            **self._told(),
        }

    def _told(self) -> dict[str, Any]:
        """Return what a search says of itself, if it does: from what it can be made again."""
        told = getattr(self.search, "described", None)
        return dict(told()) if callable(told) else {}

    def _source(self) -> str:
        if isinstance(self.strategy, str):
            return Path(self.strategy).name if is_own(self.strategy) else f"sartor {self.strategy}"
        made = self.search if self.search is not None else self.strategy
        kind = made if isinstance(made, type) or inspect.isroutine(made) else type(made)
        return f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', repr(kind))}"

    def _budget(self, queries: int) -> dict[str, int]:
        return {"queries": queries} if "queries" in self._defaults() and "queries" not in self.settings else {}

    def _defaults(self) -> dict[str, Any]:
        """Return the keyword-only parameters of a strategy's class with their defaults."""
        factory = _class_of(self.strategy) if isinstance(self.strategy, str) else self.strategy
        if not callable(factory):
            return {}
        try:
            parameters = inspect.signature(factory).parameters.values()
        except (TypeError, ValueError):  # of a class written in C, for one
            return {}
        return {
            one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is not one.empty
        }


def named_entries(
    strategies: Iterable[str], *, tuned: Mapping[str, str] | None = None, limit_as: Form = "hard"
) -> list[Entry]:
    """Return the entries that names stand for; "all" is every built-in strategy.

    tuned: by name, what the hyper-parameters were tuned on.
    limit_as: how all of them take the bounds of the problem.
    Raises ValueError for an unknown name, for one of `tuned` that takes no part, and for two of one name.
    """
    wanted: dict[str, None] = {}
    for name in strategies:
        wanted |= dict.fromkeys(built_in() if name == ALL else [name])
    said = dict(tuned or {})
    entries = []
    for name in wanted:
        if name not in built_in():
            names.check("strategies", name)
        shown = name.rpartition(":")[2] if is_own(name) else name
        entries.append(Entry(shown, name, tuned=said.pop(shown, ""), limit_as=limit_as))
    if said:
        raise ValueError(f"{next(iter(said))!r} takes no part, so nothing can be said of its tuning: name an entry")
    check_entries(entries)
    return entries


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise ValueError if there is no entry, or two have names that are alike as file names."""
    if not entries:
        raise ValueError("nothing takes part: name a strategy")
    folders = [folder_name(entry.name).lower() for entry in entries]
    for place, folder in enumerate(folders):
        if (other := folders.index(folder)) < place:
            raise ValueError(
                f"two entries are named {entries[other].name!r} and {entries[place].name!r}: give each its own name"
            )


def folder_name(name: str) -> str:
    """Return an entry's name as that of the folder with its trials."""
    kept = "".join(one if one.isalnum() or one in "._-" else "-" for one in name)
    return kept.strip(".") or "entry"


@cache
def built_in() -> tuple[str, ...]:
    """Return the names that "all" stands for."""
    return tuple(names.built_in("strategies"))


def _is_made(strategy: object) -> TypeGuard[Strategy]:
    return isinstance(strategy, Strategy) and not isinstance(strategy, type)


def _class_of(name: str) -> type:
    return _built_in_class(name) if name in built_in() else names.load("strategies", name)


@cache
def _built_in_class(name: str) -> type:
    """Load a class once: a name is looked up by reading the source of all strategies."""
    return names.load("strategies", name)


def _plain(value: Any) -> Any:
    """Return a setting as JSON carries it; what is no plain value, by its name."""
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return getattr(value, "__name__", None) or type(value).__name__
