# SPDX-License-Identifier: Apache-2.0
"""Rules that say, by the paths of modules, which sizes of an existing network may be searched.

A rule names the layers that make a width, those that read it and those that treat each entry alone, relative to the
block it is in. Lengths are read off the network: if a network has 12 heads and a layer makes 384 features, a head has
32. So one rule serves a family at every size.

Patterns are those of `adapt.paths`, and one that ends in `?` need not match anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from sartor.adapt.following import follow
from sartor.adapt.paths import Paths, fits, found, ints, number
from sartor.architecture import Option
from sartor.choice import Choice, Derived, Size, concat
from sartor.nn import Repeat, Stages
from sartor.nn.adopted import Role, adopt, is_searched, length
from sartor.nn.sized import Sized, sized
from sartor.sizes import before, blocks, floor_divide, within

__all__ = ["Depth", "Fractions", "Rule", "Stated", "Width", "apply", "lists", "places", "roles"]

Fractions = Sequence[int | float | tuple[int, ...]]
"""Options as a user writes them: ints as they are, fractions (0 to 1] of the full size, index lists of a depth."""


@dataclass(frozen=True)
class Stated:
    """Where the configuration of a family says a size, so that a network that was cut is one of its family again.

    name: of the count. unit: the path of an int, the length of one unit, as of a head; unit_name: its name in the
    configuration, None where that derives it from the hidden size. groups: the name of the count over `together`.
    own: of a depth, its name in the configuration of the stack itself, where that is another. per_input: whether it is
    said as a multiple of what the maker reads.
    """

    name: str
    unit: str | None = None
    unit_name: str | None = None
    groups: str | None = None
    own: str | None = None
    per_input: bool = False


@dataclass(frozen=True)
class Width:
    """A width of each block: its heads, the hidden width of its MLP, or for "" the residual stream of all blocks.

    role: the keyword of its options, and the last part of the choice's name. within: the blocks; each has a choice.
    makes, reads, follows: the layers, in paths from the block. gates: those that read it for its own gates alone, as in
        squeeze-and-excitation, which does not make an entry important.
    count: the path of an int of the network that says how many units the width has, as the number of heads; without it
        every entry that the first maker makes is one. together: an int that says how many units come and go together,
        as query heads that share a key-value head.
    numbers: ints of modules that are kept in step. fused: stretches that makers put one behind the other, as q, k, v.
    complete: whether every layer that has a side of this length must be named, so that a head of which nothing is known
        is refused when the network is adopted, not when it runs.
    stated: where the configuration says it.
    """

    role: str
    within: str
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    follows: tuple[str, ...] = ()
    count: str | None = None
    together: str | None = None
    numbers: tuple[str, ...] = ()
    fused: int = 1
    complete: bool = False
    stated: Stated | None = None
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Depth:
    """How many of a list of equal blocks run, or which: `blocks` is the path of the `ModuleList` or `Sequential`.

    places: ints in each block that say its place in the list, as the key-value cache reads it. kinds: a list of the
        configuration with an entry for each block. Both follow an index list. always: blocks that every list names.
    stated: where the configuration says it. span: the stretch of the list that is meant, from and to (not included),
        where the other blocks always run.
    """

    role: str
    blocks: str
    places: tuple[str, ...] = ()
    kinds: str | None = None
    always: tuple[int, ...] = ()
    stated: Stated | None = None
    span: tuple[int, int] | None = None


Rule = Width | Depth


def apply(
    model: nn.Module, rules: Sequence[Rule], options: Mapping[str, Fractions], shared: Collection[str] = ()
) -> dict[str, Choice]:
    """Make a network elastic in place by rules; return the choices by name.

    options: by role; a role that is not named is not searched. shared: roles that have one choice for all their blocks.
    Raises ValueError, with the network unchanged, for a role that no rule finds in the network and for options that its
    sizes do not allow.
    """
    paths = dict(model.named_modules())
    if unknown := [role for role in shared if role not in {rule.role for rule in rules}]:
        raise ValueError(f"{unknown[0]!r} cannot be the same in all blocks: {_searchable(model, rules)}")
    for role in options:
        if not any(any(_planned(paths, rule)) for rule in rules if rule.role == role):
            raise ValueError(_unfound(model, rules, role))
    planned = [one for rule in rules if rule.role in options for one in _planned(paths, rule)]
    choices: dict[str, Choice] = {}
    made = [plan.sized_by(_choice(plan, options[plan.rule.role], shared, choices), shared) for plan in planned]
    for step in itertools.chain.from_iterable(made):
        step()
    for plan in planned:
        if isinstance(plan.rule, Depth):
            _follow(model, plan, choices[_name(plan, shared)])
    return choices


@dataclass(frozen=True)
class _Plan:
    """A rule at one place of a network: the full count of units, and what follows it."""

    rule: Rule
    path: str
    full: int
    together: int = 1
    sides: tuple[tuple[str, nn.Module, str | None, Role], ...] = ()
    numbers: tuple[tuple[str, nn.Module, str], ...] = ()
    parent: nn.Module | None = None

    @property
    def holder(self) -> str:
        """The path of the list of blocks; of a stretch of it, `path` is that of the first block."""
        return self.path.rpartition(".")[0] if isinstance(self.rule, Depth) and self.rule.span else self.path

    def sized_by(self, choice: Choice, shared: Collection[str]) -> list[Callable[[], object]]:
        """What is to be done, all of it possible, to put the choice in force as the size of all layers."""
        if self.parent is not None:
            assert isinstance(self.rule, Depth)
            return [partial(_listed, self.parent, self.holder.rpartition(".")[2], choice, self.rule.span)]
        assert isinstance(self.rule, Width)
        count = self.full // self.together
        units: Size = choice if self.together == 1 else Derived(floor_divide, choice, self.together)
        if self.rule.role in shared and self.path:
            units = Derived(partial(within, self.path), units)
        known: dict[tuple[int, int], Size] = {}  # equal sizes are one object, and so one computation
        steps: list[Callable[[], object]] = []
        for path, layer, tensor, role in self.sides:
            shape = _length(path, layer, tensor, role, self.full), self.rule.fused if role == "makes" else 1
            size = known[shape] if shape in known else known.setdefault(shape, _derived(path, units, count, *shape))
            steps.append(partial(adopt, layer, role, size, tensor))
        for path, module, name in self.numbers:
            shape = getattr(module, name), 1
            size = known[shape] if shape in known else known.setdefault(shape, _derived(path, units, count, *shape))
            steps.append(partial(sized, module, numbers={name: size}))
        return steps


def roles(model: nn.Module, rules: Sequence[Rule]) -> list[str]:
    """What can be searched in a network by rules."""
    paths = dict(model.named_modules())
    return list(dict.fromkeys(rule.role for rule in rules if _is_there(paths, rule)))


def lists(paths: Paths, rule: Depth) -> Iterator[tuple[str, nn.Module]]:
    """The lists of blocks of a network that a rule is about, and their paths."""
    for path, listed in paths.items():
        if fits(path, rule.blocks) and isinstance(listed, nn.ModuleList | nn.Sequential) and len(listed):
            yield path, listed


def places(paths: Paths, rule: Width) -> list[str]:
    """The blocks of a network, by path, that a rule may be about."""
    return [path for path in paths if fits(path, rule.within)] if rule.within else [""]


def _listed(parent: nn.Module, name: str, depth: Choice, span: tuple[int, int] | None) -> None:
    blocks_ = parent._modules[name]
    assert blocks_ is not None
    if span is None:
        parent._modules[name] = Repeat(*blocks_.children(), depth=depth)
        return
    stages = blocks_ if isinstance(blocks_, Stages) else Stages(*blocks_.children())
    stages.add_stage(*span, depth)
    parent._modules[name] = stages


def _follow(model: nn.Module, plan: _Plan, depth: Choice) -> None:
    """Let what blocks and configuration know of places follow index lists; counts of blocks leave all in its place."""
    rule, parent = plan.rule, plan.parent
    assert isinstance(rule, Depth) and parent is not None
    if not any(isinstance(option, tuple) for option in depth.options):
        return
    paths = dict(model.named_modules())
    for i in range(plan.full):
        for pattern in rule.places:
            for _, module, name in ints(paths, f"{plan.path}.{i}", pattern):
                sized(module, numbers={name: Derived(before, depth, i)})
    if rule.kinds is not None:
        follow(model, parent, rule.kinds, depth)


def _derived(path: str, units: Size, count: int, full: int, parts: int) -> Size:
    """The size of a dimension of length `full` that holds `parts` times `count` units."""
    each, left = divmod(full, count * parts)
    if left:
        times = f"{parts} times " if parts > 1 else ""
        raise ValueError(f"{path}: its {full} entries do not divide into {times}{count} equal units")
    one: Size = units if each == 1 else Derived(blocks, units, each)
    whole = one if parts == 1 else concat(*[one] * parts)
    assert isinstance(whole, Size)
    return whole


def _length(path: str, layer: nn.Module, tensor: str | None, role: Role, full: int) -> int:
    try:
        if tensor is None:
            return length(layer, role)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    whole = layer.whole(tensor) if isinstance(layer, Sized) else getattr(layer, tensor)
    fitting = [extent for extent in whole.shape if extent and extent % full == 0]
    if not fitting:
        raise ValueError(f"{path}: no dimension of {tuple(whole.shape)} holds {full} units")
    return int(fitting[-1])


def _name(plan: _Plan, shared: Collection[str]) -> str:
    role = plan.rule.role
    return role if role in shared or not plan.path else f"{plan.path}.{role}"


def _choice(plan: _Plan, wanted: Fractions, shared: Collection[str], known: dict[str, Choice]) -> Choice:
    name = _name(plan, shared)
    options = _options(name, wanted, plan)
    if name in known:
        if plan.rule.role not in shared or known[name].options != options:
            raise ValueError(
                f"{name} has other sizes at {plan.path}: it cannot be one choice for all; leave it unshared"
            )
        return known[name]
    known[name] = Choice(options, name=name)
    return known[name]


def _options(name: str, wanted: Fractions, plan: _Plan) -> tuple[Option, ...]:
    """The options in units, from small to large, the full one among them."""
    if not wanted or not isinstance(wanted, Sequence):
        raise ValueError(f"{name} cannot have the options {wanted!r}: list counts up to {plan.full}, or fractions")
    units = dict.fromkeys(_option(name, one, plan) for one in wanted)
    numbers = sorted(one for one in units if isinstance(one, int))
    listed = [one for one in units if isinstance(one, tuple)]
    if not listed:
        return (*numbers, *([] if plan.full in units else [plan.full]))
    prefixes = [tuple(range(one)) for one in numbers]
    whole = tuple(range(plan.full))
    return tuple(sorted({*listed, *prefixes, whole}, key=lambda one: (len(one), one)))


def _option(name: str, one: int | float | tuple[int, ...], plan: _Plan) -> int | tuple[int, ...]:
    rule, full, together = plan.rule, plan.full, plan.together
    if isinstance(one, tuple | list):
        one = tuple(one)
        ascending = all(type(i) is int for i in one) and one == tuple(sorted(set(one)))
        if not isinstance(rule, Depth) or not one or not ascending or not 0 <= one[0] <= one[-1] < full:
            raise ValueError(f"{name} cannot be {one!r}: a depth alone is a list, of increasing numbers below {full}")
        left = [i for i in rule.always if i not in one]
        if left:
            raise ValueError(f"{name} cannot be {one!r}: block {left[0]} computes what the others read; keep it")
        return one
    is_share = isinstance(one, float) and 0.0 < one <= 1.0
    value = max(1, round(one * full / together)) * together if is_share else one
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= full:
        raise ValueError(f"{name} cannot be {one!r}: the network has {full}; give counts up to it, or fractions")
    if value % together:
        raise ValueError(f"{name} cannot be {value}: {together} come and go together, so give multiples of {together}")
    return value


def _planned(paths: Paths, rule: Rule) -> Iterator[_Plan]:
    if isinstance(rule, Depth):
        for path, listed in lists(paths, rule):
            start, stop = rule.span or (0, sum(1 for _ in listed.children()))
            at = f"{path}.{start}" if rule.span else path
            yield _Plan(rule, at, stop - start, parent=paths[path.rpartition(".")[0]])
        return
    for block in places(paths, rule):
        if plan := _width(paths, rule, block):
            yield plan


def _width(paths: Paths, rule: Width, block: str) -> _Plan | None:
    """The rule at one block; None where the block has none of its makers. ValueError where it has a part of them."""
    sides: dict[tuple[int, str | None, Role], tuple[str, nn.Module, str | None, Role]] = {}
    parts: tuple[tuple[Role, tuple[str, ...]], ...] = (
        ("makes", rule.makes), ("reads", rule.reads), ("follows", rule.follows), ("gates", rule.gates)
    )  # fmt: skip
    missing = []
    for role, patterns in parts:
        for pattern in patterns:
            there = list(found(paths, block, pattern.rstrip("?")))
            for path, layer, tensor in there:
                sides.setdefault((id(layer), tensor, role), (path, layer, tensor, role))
            if not there and not pattern.endswith("?"):
                missing.append(pattern)
    if not any(role == "makes" for _, _, role in sides):
        return None
    if missing:
        raise ValueError(f"the rule of {rule.role!r} finds no {missing[0]!r} in {block or 'the network'}")
    for path, layer, tensor, role in sides.values():
        if is_searched(layer, role, tensor):
            raise ValueError(f"{path} follows a size already: a network is adopted once for each of its roles")
    path, layer, tensor, role = next(iter(sides.values()))
    full = number(paths, block, rule.count) if rule.count else _length(path, layer, tensor, role, 1) // rule.fused
    together = number(paths, block, rule.together) if rule.together else 1
    if full % together:
        raise ValueError(f"{block}: {full} {rule.role} do not divide into groups of {together}")
    if rule.complete:
        _check_complete(paths, rule.role, full, [layer for _, layer, _, _ in sides.values()])
    numbers = tuple(one for pattern in rule.numbers for one in ints(paths, block, pattern))
    return _Plan(rule, block, full, together, tuple(sides.values()), numbers)


def _check_complete(paths: Paths, role: str, full: int, named: list[nn.Module]) -> None:
    for path, module in paths.items():
        sides = slice(1, None) if isinstance(module, nn.Embedding) else slice(None)  # rows of a table are no width
        held = [tensor.shape[sides] for tensor in module._parameters.values() if tensor is not None]
        lengths = {extent for shape in held for extent in shape}
        if full in lengths and not any(module is one for one in named):
            raise ValueError(f"{role!r} cannot be searched: no rule says what {path}, a {type(module).__name__}, does")


def _unfound(model: nn.Module, rules: Sequence[Rule], role: str) -> str:
    """What to say of a role that no rule finds: what was looked for, and what else there is."""
    looked = [
        rule.blocks if isinstance(rule, Depth) else f"{rule.makes[0].rstrip('?')} in {rule.within or 'the network'}"
        for rule in rules
        if rule.role == role
    ]
    sought = f" (no {', no '.join(looked)} among its modules)" if looked else ""
    return f"{type(model).__name__} has no {role!r} that a rule finds{sought}; {_searchable(model, rules)}"


def _searchable(model: nn.Module, rules: Sequence[Rule]) -> str:
    return f"what can be searched: {', '.join(roles(model, rules)) or 'none'}"


def _is_there(paths: Paths, rule: Rule) -> bool:
    try:
        return any(_planned(paths, rule))
    except ValueError:
        return False
