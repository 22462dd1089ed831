"""The names a user writes: what is built in, and a class of his own as `path.py:Class`.

A built-in name is the name of a module, and its class is the one that is named like the module and has the
methods of its family: `regularized_evolution` holds `RegularizedEvolution`. Targets have variants, and so
name themselves in `sartor.targets.TARGETS`. Built-in names are listed by reading source, never by importing
it, so that listing needs no torch.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from sartor.own import is_own, load_own

FAMILIES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "spaces": (("spaces",), ("forward",)),
    "strategies": (("strategies",), ("ask", "tell")),
    "methods": (("oneshot", "differentiable"), ("step", "state_dict", "load_state_dict")),
    "targets": (("targets",), ("fingerprint", "prepare", "measure")),
}
"""What can be named: the packages that hold it, and the methods that make a class one of the family."""


PRETRAINED = "hf:"
"""What the name of a space begins with that is a pretrained network."""

_PACKAGE = Path(__file__).parent
_SAYS_NO = "shares_weights"
"""Set by learners whose weights no sub-network is deployed with, such as those that only rate architectures."""


def built_in(family: str) -> dict[str, str]:
    """Return each built-in name of `family` with the first line of its module's docstring, by name."""
    if family == "targets":
        from sartor.targets import TARGETS

        places = {name: place.partition(":")[0].rpartition(".")[2] for name, (place, _) in TARGETS.items()}
        return {name: _title(_PACKAGE / "targets" / f"{module}.py") for name, module in places.items()}
    return {path.stem: _title(path) for path in _files(family) if _class_of(path, family)}


def is_pretrained(space: str) -> bool:
    """Tell whether a space is a pretrained network: `hf:` and a folder or an id of Hugging Face."""
    return space.startswith(PRETRAINED)


def check(family: str, name: str) -> None:
    """Check a name; a file of the user's own is run for it, a built-in one is not imported, no device is reached.

    Raises:
        ValueError: the name is not built in, or the user's file or class cannot be had or is of another kind.
    """
    if family == "targets" and name.startswith("remote:"):
        from sartor.targets._command import command_of

        command_of(name)
    elif family == "targets" and name.startswith("datasheet:"):
        from sartor.targets import load_target

        load_target(name)
    elif is_own(name):
        _own(family, name)
    elif family == "spaces" and is_pretrained(name):
        if not name.removeprefix(PRETRAINED):
            raise ValueError(f"{name!r} names no model: write {PRETRAINED}FOLDER, or {PRETRAINED} and an id of the hub")
    elif name not in (known := built_in(family)):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [k for k in known if _initials(k) == name]
        hint = f"did you mean {close[0]!r}? " if close else ""
        remote = "another machine is remote:COMMAND, one in writing datasheet:TEXT; " if family == "targets" else ""
        is_model = family == "spaces" and (Path(name) / "config.json").is_file()
        hint = f"did you mean {PRETRAINED + name!r}, a pretrained network? " if is_model else hint
        offered = f"built in: {', '.join(known)}; {remote}one of your own is written path.py:Class"
        raise ValueError(f"no {_singular(family)} is named {name!r}; {hint}{offered}")


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def check_search(name: str) -> None:
    """Check the name of a method that a device search can train its shared weights with.

    Raises:
        ValueError: as `check`, or the method leaves nothing to search: it has neither an `architecture()` nor, as
            `passes_per_step` tells, weights that sub-networks share.
    """
    check("methods", name)
    if not (reads_out(name) or shares_weights(name)):
        raise ValueError(f"the method {name!r} leaves nothing to search; those that do: {', '.join(_searched())}")


def check_train(name: str) -> None:
    """Check the name of a method that trains shared weights; ValueError as `check`, or it does something else."""
    check("methods", name)
    if not shares_weights(name):
        able = [one for one in built_in("methods") if shares_weights(one)]
        raise ValueError(
            f"the method {name!r} trains no shared weights to specialise; those that do: {', '.join(able)}"
        )


def reads_out(name: str) -> bool:
    """Tell whether a method finds an architecture by itself, as those of differentiable search."""
    members = _members("methods", name)
    return "architecture" in members and _SAYS_NO not in members


def shares_weights(name: str) -> bool:
    """Tell whether a method trains weights that sub-networks share and are deployed with."""
    members = _members("methods", name)
    return not reads_out(name) and "passes_per_step" in members and _SAYS_NO not in members


def _searched() -> list[str]:
    return [one for one in built_in("methods") if reads_out(one) or shares_weights(one)]


def _members(family: str, name: str) -> set[str]:
    """Return the names of the methods of a class, and of the attributes that it sets; by reading a built-in one."""
    if is_own(name):
        return {*dir(_own(family, name))}
    path = next(path for path in _files(family) if path.stem == name)
    found = next(node for node in _parsed(path).body if _named(node, _class_of(path, family)))
    members = {node.name for node in ast.walk(found) if isinstance(node, ast.FunctionDef)}
    members |= {node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and _is_name(node.target)}
    return members | {node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute)}


def _is_name(target: ast.expr) -> TypeGuard[ast.Name]:
    return isinstance(target, ast.Name)


def _named(node: ast.stmt, name: str) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and node.name == name


def load(family: str, name: str) -> type:
    """Import the class that `name` stands for, in any family but targets (`sartor.targets.load_target`).

    Raises:
        ValueError: as `check`.
    """
    check(family, name)
    if is_own(name):
        return _own(family, name)
    path = next(path for path in _files(family) if path.stem == name)
    module = importlib.import_module(f"sartor.{path.parent.name}.{name}")
    found: type = getattr(module, _class_of(path, family))
    return found


def _own(family: str, name: str) -> type:
    found = load_own(name, _singular(family))
    missing = [method for method in FAMILIES[family][1] if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(f"{name!r} is no {_singular(family)}: it has no method {' or '.join(missing)}")
    return found


def _files(family: str) -> list[Path]:
    """Return the modules of a family; the default strategy composes others, and so lives a layer above them."""
    files = sorted(file for package in FAMILIES[family][0] for file in (_PACKAGE / package).glob("[!_]*.py"))
    return sorted([*files, _PACKAGE / "recipes" / "auto.py"]) if family == "strategies" else files


def _title(path: Path) -> str:
    return (ast.get_docstring(_parsed(path)) or "").partition("\n")[0]


def _class_of(path: Path, family: str) -> str:
    """Return the class of a built-in module that is named like it and has its family's methods, or ""."""
    start, needed = path.stem.replace("_", ""), {*FAMILIES[family][1]}
    alike = [
        node
        for node in _parsed(path).body
        if isinstance(node, ast.ClassDef)
        and node.name.lower().startswith(start)
        and needed <= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    ]
    if family == "spaces":  # not a part of the network, such as its cell, and no model of a vocabulary
        alike = [node for node in alike if "classes" in _made_with(node)]
    return min((node.name for node in alike), key=len, default="")


def _made_with(node: ast.ClassDef) -> set[str]:
    """Return the names of the arguments that a class is made with."""
    made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    return {argument.arg for item in made for argument in (*item.args.args, *item.args.kwonlyargs)}


@functools.cache  # to list a family reads each file once
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _singular(family: str) -> str:
    return {"strategies": "strategy"}.get(family, family.removesuffix("s"))
