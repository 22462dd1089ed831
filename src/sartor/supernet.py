"""The verbs on a network with choices: name them, activate an architecture, extract a plain network."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from sartor.architecture import Option
from sartor.assignments import Assignment
from sartor.choice import Choice, Size
from sartor.nn.elastic import Elastic
from sartor.nn.resolution import at_resolution
from sartor.nn.sized import Sized
from sartor.space import Condition, Gate, SearchSpace

__all__ = ["activated", "extract", "named_choices", "recalibrate_batchnorm", "search_space"]

_INTERNAL = frozenset(vars(nn.Module()))  # what torch keeps in every module: no choice lives there
_CONTENT = frozenset(("_parameters", "_buffers", "_modules"))
_IMMUTABLE = frozenset((int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_COLLECTIONS = frozenset((dict, list, set, OrderedDict))
_CACHE = "_elastic_names"


def named_choices(model: nn.Module) -> dict[str, Choice]:
    """Every choice of `model` by name, in the order of `model.named_modules()`.

    The name is the choice's own, or else the path of its first owner plus the attribute (an element of a
    list, tuple or dict adds its position or key). Raises ValueError when two choices share a name.
    """
    return {name: choice for name, (choice, _) in _owned_choices(model).items()}


def search_space(model: nn.Module) -> SearchSpace:
    """The space that `model` spans: its choices' options, and the gates under which each of them matters."""
    owned = _owned_choices(model)
    name_of = {id(choice): name for name, (choice, _) in owned.items()}
    conditions: dict[str, Condition] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for child, size, allowed in module.gates() if isinstance(module, Elastic) else ():
            condition = _condition(size, allowed, name_of)
            if len(condition[1]) < len(owned[condition[0]][0].options):  # otherwise the child is always there
                conditions[f"{path}.{child}" if path else child] = condition
    gates: dict[str, Gate] = {}
    for name, (_, owners) in owned.items():
        alternatives = tuple(
            dict.fromkeys(tuple(conditions[p] for p in _ancestry(o) if p in conditions) for o in owners)
        )
        strictest = [a for a in alternatives if not any(set(b) < set(a) for b in alternatives)]
        if () not in strictest:
            gates[name] = tuple(strictest)
    return SearchSpace({name: choice.options for name, (choice, _) in owned.items()}, gates)


@contextmanager
def activated(model: nn.Module, assignment: Mapping[str, Assignment]) -> Iterator[nn.Module]:
    """Put options (hard), or weights or options per sample (soft), in force for the `with` block, then restore.

    Choices that `assignment` leaves out keep what they hold. Raises ValueError for an unknown name or option,
    with nothing changed. The state lives on the model's own choices: one model serves one thread, as with
    batch norm.
    """
    choices = _cached_choices(model, assignment)
    before = [(choice, choice.state) for choice in map(choices.__getitem__, assignment)]
    try:
        for name, value in assignment.items():
            try:
                choices[name].set(value)
            except ValueError as error:
                raise ValueError(f"choice {name!r}: {error}") from None
        yield model
    finally:
        for choice, state in before:
            choice.state = state


def extract(model: nn.Module, architecture: Mapping[str, Option]) -> nn.Module:
    """The stand-alone network of `architecture`: plain `torch.nn` layers that hold copies of the active
    slices.

    Ordinary modules of the network (and the user's own classes) remain, their choices replaced by values: an
    index list by a tuple, every other by its option. Nothing of the supernet is copied but the slices; a
    supernet on the meta device gives a network on the meta device. Tied parameters stay tied.
    Raises ValueError as `activated` does, and when a choice is soft.
    """
    with activated(model, architecture):
        choices = _cached_choices(model, ())
        for name, choice in choices.items():
            if choice.soft is not None:
                raise ValueError(f"choice {name!r} is soft; give it an option in the architecture")
        return _Extraction(model, choices.values()).network(model)


