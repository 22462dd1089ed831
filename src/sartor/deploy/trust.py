# SPDX-License-Identifier: Apache-2.0
"""Whether a `.pt2` file can be loaded without running code of whoever wrote it.

`torch.export.load` unpickles what the file says was pickled, evaluates its symbolic expressions, and loads compiled
libraries. A file that `export_pt2` wrote needs none of this: its weights are raw bytes and its expressions are sizes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["reason_for_distrust"]

_CODE = re.compile(r"data/(weights|constants)/.*\.pt|data/aotinductor/.*|.*custom_obj_.*|.*\.(so|cpp|cubin|pkl)")
_SIZE = re.compile(
    r"(Symbol\('\w+'(, \w+=(True|False))*\)|Integer\(-?\d+\)"
    r"|(Add|Mul|Pow|Mod|FloorDiv|CeilDiv|Max|Min)(?=\()|[\d\s(),*+/-])*"
)


def reason_for_distrust(path: Path) -> str:
    """Return what in the file would run code when it is loaded; "" if nothing would."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.partition("/")[2]
            if _CODE.fullmatch(name):
                return f"it holds {name}"
            if name.startswith("data/sample_inputs/") and not _is_plain(archive.read(member)):
                return f"{name} holds more than tensors"
            if name.endswith(".json"):
                for key, value in _entries(json.loads(archive.read(member))):
                    if key == "use_pickle" and value:
                        return f"{name} says that weights are pickled"
                    if key == "guards_code" and value:
                        return f"{name} holds code"
                    if key == "expr_str" and not _SIZE.fullmatch(str(value)):
                        return f"{name} holds the expression {str(value)[:60]!r}"
    return ""


def _is_plain(pickled: bytes) -> bool:
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception:
        return False
    return True


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Give all keys with their values, however deep."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from node.items()
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
