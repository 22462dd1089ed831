# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: nested state as safetensors and JSON, written so that a kill or a full disk loses nothing.

A checkpoint is two files. `step-N.safetensors` holds the tensors under readable names; `step-N.json` holds
everything else, and the digest of the first. The JSON file is put in place last, so it is the commit: without
it, or with another digest, the checkpoint does not exist. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sartor.atomic import write_bytes

__all__ = ["flatten", "load_newest", "nan_in", "pack", "save", "unflatten", "unpack"]

FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"step-(\d+)\.(json|safetensors)(\.tmp)?")


def save(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the state after `step` steps into `folder`, then drop all but the last two checkpoints.

    Checkpoints of later steps go too: the run went back behind them, and they are no longer its future.

    Raises:
        TypeError: the state holds something that is neither a tensor nor a plain value.
        OSError: it could not be written (a full disk, for one); the earlier checkpoints are unchanged.
    """
    tensors, tree = flatten(state)
    data = safetensors.torch.save(tensors)
    record = {"format": FORMAT, "step": step, "sha256": hashlib.sha256(data).hexdigest(), "state": tree}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"step-{step}.safetensors", data)
    write_bytes(folder / f"step-{step}.json", json.dumps(record, allow_nan=False).encode())
    _prune(folder, step)


def load_newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Return the step and the state of the newest whole checkpoint, or None if there is none.

    A half-written checkpoint is passed over, a damaged one with a warning.

    Raises:
        ValueError: the newest checkpoint has a format that this version does not know.
    """
    for step in sorted(_steps(folder), reverse=True):
        try:
            return step, _load(folder, step)
        except _Damaged as error:
            warnings.warn(f"{error}; going back to an earlier one", stacklevel=2)
    return None


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into named tensors and a tree that JSON can carry; `unflatten` joins them again.

    Dictionaries (with keys of any plain kind), lists, tuples, tensors, None, booleans, numbers and strings
    come back equal and of the same type; an instance of a subclass (an OrderedDict, a Parameter) comes back
    as the plain type. A tensor that occurs twice is stored once and comes back as one.

    Raises:
        TypeError: naming the place of anything else.
    """
    packer = _Packer()
    return packer.tensors, packer.tree(state, "")


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """Join what `flatten` returned."""
    if isinstance(tree, list):
        return [unflatten(tensors, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in value)
    if kind == "dict":
        return {unflatten(tensors, key): unflatten(tensors, item) for key, item in value}
    raise ValueError(f"unknown kind of node {kind!r}")


def pack(state: Any) -> bytes:
    """Return nested state as bytes, for another process; errors as `flatten`."""
    tensors, tree = flatten(state)
    return safetensors.torch.save(tensors, {"tree": json.dumps(tree, allow_nan=False)})


def unpack(data: bytes) -> Any:
    """Return the state of `pack`."""
    size = int.from_bytes(data[:8], "little")  # of the header, which holds what is no tensor
    tree = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["tree"])
    return unflatten(safetensors.torch.load(data), tree)


def nan_in(state: Any) -> str | None:
    """Return the name of the first tensor of a nested state that holds a NaN, or None."""
    tensors, _ = flatten(state)
    floating = ((name, value) for name, value in tensors.items() if value.is_floating_point())
    return next((name for name, value in floating if bool(torch.isnan(value).any())), None)


class _Packer:
    """One walk over a state: the tensors found so far, and the tree of the rest.

    What JSON knows stands for itself; all else is an object with one key, the kind: {"tuple": [...]}.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.seen: dict[tuple[Any, ...], str] = {}
        self.storages: set[int] = set()

    def tree(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": self.name(value, place)}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, (list, tuple)):
            items = [self.tree(item, f"{place}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, Mapping):
            pairs = [[self.tree(k, place), self.tree(v, f"{place}.{k}")] for k, v in value.items()]
            return {"dict": pairs}
        raise TypeError(
            f"a {type(value).__name__} at {place.lstrip('.')!r} cannot go into a checkpoint;"
            " give tensors, numbers, strings, None, and lists, tuples or dictionaries of them"
        )

    def name(self, tensor: Tensor, place: str) -> str:
        """Return the name under which `tensor` is stored, storing it if it is new."""
        alias = _alias(tensor)
        if alias not in self.seen:
            name = place.lstrip(".").encode("ascii", "backslashreplace").decode() or "tensor"
            while name in self.tensors or name == "__metadata__":  # the keys "a.b" and "a" -> "b" meet here
                name += "'"
            self.seen[alias] = name
            self.tensors[name] = self.packed(tensor)
        return self.seen[alias]

    def packed(self, tensor: Tensor) -> Tensor:
        """Return `tensor` on the CPU in memory of its own: safetensors refuses views of shared memory."""
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in self.storages or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        elif plain.numel():
            self.storages.add(storage.data_ptr())
        return plain


def _alias(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors share exactly if they are the same numbers in the same memory."""
    if not tensor.numel():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


class _Damaged(Exception):
    """A checkpoint whose files are there but are not what was written."""


def _load(folder: Path, step: int) -> dict[str, Any]:
    path = folder / f"step-{step}.json"
    try:
        record = json.loads(path.read_bytes())
        found = record["format"]
        if found == FORMAT:
            data = path.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise _Damaged(f"checkpoint {path} is damaged: its tensors are not those that were written")
            state: dict[str, Any] = unflatten(safetensors.torch.load(data), record["state"])
            return state
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise _Damaged(f"checkpoint {path} is damaged: {type(error).__name__}: {error}") from error
    raise ValueError(f"checkpoint {path} has format {found}, and this version reads {FORMAT}: upgrade sartor")


def _steps(folder: Path) -> set[int]:
    """Return the steps that have a committing JSON file."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*.json"))
    return {int(match[1]) for match in names if match}


def _prune(folder: Path, step: int) -> None:
    kept = sorted(number for number in _steps(folder) if number <= step)[-_KEPT:]
    for path in sorted(folder.glob("step-*")):  # .json before .safetensors: never a commit without its data
        match = _NAME.fullmatch(path.name)
        if match and (int(match[1]) not in kept or match[3]):
            path.unlink(missing_ok=True)