class _Extraction:
    """One walk from a supernet to its plain network."""

    def __init__(self, model: nn.Module, choices: Iterable[Choice]) -> None:
        self.of_supernet = {id(module) for module in model.modules()}
        # id of what was met -> its copy, as in copy.deepcopy; of a choice, wherever it is held, its value
        self.memo: dict[int, Any] = {id(choice): choice.value for choice in choices}
        self.copied: list[tuple[nn.Module, nn.Module]] = []  # ordinary modules and their copies
        self.uses: dict[int, list[tuple[nn.Module, nn.Module, str]]] = {}  # parameter -> holders, before and after

    def network(self, model: nn.Module) -> nn.Module:
        """The plain counterpart of the whole model."""
        network = self.plain(model)
        # Attributes come last: one that refers to a module or a size then finds the copy or the value.
        for old, new in self.copied:
            self.memo.update({id(size): size.value for _, size in _sizes(old)})
            for name, value in vars(old).items():
                if name in vars(new) and name not in _CONTENT and type(value) not in _IMMUTABLE:
                    empty = type(value) in _COLLECTIONS and not value  # as most of torch's own attributes are
                    vars(new)[name] = type(value)() if empty else copy.deepcopy(value, self.memo)
        self._tie()
        return network

    def plain(self, old: nn.Module) -> nn.Module:
        """The plain counterpart of `old`, made once."""
        if id(old) in self.memo:
            return cast(nn.Module, self.memo[id(old)])
        if not isinstance(old, Elastic):
            return self._copy(old)
        new = old.extract()
        if id(new) in self.of_supernet:  # a container's chosen child
            new = self.plain(new)
        else:
            self._register(old, new)
            self.memo[id(old)] = new
            new._modules.update(self._children(new))
            if isinstance(old, Sized):  # of a class of its own, with attributes that must not be shared
                self.copied.append((old, new))
        self.memo[id(old)] = new
        return new

    def _copy(self, old: nn.Module) -> nn.Module:
        """A copy of an ordinary module, with plain children; its other attributes are still shared."""
        new: nn.Module = object.__new__(type(old))
        self.memo[id(old)] = new
        self.copied.append((old, new))
        self._register(old, new)
        content: dict[str, dict[str, Any]] = {
            "_modules": self._children(old),
            "_parameters": {n: copy.deepcopy(p, self.memo) for n, p in old._parameters.items()},
            "_buffers": {n: copy.deepcopy(b, self.memo) for n, b in old._buffers.items()},
        }
        vars(new).update({n: v for n, v in vars(old).items() if n != _CACHE}, **content)
        return new

    def _children(self, module: nn.Module) -> dict[str, nn.Module | None]:
        return {name: None if child is None else self.plain(child) for name, child in module._modules.items()}

    def _register(self, old: nn.Module, new: nn.Module) -> None:
        for name, parameter in old._parameters.items():
            if parameter is not None:
                self.uses.setdefault(id(parameter), []).append((old, new, name))

    def _tie(self) -> None:
        """Layers that share a parameter share their slice of it, where it is the same one."""
        for users in self.uses.values():
            made: list[tuple[list[Tensor], nn.Parameter | None]] = []
            for old, new, name in users if len(users) > 1 else ():
                places = _places(old, new, name)
                tied = (p for other, p in made if all(map(torch.equal, other, places)))
                new._parameters[name] = next(tied, new._parameters[name])
                made.append((places, new._parameters[name]))


def _places(layer: nn.Module, plain: nn.Module, name: str) -> list[Tensor]:
    """Which entries of its parameter the plain form of a layer holds: the indices along each dimension.

    A table of all entries, which says the same, would be larger than the parameter.
    """
    parameter, held = layer._parameters[name], plain._parameters[name]
    assert parameter is not None
    if held is None or held.shape == parameter.shape or not isinstance(layer, Elastic):
        return [torch.arange(length, device="cpu") for length in parameter.shape]
    found = []
    for dim, length in enumerate(parameter.shape):
        shape = [-1 if d == dim else 1 for d in range(parameter.dim())]
        index = torch.arange(length, dtype=torch.int32, device="cpu").view(shape).expand(parameter.shape)
        try:
            layer._parameters[name] = nn.Parameter(index, requires_grad=False)
            slices = layer.extract()._parameters[name]
        finally:
            layer._parameters[name] = parameter
        assert slices is not None
        along = tuple(slice(None) if d == dim else 0 for d in range(slices.dim()))
        found.append(slices.detach()[along].to(torch.int64, copy=True))
        del slices  # as large as the slice itself
    return found


