# SPDX-License-Identifier: Apache-2.0
"""A pretrained network as the space of a run: `hf:` and a folder or an id of Hugging Face.

It stands where the name of a space stands, so that training, search and specialisation know of no other kind of
network. What is trained is fine-tuned: weights begin as they were published, with the important part of each width
first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sartor.names import PRETRAINED, is_pretrained
from sartor.task import Task, load_task

if TYPE_CHECKING:
    from sartor.adapt.loading import Kind

__all__ = ["LENGTH", "METHODS", "kind_of", "method_for", "network", "shape_of", "task_for"]

LENGTH = 64
"""Tokens of a sequence, if nothing is said and the model takes as many."""

METHODS: Mapping[Kind, str] = {"classification": "instatune", "image": "instatune", "language": "llama_nas"}
"""What trains the shared weights of a pretrained network, if nothing is said, by what it is for."""

_LANGUAGE = (".txt", ".txt.gz", ".npz")


def kind_of(space: str, data: str | Path | Task) -> Kind:
    """Tell what a pretrained network is for: "image", "language" or "classification" of text.

    Raises ValueError where the model cannot be read.
    """
    from sartor.adapt.loading import configuration

    if isinstance(data, Task):
        kind: Kind = data.preprocessing.to_dict().get("kind", "image")
        return kind
    if hasattr(configuration(_source(space)), "image_size"):
        return "image"
    place = Path(str(data))
    texts = [place] if not place.is_dir() else [path for path in sorted(place.iterdir()) if path.is_file()]
    return "language" if texts and all(path.name.endswith(_LANGUAGE) for path in texts) else "classification"


def method_for(space: str, data: str | Path | Task, default: str) -> str:
    """The method that trains the shared weights of a space where none is named."""
    return METHODS[kind_of(space, data)] if is_pretrained(space) else default


def task_for(
    data: str | Path,
    space: str,
    *,
    seed: int,
    image_size: int | tuple[int, int] | None = None,
    length: int | None = None,
) -> Task:
    """Load the data of a run: images, or for a pretrained language model text, with the model's own tokenizer.

    length: of a sequence, in tokens. Raises ValueError as `load_task`, `text_task` and `pretrained` do.
    """
    if not is_pretrained(space):
        return load_task(data, seed=seed, image_size=image_size)
    kind, source = kind_of(space, data), _source(space)
    if kind == "image":
        if length is not None:
            raise ValueError(f"a sequence length is of text, and {space!r} reads images: leave it out")
        from sartor.adapt.loading import configuration

        side = configuration(source).image_size
        return load_task(data, seed=seed, image_size=image_size or (side if isinstance(side, int) else tuple(side)))
    if image_size is not None:
        raise ValueError(f"an image size is of images, and {space!r} reads text: leave it out")
    from sartor.adapt.loading import configuration, positions, tokenizer_of
    from sartor.data.text import text_task

    config = configuration(source)
    most = positions(config)
    if length is not None and most is not None and length > most:
        raise ValueError(f"sequences of {length} tokens are too long for {space!r}: ask for a length of {most} at most")
    tokens = str(data).endswith(".npz")  # ids already, of a model that needs no tokenizer then
    tokenizer = None if tokens else tokenizer_of(source)
    return text_task(
        data, tokenizer, kind=kind, length=length or min(LENGTH, most or LENGTH), seed=seed,
        vocabulary=getattr(config, "vocab_size", None),
    )  # fmt: skip


def shape_of(task: Task, space: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `network` is made with, of a run's data and of what was asked."""
    kind = kind_of(space, task)
    return {
        "kind": kind, "classes": len(task.classes) if kind != "language" else None,
        "options": json.dumps(asked.get("elastic") or {}), "shared": tuple(asked.get("uniform") or ()),
        "seed": int(asked["seed"]),
    }  # fmt: skip


def network(
    space: str, *, kind: Kind, classes: int | None, options: str, shared: Sequence[str], seed: int
) -> nn.Module:
    """The pretrained network with choices, what is important of each width first; no weights on the meta device.

    options: by role, as JSON; `adapt.DEFAULTS` if "{}". Raises ValueError as `pretrained` and `elastic` do.
    """
    from sartor.adapt import elastic, sort_by_importance
    from sartor.adapt.loading import pretrained

    wanted: dict[str, Any] = {role: [tuple(one) if isinstance(one, list) else one for one in them]
                              for role, them in json.loads(options).items()}  # fmt: skip
    model: nn.Module = pretrained(_source(space), kind=kind, classes=classes, seed=seed, replace_head=True)
    model = elastic(model, shared=shared, **wanted)
    if next(model.parameters()).device.type != "meta":
        with torch.no_grad():
            sort_by_importance(model)
    return model


def _source(space: str) -> str:
    return space.removeprefix(PRETRAINED)
