# SPDX-License-Identifier: Apache-2.0
"""The domain of a search: named choices, when each of them matters, and a constraint."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import contains
from types import MappingProxyType
from typing import Any

from sartor.architecture import Architecture, Option, frozen
from sartor.gates import Condition, Gate, checked_gate, count, key, narrowed, parents_first

__all__ = ["Condition", "Gate", "NothingFound", "SearchSpace"]

_ATTEMPTS = 10_000
_FORMAT = 1


class NothingFound(ValueError):
    """No architecture that meets the constraint was found where one was asked for."""


@dataclass(frozen=True)
class SearchSpace:
    """Immutable choices (name -> options), gates (name -> when the choice matters) and a constraint.

    A choice without a gate is always active. Inactive choices hold their first option, so that equal networks
    are equal architectures; every architecture returned here has this canonical form. Names are kept in
    order. A constraint is met by drawing again, which changes the distribution: it is uniform over what is
    allowed, per draw. It must be cheap, since it is called for each draw.
    """

    choices: Mapping[str, tuple[Option, ...]]
    gates: Mapping[str, Gate] = field(default_factory=dict)
    constraint: Callable[[Architecture], bool] | None = None

    def __post_init__(self) -> None:
        """Check and freeze; ValueError names the choice at fault."""
        choices = {name: _options(name, self.choices[name]) for name in sorted(self.choices)}
        if not choices:
            raise ValueError("a search space needs at least one choice")
        object.__setattr__(self, "choices", MappingProxyType(choices))
        gates = {name: checked_gate(name, self.gates[name], choices) for name in sorted(self.gates)}
        parents_first(gates)
        object.__setattr__(self, "gates", MappingProxyType(gates))

    def __hash__(self) -> int:
        """Hash the names and options."""
        return hash((tuple(self.choices.items()), tuple(self.gates.items())))

    def __eq__(self, other: object) -> bool:
        """Compare choices (by type, too), gates and constraint."""
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return self.constraint == other.constraint and self.to_json() == other.to_json()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by the three fields."""
        return SearchSpace, (dict(self.choices), dict(self.gates), self.constraint)

    # ---- membership -------------------------------------------------------------------------------

    def is_active(self, name: str, values: Mapping[str, Option]) -> bool:
        """Tell whether the choice matters under `values`: a condition on an inactive choice does not hold."""
        return self._is_active(name, values, {})

    def _is_active(self, name: str, values: Mapping[str, Option], known: dict[str, bool]) -> bool:
        """Remember what was found: through gates with alternatives, a choice is reached in exponentially many ways."""
        if name not in known:
            gate = self._tests.get(name)
            known[name] = gate is None or any(
                all(self._is_active(one, values, known) and key(values[one]) in allowed for one, allowed in alternative)
                for alternative in gate
            )
        return known[name]

    def canonical(self, values: Mapping[str, Option]) -> Architecture:
        """Return the architecture that `values` means: inactive choices take their first option.

        Raises ValueError for an unknown name or option and for an active choice that is missing.
        """
        given = values if isinstance(values, Architecture) else Architecture(values)
        for name, option in given.items():
            if name not in self.choices:
                raise ValueError(f"no choice is named {name!r}: the names are {_list(self.choices)}")
            if key(option) not in self._others[name]:
                raise ValueError(f"{option!r} is no option of {name!r}: its options are {_list(self.choices[name])}")
        arch = self._settled({name: given.get(name, options[0]) for name, options in self.choices.items()})
        for name in self.choices.keys() - given.keys():
            if self.is_active(name, arch):
                raise ValueError(f"the choice {name!r} is missing: its options are {_list(self.choices[name])}")
        return arch

    def __contains__(self, arch: object) -> bool:
        """Tell whether `arch` is an architecture of this space: canonical, and within the constraint."""
        if not isinstance(arch, Architecture) or arch._values.keys() != self._others.keys():
            return False
        if not all(map(contains, self._others.values(), map(key, arch._values.values()))):
            return False
        if self.gates and self._settled(dict(arch._values)) != arch:
            return False
        return self.constraint is None or bool(self.constraint(arch))

    # ---- drawing ----------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> Architecture:
        """Draw every choice uniformly (uniform over choices, not over distinct networks)."""
        return self._drawn(self._sample, rng)

    def mutate(self, arch: Architecture, rng: random.Random, rate: float | None = None) -> Architecture:
        """Return `arch` with exactly one active choice changed, or each with chance `rate`, at least one.

        The result differs from `arch`. A choice that becomes active by the change starts at its first option.
        Raises NothingFound (a ValueError) if no allowed change is found.
        """
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate}: it is a probability, from 0 to 1")
        if rate is None and self.constraint is not None:
            return self._edited(arch, rng)
        return self._drawn(self._mutate, arch, rng, rate)

    def crossover(self, a: Architecture, b: Architecture, rng: random.Random) -> Architecture:
        """Take each choice from `a` or `b` with equal chance (uniform crossover); may equal a parent."""
        return self._drawn(self._crossover, a, b, rng)

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        """Return all allowed architectures that differ from `arch` in one active choice: perhaps none."""
        found = [self._replaced(arch, name, option) for name, option in self._edits(arch)]
        return found if self.constraint is None else [other for other in found if self.constraint(other)]

    def _drawn(self, draw: Callable[..., Architecture], *arguments: Any) -> Architecture:
        if self.constraint is None:
            return draw(*arguments)
        for _ in range(_ATTEMPTS):
            arch = draw(*arguments)
            if self.constraint(arch):
                return arch
        raise NothingFound(f"the constraint refused {_ATTEMPTS} architectures in a row: widen it, or the choices")

    def _sample(self, rng: random.Random) -> Architecture:
        uniform = rng.random
        return self._settled({name: options[int(uniform() * count)] for name, options, count in self._draws})

    def _mutate(self, arch: Architecture, rng: random.Random, rate: float | None) -> Architecture:
        free = self._free_in(arch)
        if not free:
            raise NothingFound("there is nothing to mutate: no active choice has a second option")
        changes = {}
        for position in _positions(len(free), rng, rate):
            name = free[position]
            others = self._alternatives(arch, name)
            changes[name] = others[int(rng.random() * len(others))]
        return self._settled({**arch._values, **changes})

    def _crossover(self, a: Architecture, b: Architecture, rng: random.Random) -> Architecture:
        bits = rng.getrandbits(len(self.choices))
        mixed = dict(a._values)
        for position, (name, option) in enumerate(b._values.items()):
            if bits >> position & 1:
                mixed[name] = option
        return self._settled(mixed)

    def _edited(self, arch: Architecture, rng: random.Random) -> Architecture:
        """Try the one-choice changes in the order of repeated draws, so that none is missed."""
        free = {name: list(self._alternatives(arch, name)) for name in self._free_in(arch)}
        while free:
            name = rng.choice(list(free))
            others = free[name]
            child = self._replaced(arch, name, others.pop(rng.randrange(len(others))))
            if self.constraint is None or self.constraint(child):
                return child
            if not others:
                del free[name]
        raise NothingFound(f"no architecture within the constraint is one change away from {arch!r}")

    def _edits(self, arch: Architecture) -> list[tuple[str, Option]]:
        return [(name, option) for name in self._free_in(arch) for option in self._alternatives(arch, name)]

    def _alternatives(self, arch: Architecture, name: str) -> tuple[Option, ...]:
        try:
            return self._others[name][key(arch._values[name])]
        except KeyError:
            self.canonical(arch)  # says what is wrong
            raise

    def _replaced(self, arch: Architecture, name: str, option: Option) -> Architecture:
        return self._settled({**arch._values, name: option})

    def _free_in(self, arch: Architecture) -> tuple[str, ...]:
        """Return the active choices that have another option."""
        if not self.gates:
            return self._free
        active = self._active(arch)
        return tuple(name for name in self._free if active.get(name, True))

    def _active(self, values: Mapping[str, Option]) -> dict[str, bool]:
        """Tell for each gated choice whether it is active; parents come first, so that one pass is enough."""
        active: dict[str, bool] = {}
        for name, gate in self._tests.items():
            active[name] = any(
                all(active.get(other, True) and key(values[other]) in allowed for other, allowed in alternative)
                for alternative in gate
            )
        return active

    def _settled(self, values: dict[str, Option]) -> Architecture:
        """Wrap valid values, complete and ordered by name, once the inactive ones took their first option."""
        if self.gates:
            for name, active in self._active(values).items():
                if not active:
                    values[name] = self.choices[name][0]
        return Architecture._trusted(values)

    # ---- derived spaces and extremes --------------------------------------------------------------

    def restrict(self, options: Mapping[str, Any] | None = None, /, **named: Any) -> SearchSpace:
        """Return the space with fewer options: `restrict(depth=[2, 3], kernel=3)`; a lone option is fixed.

        The canonical form is that of the new space: an inactive choice takes the first option that is left.
        Raises ValueError for a name or option that is not here.
        """
        kept = dict(self.choices)
        for name, wanted in {**(options or {}), **named}.items():
            if name not in kept:
                raise ValueError(f"no choice is named {name!r}: the names are {_list(kept)}")
            several = wanted if isinstance(wanted, (list, tuple, set, frozenset, range)) else (wanted,)
            keys = {key(frozen(option)) for option in several}
            kept[name] = tuple(option for option in self.choices[name] if key(option) in keys)
            if len(kept[name]) < max(1, len(keys)):
                raise ValueError(f"{wanted!r} are not all options of {name!r}: these are {_list(self.choices[name])}")
        return SearchSpace(kept, {name: narrowed(gate, kept) for name, gate in self.gates.items()}, self.constraint)

    def largest(self) -> Architecture:
        """Take the maximum of numbers, the longest (then last) of tuples, else the last.

        The constraint is ignored.
        """
        return self._settled({name: _extreme(options, last=True) for name, options in self.choices.items()})

    def smallest(self) -> Architecture:
        """Take the minimum of numbers, the shortest (then first) of tuples, else the first.

        The constraint is ignored.
        """
        return self._settled({name: _extreme(options, last=False) for name, options in self.choices.items()})

    # ---- size and file form -----------------------------------------------------------------------

    @cached_property
    def size(self) -> int:
        """The exact number of architectures, gates respected, the constraint not."""
        return count(self.choices, self.gates)

    def __len__(self) -> int:
        """Return `size`; OverflowError where Python's len() cannot."""
        if self.size > sys.maxsize:
            raise OverflowError("the space is too large for len(): use space.size")
        return self.size

    def __bool__(self) -> bool:
        """Return True: no space is empty."""
        return True

    def to_json(self) -> str:
        """Return choices and gates as JSON; a constraint is code and stays behind."""
        return json.dumps({"format": _FORMAT, "choices": dict(self.choices), "gates": dict(self.gates)})

    @classmethod
    def from_json(cls, text: str, constraint: Callable[[Architecture], bool] | None = None) -> SearchSpace:
        """Read what `to_json` wrote; ValueError for anything else."""
        try:
            read = json.loads(text)
            if read["format"] != _FORMAT:
                raise ValueError(f"format {read['format']!r} where {_FORMAT} is known: use the version that wrote it")
            return cls(read["choices"], read["gates"], constraint)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the JSON of a search space: {error!r}") from None

    # ---- tables made once, so that a draw costs microseconds --------------------------------------

    @cached_property
    def _tests(self) -> dict[str, tuple[tuple[tuple[str, frozenset[object]], ...], ...]]:
        return {
            name: tuple(
                tuple((other, frozenset(map(key, options))) for other, options in alternative)
                for alternative in self.gates[name]
            )
            for name in parents_first(self.gates)
        }

    @cached_property
    def _draws(self) -> tuple[tuple[str, tuple[Option, ...], int], ...]:
        return tuple((name, options, len(options)) for name, options in self.choices.items())

    @cached_property
    def _others(self) -> dict[str, dict[object, tuple[Option, ...]]]:
        return {
            name: {key(one): tuple(other for other in options if other is not one) for one in options}
            for name, options in self.choices.items()
        }

    @cached_property
    def _free(self) -> tuple[str, ...]:
        return tuple(name for name, options in self.choices.items() if len(options) > 1)