def recalibrate_batchnorm(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Estimate batch-norm statistics anew, in place: the plain average over `inputs` (Yu & Huang, ICCV 2019).

    Call it on an extracted network, whose buffers are its own: shared weights train under many architectures,
    so the statistics in a supernet belong to none of them. `inputs` are batches (N, C, H, W) of *training*
    images at any resolution; they are resized to the network's. Modes and momenta are restored. No gradient
    is kept. A network without batch norms is left alone, and `inputs` is not read.
    Raises ValueError when `inputs` is empty.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches, not the exponential one
        norm.training = True
    try:
        with torch.no_grad():
            batches = 0
            for images in inputs:
                at_resolution(network, images)
                batches += 1
        if not batches:
            raise ValueError("no batch to re-calibrate batch norm with; give at least one batch of training images")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _owned_choices(model: nn.Module) -> dict[str, tuple[Choice, list[str]]]:
    """Name -> the choice and the paths of all modules that hold it."""
    names: dict[int, str] = {}
    owned: dict[str, tuple[Choice, list[str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, size in _sizes(module):
            place = f"{path}.{attribute}" if path else attribute
            for choice in size.roots:
                name = names.setdefault(id(choice), choice.name or place)
                holder, owners = owned.setdefault(name, (choice, []))
                if holder is not choice:
                    raise ValueError(
                        f"two choices are named {name!r} ({holder!r} and, at {place}, {choice!r}); "
                        f"give one of them name=..., or assign each to an attribute of its own"
                    )
                owners.append(path)
    return owned


def _sizes(module: nn.Module) -> Iterator[tuple[str, Size]]:
    for attribute, value in vars(module).items():
        if attribute not in _INTERNAL and not attribute.startswith("_elastic"):
            yield from _sizes_in(attribute, value)


def _sizes_in(place: str, value: object) -> Iterator[tuple[str, Size]]:
    if isinstance(value, Size):
        yield place, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _sizes_in(f"{place}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _sizes_in(f"{place}.{key}", item)


def _condition(size: Size, allowed: tuple[Option, ...], name_of: Mapping[int, str]) -> Condition:
    """What a container demands of a size, said of the one choice behind it."""
    if len(size.roots) > 1:
        raise ValueError(f"{size!r} follows from {len(size.roots)} choices; a depth must follow from one")
    root = size.roots[0]
    lookups = [{root: option} for option in root.options]
    return name_of[id(root)], tuple(at[root] for at in lookups if size.evaluate(at.__getitem__) in allowed)


def _ancestry(path: str) -> list[str]:
    """A module's path and those of all modules around it."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


class _NameCache:
    """Choices by name, and the links between modules that must still hold for the names to be true.

    Walking a large network takes milliseconds, checking its links microseconds. A copy or a pickle of the
    network leaves the cache behind.
    """

    def __init__(self, model: nn.Module) -> None:
        self.choices = named_choices(model)
        links: list[tuple[dict[str, Any], str, object]] = []
        self.collections: list[tuple[dict[str, Any], str, list[Size]]] = []
        for module in model.modules():
            links += [(module._modules, name, child) for name, child in module._modules.items()]
            for attribute, value in vars(module).items():
                if isinstance(value, Size):
                    links.append((vars(module), attribute, value))
                elif attribute not in _INTERNAL and (sizes := [s for _, s in _sizes_in("", value)]):
                    self.collections.append((vars(module), attribute, sizes))
        self.owners = [owner for owner, _, _ in links]
        self.names = [name for _, name, _ in links]
        self.things = [thing for _, _, thing in links]

    def holds(self) -> bool:
        """Whether every module and size is still where it was."""
        return all(map(is_, map(dict.get, self.owners, self.names), self.things)) and all(
            [size for _, size in _sizes_in("", owner.get(attribute))] == sizes
            for owner, attribute, sizes in self.collections
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


def _cached_choices(model: nn.Module, wanted: Iterable[str]) -> dict[str, Choice]:
    cache: _NameCache | None = vars(model).get(_CACHE)
    if cache is None or not cache.holds() or any(name not in cache.choices for name in wanted):
        cache = vars(model)[_CACHE] = _NameCache(model)
    unknown = [name for name in wanted if name not in cache.choices]
    if unknown:
        known = ", ".join(cache.choices) or "none"
        raise ValueError(f"the network has no choice {unknown[0]!r}; its choices are: {known}")
    return cache.choices
