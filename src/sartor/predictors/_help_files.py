# SPDX-License-Identifier: Apache-2.0
"""What HELP has learnt, as one safetensors file: tensors, and the space and sizes as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sartor.atomic import write_bytes

_FORMAT = 1


def write(path: Path, told: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write tensors and what is told about them; the same input gives the same bytes."""
    from safetensors.torch import save

    text = json.dumps({"format": _FORMAT, **told}, sort_keys=True)
    write_bytes(path, save({name: one.contiguous() for name, one in state.items()}, metadata={"help": text}))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote; ValueError for any other file, FileNotFoundError for none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["help"])
            state = {name: file.get_tensor(name) for name in file.keys()}
        if told["format"] != _FORMAT:
            raise ValueError(f"its format is {told['format']!r}, where {_FORMAT} is known")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold what HELP.save writes: {error}") from None
    return told, state