def _options(name: object, options: object) -> tuple[Option, ...]:
    if type(name) is not str or not name:
        raise ValueError(f"the name {name!r} of a choice is no string, or empty")
    if not isinstance(options, (list, tuple, range)) or not options:
        raise ValueError(f"the options of {name!r} must be a tuple of at least one option, not {options!r}")
    frozen_options = tuple(map(frozen, options))
    if len(set(map(key, frozen_options))) < len(frozen_options):
        raise ValueError(f"the options of {name!r} repeat: {_list(frozen_options)}")
    return frozen_options


def _positions(count: int, rng: random.Random, rate: float | None) -> list[int]:
    """Draw each of `count` positions with chance `rate`, given that at least one is; or one uniformly."""
    if not rate:
        return [int(rng.random() * count)]
    if rate == 1:
        return list(range(count))
    # The gaps between drawn positions are geometric; the first is cut off so that it falls inside.
    stay, inside = _geometric(count, rate)
    positions = [min(count - 1, int(math.log1p(rng.random() * inside) / stay))]
    while (position := positions[-1] + 1 + int(math.log1p(-rng.random()) / stay)) < count:
        positions.append(position)
    return positions


@lru_cache(maxsize=256)
def _geometric(count: int, rate: float) -> tuple[float, float]:
    stay = math.log1p(-rate)
    return stay, math.expm1(count * stay)


def _extreme(options: tuple[Option, ...], *, last: bool) -> Option:
    if all(isinstance(option, (int, float)) for option in options):
        ordered = sorted(options, key=float)  # type: ignore[arg-type]
    elif all(isinstance(option, tuple) for option in options):
        ordered = sorted(options, key=len)  # type: ignore[arg-type]
    else:
        ordered = list(options)
    return ordered[-1] if last else ordered[0]


def _list(items: Any) -> str:
    return ", ".join(map(repr, items))
