# SPDX-License-Identifier: Apache-2.0
"""Targets: a device with a runtime, on which exported networks are measured."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from sartor.own import is_own, load_own

if TYPE_CHECKING:
    from sartor.protocols import Target

__all__ = ["TARGETS", "load_target"]

TARGETS = MappingProxyType(
    {
        "torch": ("sartor.targets.torch_eager:TorchTarget", {}),
        "onnxruntime": ("sartor.targets.onnxruntime:OnnxRuntimeTarget", {"precision": "float32"}),
        "onnxruntime:int8": ("sartor.targets.onnxruntime:OnnxRuntimeTarget", {"precision": "int8"}),
    }
)
"""The names a user writes, with the class that each stands for and what it is called with."""


def load_target(text: str, *, threads: int = 1) -> Target:
    """Return the target that `text` names, or an object of the user's own class in ``path.py:Class``.

    The user's class is called with `threads` as a keyword. Nothing is imported but the target asked for.

    Raises:
        ValueError: an unknown name, fewer than one thread, a file or class that cannot be had, or a class
            that is no target.
    """
    if threads < 1:
        raise ValueError(f"cannot run on {threads} threads: use 1 or more")
    if text in TARGETS:
        place, arguments = TARGETS[text]
        module, _, name = place.partition(":")
        target: Target = getattr(importlib.import_module(module), name)(threads=threads, **arguments)
        return target
    if not is_own(text):
        raise ValueError(f"no target is named {text!r}: use {', '.join(TARGETS)} or path.py:Class")
    return _made(load_own(text, "target"), text, threads)


def _made(kind: type, text: str, threads: int) -> Target:
    from sartor.protocols import Target

    try:
        target = kind(threads=threads)
    except Exception as error:
        raise ValueError(f"{text} cannot be made with threads={threads}: {error}") from error
    if not isinstance(target, Target):
        missing = [n for n in ("name", "fingerprint", "prepare", "measure") if not hasattr(target, n)]
        raise ValueError(f"{text} is no target: it has no {', '.join(missing)}")
    return target
