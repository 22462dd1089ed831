# SPDX-License-Identifier: Apache-2.0
"""A network cut out of a supernet, with a configuration that says what was cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from sartor.adapt.elastic import family_of
from sartor.adapt.huggingface import FAMILIES
from sartor.adapt.paths import Paths, found, number
from sartor.adapt.rules import Depth, Stated, Width, lists, places
from sartor.architecture import Option
from sartor.nn.adopted import length
from sartor.supernet import extract

__all__ = ["plain", "restate"]


def plain(model: nn.Module, architecture: Mapping[str, Option]) -> nn.Module:
    """Return the stand-alone network of an architecture, as `extract` does, and let its configuration say its sizes.

    What a configuration of the family cannot say stays as it was: sizes that differ from block to block where it has
    one number, and heads of another size than it derives. A network whose tensors have the shapes of one made from its
    configuration can be saved as a plain model of its family; any other needs its sizes told.
    Raises ValueError as `extract` does.
    """
    network = extract(model, architecture)
    restate(network)
    return network


def restate(network: nn.Module) -> None:
    """Let the configuration of a network that was cut say its sizes, as far as it can; without a family do nothing."""
    if any(getattr(vars(one).get("config"), "model_type", None) in FAMILIES for one in network.modules()):
        rules = FAMILIES[family_of(network)]
        paths = dict(network.named_modules())
        said = (_depths(paths, rule) if isinstance(rule, Depth) else _widths(paths, rule) for rule in rules)
        _say(itertools.chain.from_iterable(said))


class _Said(NamedTuple):
    """A value for a name in a configuration; of whole units, as heads, the length of one, and how many go together."""

    config: Any
    name: str
    value: int | float
    stated: Stated
    unit: int | None = None
    together: int = 1


def _depths(paths: Paths, rule: Depth) -> Iterator[_Said]:
    stated = rule.stated
    for path, listed in lists(paths, rule) if stated is not None else ():
        assert stated is not None
        depth = sum(1 for _ in listed.children())
        for config in _configs(paths, path):
            _keep([paths[path.rpartition(".")[0]]], config, stated.name, depth)
            yield _Said(config, stated.name, depth, stated)
            kinds = getattr(config, rule.kinds, None) if rule.kinds else None
            if isinstance(kinds, list):
                setattr(config, str(rule.kinds), kinds[:depth])
        owner = vars(paths[path.rpartition(".")[0]]).get("config")
        if stated.own and owner is not None:
            yield _Said(owner, stated.own, depth, stated)


def _widths(paths: Paths, rule: Width) -> Iterator[_Said]:
    stated = rule.stated
    for block in places(paths, rule) if stated is not None else ():
        assert stated is not None
        makers = (
            layer for one in rule.makes for _, layer, tensor in found(paths, block, one.rstrip("?")) if not tensor
        )
        layer = next(makers, None)
        if layer is None:
            continue
        made = length(layer, "makes") // rule.fused
        value: int | float = made / length(layer, "reads") if stated.per_input else made
        unit, together = None, 1
        if stated.unit is not None:
            unit = number(paths, block, stated.unit)
            together = number(paths, block, rule.together) if rule.together else 1
            value = made // unit
        inside = [module for path, module in paths.items() if not block or f"{path}.".startswith(f"{block}.")]
        for config in _configs(paths, block):
            _keep(inside, config, stated.name, value)
            yield _Said(config, stated.name, value, stated, unit, together)


def _keep(modules: Iterable[nn.Module], config: Any, name: str, value: int | float) -> None:
    """Set the ints that modules keep of their own under the names that the configuration has for a size."""
    names = {name, (getattr(config, "attribute_map", None) or {}).get(name, name)}
    for module in modules:
        vars(module).update({one: value for one in names if type(vars(module).get(one)) is int})


def _configs(paths: Paths, path: str) -> list[Any]:
    """The configurations of the modules on the way to a path, each once; all of them for the network as a whole."""
    names = path.split(".") if path else []
    way = [".".join(names[:cut]) for cut in range(len(names) + 1)] if path else list(paths)
    held = [vars(paths[one]).get("config") for one in way if one in paths]
    return list({id(one): one for one in held if one is not None}.values())


def _say(said: Iterable[_Said]) -> None:
    """Set what all places agree on: a number; a list, as of the depths of stages, place by place; heads last of all."""
    together: dict[tuple[int, str], list[_Said]] = {}
    for one in said:
        together.setdefault((id(one.config), one.name), []).append(one)
    for them in sorted(together.values(), key=lambda them: them[0].unit is not None):
        config, name, value, stated, unit, grouped = them[0]
        if isinstance(getattr(config, name, None), list | tuple):
            setattr(config, name, [one.value for one in them])
        elif len({(one.value, one.unit, one.together) for one in them}) == 1:
            if unit is not None and stated.unit_name is not None:
                setattr(config, stated.unit_name, unit)
            elif unit is not None and value * unit != config.hidden_size:
                continue  # the configuration derives another size of the heads
            setattr(config, name, value)
            if stated.groups is not None:
                setattr(config, stated.groups, int(value) // grouped)
