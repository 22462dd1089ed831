# SPDX-License-Identifier: Apache-2.0
"""Targets: a device with a runtime, on which exported networks are measured."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sartor.own import is_own, load_own

if TYPE_CHECKING:
    from sartor.protocols import Target

__all__ = ["DATASHEET", "TARGETS", "load_target"]

DATASHEET = "datasheet:"

_TORCH = "sartor.targets.torch_eager:TorchTarget"
_ONNX_RUNTIME = "sartor.targets.onnxruntime:OnnxRuntimeTarget"
_OPENVINO = "sartor.targets.openvino:OpenVinoTarget"

TARGETS: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "torch": (_TORCH, {}),
        "torch:compile": (_TORCH, {"mode": "compile"}),
        "torch:cuda": (_TORCH, {"device": "cuda"}),
        "torch:cuda-compile": (_TORCH, {"device": "cuda", "mode": "compile"}),
        "onnxruntime": (_ONNX_RUNTIME, {"precision": "float32"}),
        "onnxruntime:int8": (_ONNX_RUNTIME, {"precision": "int8"}),
        "onnxruntime:cuda": (_ONNX_RUNTIME, {"device": "cuda"}),
        "openvino": (_OPENVINO, {"precision": "float32"}),
        "openvino:int8": (_OPENVINO, {"precision": "int8"}),
        "ncnn": ("sartor.targets.ncnn:NcnnTarget", {}),
        "mnn": ("sartor.targets.mnn:MnnTarget", {}),
        "executorch": ("sartor.targets.executorch:ExecuTorchTarget", {}),
        "tensorrt": ("sartor.targets.tensorrt:TensorRtTarget", {}),
    }
)
"""The names a user writes, with the class that each stands for and what it is called with."""


def load_target(text: str, *, threads: int = 1) -> Target:
    """Return the target that `text` names, or an object of the user's own class in ``path.py:Class``.

    ``remote:COMMAND`` and ``remote:int8:COMMAND`` are machines on which the command starts an agent, see
    `sartor.targets.remote`; ``datasheet:TEXT`` is a device of which no more than a datasheet in a line is known, see
    `sartor.costs.Datasheet`. The user's class is called with `threads` as a keyword. Nothing is imported but the
    target asked for, and no machine is reached.

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
    if text.startswith("remote:"):
        from sartor.targets.remote import from_text

        return from_text(text, threads)
    if text.startswith(DATASHEET):
        # By name, as the others above: costs are no part of targets, and this one is only computed.
        made: Target = importlib.import_module("sartor.costs.datasheet_target").from_text(text.removeprefix(DATASHEET))
        return made
    if not is_own(text):
        others = "remote:COMMAND, datasheet:TEXT or path.py:Class"
        raise ValueError(f"no target is named {text!r}: use {', '.join(TARGETS)}, {others}")
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
