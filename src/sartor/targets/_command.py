# SPDX-License-Identifier: Apache-2.0
"""How a remote target is written: ``remote:COMMAND``, or ``remote:int8:COMMAND``."""

from __future__ import annotations

import shlex
from typing import Literal

__all__ = ["INT8", "PREFIX", "command_of"]

PREFIX = "remote:"
INT8 = "int8:"


def command_of(text: str) -> tuple[Literal["float32", "int8"], list[str]]:
    """Return precision and command of a text such as ``remote:int8:ssh board python -m sartor.targets.agent``.

    Raises:
        ValueError: it names no command, or one with quotes that are not closed.
    """
    rest = text.removeprefix(PREFIX)
    precision: Literal["float32", "int8"] = "int8" if rest.startswith(INT8) else "float32"
    try:
        command = shlex.split(rest.removeprefix(INT8))
    except ValueError as error:
        raise ValueError(f"{text!r} is no command: {error}") from None
    if not command:
        raise ValueError(f"{text!r} names no command: write remote:ssh DEVICE python -m sartor.targets.agent")
    return precision, command
