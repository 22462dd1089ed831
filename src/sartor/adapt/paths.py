# SPDX-License-Identifier: Apache-2.0
"""Patterns over the paths of a network's modules, as the rules of `adapt` write them.

A part `*` is any one name. Inside a block a pattern is the path from the block; in the whole network a path matches by
its end. One that begins with `/` is a path from the network, whatever the block. The last part may be a parameter of a
module, or an int that a module or its configuration keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["Paths", "equal", "fits", "found", "ints", "number"]

Paths = Mapping[str, nn.Module]
"""Modules by path, as `named_modules` gives them."""


def found(paths: Paths, block: str, pattern: str) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Layers with weights of their own: path, module and, where the pattern names a parameter, the name of that.

    With "" for the block, in all of the network.
    """
    whole, matches = _of(block, pattern)
    inside = [path for path in paths if _has_weights(paths[path]) and matches(path, whole)]
    if inside:
        yield from ((path, paths[path], None) for path in inside)
        return
    owner, _, tensor = pattern.rpartition(".")
    whole, matches = _of(block, owner)
    for path, module in paths.items():
        if matches(path, whole) and module._parameters.get(tensor) is not None:
            yield f"{path}.{tensor}", module, tensor


def ints(paths: Paths, block: str, pattern: str) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and name of the ints that modules keep."""
    owner, _, name = pattern.rpartition(".")
    whole, matches = _of(block, owner)
    for path, module in paths.items():
        if matches(path, whole) and type(vars(module).get(name)) is int:
            yield f"{path}.{name}", module, name


def number(paths: Paths, block: str, pattern: str) -> int:
    """An int that the network knows, as `num_heads` of a module or `config.num_heads`. ValueError where there is none.

    A path without `*`, from the block.
    """
    names = pattern.split(".")
    for cut in range(len(names), -1, -1):
        path = ".".join([*([block] if block else []), *names[:cut]])
        if path in paths:
            value: Any = paths[path]
            for name in names[cut:]:
                value = getattr(value, name, None)
            if type(value) is int:
                return value
    raise ValueError(f"{block or 'the network'} has no int {pattern!r}, which the rule reads a count from")


def fits(path: str, pattern: str) -> bool:
    """Whether a path ends in a pattern, or after a `/` is what it says."""
    if pattern.startswith("/"):
        return equal(path, pattern[1:])
    return re.fullmatch(rf"(.*\.)?{_expression(pattern)}", path) is not None


def equal(path: str, pattern: str) -> bool:
    """Whether a path is what a pattern says."""
    return re.fullmatch(_expression(pattern), path) is not None


def _has_weights(module: nn.Module) -> bool:
    """Whether it has weights of its own, those included that torch parametrizes."""
    return bool(module._parameters) or "parametrizations" in module._modules


def _of(block: str, pattern: str) -> tuple[str, Any]:
    if pattern.startswith("/"):
        return pattern[1:], equal
    if not block:
        return pattern, fits
    return (f"{block}.{pattern}" if pattern else block), equal


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"[^.]+")
