# SPDX-License-Identifier: Apache-2.0
"""A module of somebody else's class whose tensors and numbers follow searched sizes.

A pretrained network brings layers that `sartor.nn` has no elastic form of: a linear layer that stores its weight
transposed, a norm of its own, a table of positions, an attention that keeps its number of heads. `sized` makes such a
module elastic where it stands: it keeps its parameters, its place and its forward, which from then on reads slices.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sartor.choice import Size, keep, take
from sartor.nn.elastic import Elastic, plain

__all__ = ["Axis", "Sized", "sized"]

M = TypeVar("M", bound=nn.Module)

_TUPLES = frozenset(("normalized_shape",))  # numbers that torch keeps as a tuple of one


class Axis(NamedTuple):
    """A dimension of a tensor that follows a size.

    role: "makes" for what the module produces, "reads" for what it reads, "mixes" for a norm over it.
    """

    tensor: str
    dim: int
    size: Size
    role: Literal["makes", "reads", "mixes"]


class Sized(Elastic):
    """What `sized` adds to the class of a module. Not to be made by hand.

    Soft, it makes all entries and reads each times the chance that it is kept, as every elastic layer. What its forward
    does between is not known here. So a norm over a soft size is refused, a soft number that counts nothing of its own,
    and one option per sample.
    """

    axes: list[Axis]
    numbers: dict[str, Size]

    def active(self, tensor: str) -> Tensor | None:
        """The slice in force of a parameter or buffer; all of it where no dimension is searched.

        Raises ValueError for a norm whose size is soft, and for a reader whose size has one option per sample.
        """
        whole = self._parameters.get(tensor) if tensor in self._parameters else self._buffers.get(tensor)
        for name, dim, size, role in self.axes if whole is not None else ():
            if name == tensor:
                assert whole is not None
                if role != "makes" and size.hard is None:
                    self._check_soft(size, role)
                whole = take(whole, size, dim) if role == "reads" else keep(whole, size, dim)
        return whole

    def _check_soft(self, size: Size, role: str) -> None:
        """A norm has no expectation over options, and the input of a foreign forward cannot be masked for a sample."""
        kind = _original(type(self)).__name__
        if role == "mixes":
            raise ValueError(f"a {kind} normalises over {size!r}, which is soft: give it an option")
        if size.rows is not None:
            raise ValueError(f"a {kind} reads {size!r}, which has an option for each sample: give one for all of them")

    def number(self, name: str) -> int:
        """A number in force; where it is soft and counts entries of a tensor that is then whole, all of them.

        Raises ValueError for any other that is soft.
        """
        size = self.numbers[name]
        if not size.is_soft:
            return int(size)
        if any(axis.size is size for axis in self.axes):
            return size.extent
        kind = _original(type(self)).__name__
        raise ValueError(f"a {kind} computes with its {name}, {size!r}, which is soft: give it an option")

    def whole(self, tensor: str) -> Tensor:
        """The parameter or buffer itself, with all options in it."""
        found = self._parameters[tensor] if tensor in self._parameters else self._buffers[tensor]
        assert found is not None
        return found

    def extract(self) -> nn.Module:
        """A module of the original class at the sizes in force; its children are still those of the supernet."""
        tensors = {name: self.active(name) for name in (*self._parameters, *self._buffers)}
        values = {name: getattr(self, name) for name in self.numbers}
        new = plain(self, _original(type(self)), tensors, axes=None, numbers=None)
        del new.axes, new.numbers
        vars(new).update(values)
        new._modules.update(self._modules)
        return new

    def extra_repr(self) -> str:
        """The sizes that its tensors and numbers follow."""
        shown = [f"{name}[{dim}]={size!r}" for name, dim, size, _ in self.axes]
        return ", ".join([*shown, *(f"{name}={size!r}" for name, size in self.numbers.items())])

    def __repr__(self) -> str:
        return torch.nn.Module.__repr__(self)  # that of the class may read the numbers from `__dict__`

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind = type(self)
        return _blank, (_original(kind), *vars(kind)["_elastic_names"]), self.__dict__


def sized(module: nn.Module, axes: Sequence[Axis] = (), numbers: Mapping[str, Size] | None = None) -> Sized:
    """Let dimensions of a module's own tensors, and ints that it keeps, follow sizes, in place; return the module.

    axes: of its parameters and buffers. numbers: attributes that its forward reads, by name.
    Called again on the same module it adds to what is there. Parameters, state dict and hooks stay as they are.
    Raises ValueError for a name that the module does not have, for a dimension whose length is not the size's, and
    for what follows a size already.
    """
    known: list[Axis] = module.axes if isinstance(module, Sized) else []
    counts: dict[str, Size] = module.numbers if isinstance(module, Sized) else {}
    own = type(module).__name__
    for name, dim, size, _ in axes:
        tensor = module._parameters.get(name) if name in module._parameters else module._buffers.get(name)
        if tensor is None:
            raise ValueError(f"{own} has no parameter or buffer {name!r} to slice; it has {_held(module)}")
        if tensor.shape[dim] != size.extent:
            raise ValueError(f"{own}.{name} is {tensor.shape[dim]} long in dimension {dim}, the size {size.extent}")
        if any((name, dim % tensor.dim()) == (one.tensor, one.dim % tensor.dim()) for one in known):
            raise ValueError(f"dimension {dim} of {own}.{name} follows a size already: one rule for each dimension")
    for name in numbers or {}:
        if name in counts:
            raise ValueError(f"{own}.{name} follows a size already: one rule for each number")
        if type(vars(module).get(name)) is not (tuple if name in _TUPLES else int):
            raise ValueError(f"{own} has no int {name!r}; it has {_held(module)}")
    known, counts = [*known, *axes], {**counts, **(numbers or {})}
    for name in numbers or {}:
        vars(module).pop(name, None)
    tensors = tuple(dict.fromkeys(one.tensor for one in known))
    kind: Any = _original(type(module))
    module.__class__ = _class_of(kind, tensors, tuple(counts))
    vars(module).update(axes=known, numbers=counts)
    assert isinstance(module, Sized)
    return module


def _held(module: nn.Module) -> str:
    ints = [name for name, value in vars(module).items() if type(value) is int]
    return ", ".join([*module._parameters, *module._buffers, *ints]) or "none"


def _original(kind: type) -> type[nn.Module]:
    """The class that a module had before."""
    return vars(kind)["_elastic_kind"] if "_elastic_kind" in vars(kind) and issubclass(kind, Sized) else kind


@functools.cache  # modules of one class share their elastic class, as pickles and copies of them do
def _class_of(kind: type, tensors: tuple[str, ...], numbers: tuple[str, ...]) -> type[nn.Module]:
    members: dict[str, Any] = {name: _slice(name) for name in tensors} | {name: _number(name) for name in numbers}
    # Named as the original is: libraries look up by the name of a class what they know of it, and write it to files.
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    members |= {"_elastic_kind": kind, "_elastic_names": (tensors, numbers)}
    return type(kind.__name__, (Sized, kind), members)


def _slice(name: str) -> property:
    return property(lambda self: self.active(name))


def _number(name: str) -> property:
    if name in _TUPLES:
        return property(lambda self: (self.number(name),))
    return property(lambda self: self.number(name))


def _blank(kind: type, tensors: tuple[str, ...], numbers: tuple[str, ...]) -> nn.Module:
    made: nn.Module = torch.nn.Module.__new__(_class_of(kind, tensors, numbers))
    return made
