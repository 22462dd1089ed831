"""Choices: what an architecture is made of, as parameters are what weights are made of.

A `Choice` stands in an ordinary module where an int (or a string, or a flag) stood. It is in force either
*hard*, one option, or *soft*, a weight for each option. `Derived` sizes follow from choices (`expand *
width`), so that a width is written once.

A size tells which entries of a dimension are kept: an int keeps the first n, a tuple keeps those indices. A
layer applies it with two functions:

- `keep(t, size, dim)` for what the layer *produces*: hard, the slice; soft, everything.
- `take(t, size, dim)` for what the layer *reads*: hard, the slice; soft, every entry times the chance that it
  is kept.

A choice of index lists can also be under `Kept`: a weight for each index, tied to no option. A width can be under
`PerSample`: an option for each sample of a batch, which is a mask for each sample where a layer reads.

So a soft width is masked exactly once, at its consumers and hence after the normalisation and the activation
that follow its producer. Masking at producer and consumer both would square the mask, and masking a producer
in front of a batch norm would be divided out again.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sartor.architecture import Option, frozen, same
from sartor.assignments import Assignment, Kept, Mixed, PerSample, Soft
from sartor.sizes import concatenate, floor_divide, head_of_groups, indices, largest_option, position, times

__all__ = [
    "Choice",
    "Derived",
    "Kept",
    "Mixed",
    "PerSample",
    "Size",
    "concat",
    "extent",
    "indices",
    "keep",
    "per_group",
    "take",
]


class Size:
    """A searched quantity: `options`, and the one in force, `value` (hard) or `weights` (soft)."""

    options: tuple[Option, ...]
    roots: tuple[Choice, ...]
    _extent: int | None = None
    _kept: Tensor | None = None

    @property
    @abstractmethod
    def value(self) -> Option:
        """The option in force. Raises ValueError when the size is soft."""

    @property
    @abstractmethod
    def weights(self) -> Tensor | None:
        """(num_options,) probability of each option when soft, None when hard."""

    @property
    @abstractmethod
    def hard(self) -> Option:
        """The option in force, or None when soft: `value` for the inner loop, which never raises."""

    @property
    def is_soft(self) -> bool:
        """Whether weights over the options are in force."""
        return any(root.soft is not None for root in self.roots)

    @property
    def extent(self) -> int:
        """Length of the dimension that the size selects from: the largest option must fit in."""
        if self._extent is None:
            self._extent = max(kept[-1] + 1 if kept else 0 for kept in map(self.kept_by, self.options))
        return self._extent

    def kept_by(self, option: Option) -> Sequence[int]:
        """The indices that an option keeps. Raises ValueError for one that is no size."""
        return indices(option)

    @property
    def rows(self) -> Tensor | None:
        """(N,) position of each sample's option under `PerSample`, else None."""
        if any(isinstance(root.soft, PerSample) for root in self.roots):
            raise ValueError(f"{self!r} cannot be read under PerSample: give its choices one option for all samples")
        return None

    def mask(self, like: Tensor) -> Tensor:
        """(extent,) probability that each index is kept, in `like`'s dtype and device.

        Under `PerSample` (N, extent), whether each sample keeps it.
        """
        if self._kept is None:
            self._kept = torch.zeros(len(self.options), self.extent, device="cpu")
            for row, option in zip(self._kept, self.options, strict=True):
                row[list(self.kept_by(option))] = 1.0
        rows = self.rows
        return self.probabilities(like) @ self._kept.to(like) if rows is None else self._kept.to(like)[rows]

    def probabilities(self, like: Tensor) -> Tensor:
        """(num_options,) chance of each option, one-hot when hard."""
        weights = self.weights
        if weights is None:
            weights = torch.zeros(len(self.options), device="cpu")
            weights[position(self.options, self.value)] = 1.0
        return weights.to(like)

    @abstractmethod
    def evaluate(self, lookup: Callable[[Choice], Option]) -> Option:
        """The value that follows when every root choice holds `lookup(choice)`."""

    def __mul__(self, other: int | Size) -> Derived:
        return Derived(times, self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Derived:
        return Derived(floor_divide, self, other)

    def __int__(self) -> int:
        value = self.value
        if isinstance(value, tuple):
            return len(value)
        if isinstance(value, (int, float)):
            return int(value)
        raise ValueError(f"{self!r} holds {value!r}, which is no number; read it with str() or .value")

    def __index__(self) -> int:
        return int(self)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        return str(self.value)

    def __iter__(self) -> Iterator[int]:
        """The indices in force: a module may loop over an index list, searched or extracted to a tuple."""
        return iter(indices(self.value))


class Choice(Size):
    """A named finite decision held by a module.

    Args:
        options: the alternatives, each JSON-able: ints, floats, strings, bools, None, or tuples of these. As
            a size, an int keeps the first n entries and a tuple of increasing ints keeps those entries.
        name: the key in an `Architecture`. Without it the key is the path of the module that holds the choice
            plus the attribute, as for parameters. Give it when several modules share the decision, or when
            two networks must agree on it.

    A new choice holds its largest option, so that a network in which nothing was activated is the largest
    one.
    Raises ValueError for no options, for two that are equal and for one that JSON cannot carry.
    """

    def __init__(self, options: Sequence[Option], *, name: str | None = None) -> None:
        self.options = tuple(map(frozen, options))
        self.name = name
        if not self.options:
            raise ValueError(f"a choice{f' named {name!r}' if name else ''} needs at least one option")
        if any(same(a, b) for a, b in itertools.combinations(self.options, 2)):
            raise ValueError(f"options {self.options} of choice {name or ''!r} repeat; give each one once")
        self.roots = (self,)
        self.soft: Soft | None = None
        self.position = position(self.options, largest_option(self.options))

    @property
    def value(self) -> Option:
        """The option in force. Raises ValueError when the choice is soft."""
        if self.soft is not None:
            raise ValueError(f"{self!r} is soft: it has weights, no single value")
        return self.options[self.position]

    @property
    def hard(self) -> Option:
        """The option in force, None when soft."""
        return self.options[self.position] if self.soft is None else None

    @property
    def weights(self) -> Tensor | None:
        """(num_options,) weights in force, None when hard. Raises ValueError under `Kept` and `PerSample`."""
        if isinstance(self.soft, Kept):
            raise ValueError(f"{self!r} is under Kept: it has a weight for each index, none for its options; read mask")
        if isinstance(self.soft, PerSample):
            raise ValueError(f"{self!r} is under PerSample, as only a width can be: give one option for all samples")
        return self.soft.weights if isinstance(self.soft, Mixed) else self.soft

    @property
    def rows(self) -> Tensor | None:
        """(N,) position of each sample's option under `PerSample`, else None."""
        return self.soft.positions if isinstance(self.soft, PerSample) else None

    def mask(self, like: Tensor) -> Tensor:
        """(extent,) probability that each index is kept, or its weight under `Kept`, in `like`'s dtype and device."""
        return self.soft.weights.to(like) if isinstance(self.soft, Kept) else super().mask(like)

    def set(self, assignment: Assignment) -> None:
        """Put an option (hard), or a weight for each option or index, or an option for each sample (soft), in force.

        Raises ValueError if it is none of these, and for weights of indices where an option is no index list.
        """
        if isinstance(assignment, Kept):
            self.soft = self._fitting(assignment)
        elif isinstance(assignment, PerSample):
            positions = assignment.positions
            if positions.dim() != 1 or positions.dtype != torch.int64:
                raise ValueError(f"{self!r} needs (N,) int64 positions, got {positions.dtype} {tuple(positions.shape)}")
            self.soft = assignment
        elif not isinstance(assignment, Tensor | Mixed):
            self.position, self.soft = position(self.options, assignment), None
        else:
            weights = assignment.weights if isinstance(assignment, Mixed) else assignment
            if weights.shape != (len(self.options),):
                raise ValueError(f"{self!r} needs weights of shape ({len(self.options)},), got {tuple(weights.shape)}")
            self.soft = assignment

    def _fitting(self, kept: Kept) -> Kept:
        if not all(isinstance(option, tuple) for option in self.options):
            raise ValueError(f"{self!r} cannot be under Kept: its options are no index lists; give a weight for each")
        if kept.weights.shape != (self.extent,):
            raise ValueError(f"{self!r} needs Kept weights of shape ({self.extent},), got {tuple(kept.weights.shape)}")
        return kept

    @property
    def state(self) -> tuple[int, Soft | None]:
        """All that is in force, to be put back later."""
        return self.position, self.soft

    @state.setter
    def state(self, state: tuple[int, Soft | None]) -> None:
        self.position, self.soft = state

    def evaluate(self, lookup: Callable[[Choice], Option]) -> Option:
        """The value that `lookup` gives to this choice."""
        return lookup(self)

    def __repr__(self) -> str:
        label = f"{self.name}: " if self.name else ""
        return f"Choice({label}{' | '.join(map(repr, self.options))})"


class Derived(Size):
    """A size that follows from others: `fn` of their values, an int (a prefix) or a tuple (those indices).

    Args:
        fn: a named function or operator (lambdas cannot be pickled and are refused).
        parents: sizes, or constants. Parents that share a choice move together: weights are joint over the
            distinct root choices, never an outer product of a choice with itself.
        extent: length of the dimension selected from, when the largest option does not tell.

    `fn` is called once for each combination of the root choices, here.
    Raises ValueError for a lambda and for what `fn` raises on any combination of options.
    """

    def __init__(self, fn: Callable[..., Option], *parents: Option | Size, extent: int | None = None) -> None:
        named = fn.func if isinstance(fn, partial) else fn
        name = getattr(named, "__qualname__", "")
        if "<" in name:
            raise ValueError(f"{name} of a derived size cannot be pickled; use a function of a module")
        self.fn, self.parents, self._extent = fn, parents, extent
        self.roots = tuple(dict.fromkeys(root for p in parents if isinstance(p, Size) for root in p.roots))
        self._values = [  # by combination of the root choices' positions, the last root running fastest
            self.evaluate(dict(zip(self.roots, combination, strict=True)).__getitem__)
            for combination in itertools.product(*(root.options for root in self.roots))
        ]
        self.options = tuple(dict.fromkeys(self._values))

    @property
    def value(self) -> Option:
        """`fn` of the parents' values in force. Raises ValueError when a root choice is soft."""
        if self.is_soft:
            raise ValueError(f"{self!r} is soft: it has weights, no single value")
        return self.hard

    @property
    def hard(self) -> Option:
        """`fn` of the parents' values in force, None when any root choice is soft."""
        combination = 0
        for root in self.roots:
            if root.soft is not None:
                return None
            combination = combination * len(root.options) + root.position
        return self._values[combination]

    @property
    def weights(self) -> Tensor | None:
        """(num_options,) probability of each value, joint over the root choices; None when all are hard."""
        soft = next((weights for root in self.roots if (weights := root.weights) is not None), None)
        if soft is None:
            return None
        joint = soft.new_ones(1)
        for root in self.roots:
            joint = torch.outer(joint, root.probabilities(soft)).flatten()
        position = {option: i for i, option in enumerate(self.options)}
        index = torch.tensor([position[value] for value in self._values], device=soft.device)
        return soft.new_zeros(len(self.options)).index_add(0, index, joint)

    @property
    def rows(self) -> Tensor | None:
        """(N,) position of each sample's value under `PerSample` of any root choice, else None."""
        found = [root.rows for root in self.roots]
        some = next((rows for rows in found if rows is not None), None)
        if some is None:
            return None
        combination = torch.zeros_like(some)
        for root, rows in zip(self.roots, found, strict=True):
            if rows is None and root.soft is not None:
                raise ValueError(f"{self!r} mixes PerSample with weights; give {root!r} an option")
            combination = combination * len(root.options) + (root.position if rows is None else rows)
        position = {option: i for i, option in enumerate(self.options)}
        return torch.tensor([position[value] for value in self._values], device=some.device)[combination]

    def evaluate(self, lookup: Callable[[Choice], Option]) -> Option:
        """The value that follows when every root choice holds `lookup(choice)`."""
        return self.fn(*[p.evaluate(lookup) if isinstance(p, Size) else p for p in self.parents])

    def __repr__(self) -> str:
        return f"Derived({' | '.join(map(repr, self.options))})"


def extent(size: int | Size) -> int:
    """How long the full dimension is that `size` selects from."""
    return size.extent if isinstance(size, Size) else size


def keep(tensor: Tensor, size: int | Size, dim: int = 0) -> Tensor:
    """What a layer produces. Hard: the entries along `dim` that `size` keeps. Soft: all of them."""
    if not isinstance(size, Size):
        return tensor
    value = size.hard
    return tensor if value is None else select(tensor, value, dim)


def take(tensor: Tensor, size: int | Size, dim: int = 0) -> Tensor:
    """What a layer reads. Hard: as `keep`. Soft: every entry times the probability that it is kept.

    Under `PerSample` weights stay whole: the layer masks its input instead, see `sartor.nn.elastic.read`.
    """
    if not isinstance(size, Size):
        return tensor
    value = size.hard
    if value is not None:
        return select(tensor, value, dim)
    if size.rows is not None:
        return tensor
    shape = [1] * tensor.dim()
    shape[dim] = -1
    return tensor * size.mask(tensor).view(shape)


def select(tensor: Tensor, value: Option, dim: int = 0) -> Tensor:
    """The entries of `tensor` along `dim` that a size of this value keeps; a view of a prefix."""
    if type(value) is not int:
        kept = indices(value)
        if len(kept) == tensor.shape[dim]:
            return tensor
        return tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    if value == tensor.shape[dim]:
        return tensor
    return tensor[:value] if dim == 0 else tensor.narrow(dim, 0, value)  # the faster of two equal views


def concat(*sizes: int | Size) -> int | Size:
    """The size of several inputs concatenated: each keeps its own place in the full dimension."""
    extents = tuple(map(extent, sizes))
    if not any(isinstance(size, Size) for size in sizes):
        return sum(extents)
    return Derived(partial(concatenate, extents), *sizes, extent=sum(extents))


def per_group(width: Size, groups: int) -> Derived:
    """`groups` groups, each `width` wide: an elastic width per group keeps the head of every group."""
    return Derived(partial(head_of_groups, groups, width.extent), width, extent=groups * width.extent)
