# SPDX-License-Identifier: Apache-2.0
"""Stand-alone networks of transformers as folders that load without Sartor.

A network whose sizes its family's configuration can say is saved as any model of the family, for `from_pretrained`.
Any other, with blocks of different sizes or fewer heads where the family derives their length, is saved with a list
of what differs from its configuration, `sizes.json`, and the script `load.py` that reads it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sartor.adapt import load as script
from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier
from sartor.adapt.plain import restate
from sartor.atomic import write_bytes, write_json
from sartor.deploy.parity import single_line
from sartor.deploy.scratch import scratch_beside
from sartor.supernet import named_choices

__all__ = ["save"]

_SCRIPT = Path(script.__file__)
_OWN = ("sizes.json", "load.py")
_LISTS = (nn.ModuleList, nn.Sequential)


def save(network: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> bool:
    """Write a stand-alone network of transformers, with its tokenizer if one is given, to a folder.

    network: from `extract` or `adapt.plain`, with or without its wrapper of `adapt.networks`. Its configuration says
        its sizes from then on, as after `adapt.plain`.
    Returns whether it is a plain model of its family, which `from_pretrained` loads. Otherwise `load.py` in the folder
    does, with transformers alone. `pretrained` loads both.
    The files appear together, in a new folder or in the place of what `save` wrote there before; others are left alone.
    Raises ValueError for a supernet, for one without weights, for a class that transformers does not have, and for
    modules that its configuration does not make; OSError where the disk is full.
    """
    model = network.model if isinstance(network, TextClassifier | LanguageModel | ImageClassifier) else network
    _check(model, Path(folder))
    restate(model)
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    whole = _made(model, config)
    sizes = _sizes(whole, model)
    is_plain = not any(sizes[key] for key in ("blocks", "values")) and _shapes(whole) == _shapes(model)
    with scratch_beside(Path(folder)) as partial:
        if is_plain:
            _save_plain(model, config, partial)
        else:
            _save_cut(model, config, sizes, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _move(partial, Path(folder))
    return is_plain


def _check(model: nn.Module, folder: Path) -> None:
    import transformers

    kind = type(model)
    if getattr(transformers, kind.__name__, None) is not kind or not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(f"{kind.__name__} is no model of transformers: save its state dict instead")
    if choices := named_choices(model):
        raise ValueError(f"{kind.__name__} is a supernet of {len(choices)} choices: extract a network and save that")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"{kind.__name__} is on the meta device and has no weights to save")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder")


def _made(model: nn.Module, config: Any) -> nn.Module:
    """What the configuration makes, without weights."""
    with torch.device("meta"):
        try:
            made: nn.Module = type(model)(config)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__}: its configuration makes no network: {single_line(error)}"
            ) from error
    return made


def _sizes(whole: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What differs from the network that the configuration makes: blocks that are left, numbers of modules, and ties.

    `whole` is cut to these blocks on the way. Raises ValueError for modules that the configuration does not make.
    """
    blocks: dict[str, list[int]] = {}
    for path, listed in model.named_modules():
        there = _at(whole, path)
        if isinstance(listed, _LISTS) and isinstance(there, nn.ModuleList) and len(there) != len(listed):
            blocks[path] = _kept(path, there, listed)
            parent, _, name = path.rpartition(".")
            setattr(whole.get_submodule(parent), name, nn.ModuleList([there[i] for i in blocks[path]]))
    values: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        there = _at(whole, path)
        if there is None or not _alike(there, module):
            raise ValueError(
                f"{path} is a {type(module).__name__}, which the configuration of the network does not make"
            )
        if found := dict(_values(there, module)):
            values[path] = found
    return {"blocks": blocks, "values": values, "tied": _tied(model)}


def _kept(path: str, there: nn.ModuleList, listed: nn.Module) -> list[int]:
    """For each block that is left one of the whole network that has the same modules."""
    found: list[int] = []
    for block in listed.children():
        start = found[-1] + 1 if found else 0
        fitting = (i for i in range(start, len(there)) if _parts(there[i]) == _parts(block))
        place = next(fitting, None)
        if place is None:
            raise ValueError(f"{path} holds blocks that the configuration of the network does not make")
        found.append(place)
    return found


def _parts(block: nn.Module) -> list[tuple[str, object]]:
    return [(path, nn.ModuleList if isinstance(m, _LISTS) else type(m)) for path, m in block.named_modules()] + [
        (name, None) for name, _ in _tensors(block)
    ]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    lists = isinstance(one, _LISTS) and isinstance(other, _LISTS)
    return (lists or type(one) is type(other)) and one._modules.keys() == other._modules.keys()


def _at(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _values(there: nn.Module, module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The numbers and names that a module keeps, where they are others."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training" or not _is_plain(value):
            continue
        if name not in vars(there) or vars(there)[name] != value:
            yield name, value


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(type(one) is int for one in value)
    return value is None or type(value) in (bool, int, float, str)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those too that a state dict leaves out; tied ones by each of their names."""
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _tensors(network)}


def _tied(model: nn.Module) -> dict[str, str]:
    """Parameters that are another one: name -> the first name of that."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: at for name, parameter in named if (at := first.setdefault(id(parameter), name)) != name}


def _save_plain(model: Any, config: Any, folder: Path) -> None:
    from sartor.adapt.loading import silent

    own = model.config
    try:
        model.config = config
        with silent():
            model.save_pretrained(folder)
    finally:
        model.config = own


def _save_cut(model: Any, config: Any, sizes: dict[str, Any], folder: Path) -> None:
    named = model.named_parameters(remove_duplicate=False)
    tensors = {name: one.detach().cpu().contiguous() for name, one in named if name not in sizes["tied"]}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        tensors[name] = buffer.detach().cpu().clone(memory_format=torch.contiguous_format)
    config.dtype = next(model.parameters()).dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    write_json(folder / "sizes.json", sizes)
    write_bytes(folder / "load.py", _SCRIPT.read_bytes())
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _move(partial: Path, folder: Path) -> None:
    """Put the finished files in their place: the folder at once, or file by file into one that is there.

    Then `config.json` goes first and comes last, so that nothing loads meanwhile.
    """
    if not folder.exists():
        os.rename(partial, folder)
        return
    (folder / "config.json").unlink(missing_ok=True)
    for name in (*_OWN, "model.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
