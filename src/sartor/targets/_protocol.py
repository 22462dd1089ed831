# SPDX-License-Identifier: Apache-2.0
"""What travels between a target and the agent on its device: JSON objects, each with its length in front.

A frame is four bytes, the length of the rest with its most significant byte first, then one JSON object in
UTF-8. Neither side trusts the other: lengths have a limit, and every field is read by one of the functions
below, which check its type and range. Nothing received is ever more than numbers and text.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

__all__ = [
    "CHUNK", "FRAME", "GREETING", "Message", "ProtocolError", "clean", "frame", "ids_below", "number", "parse",
    "private_stdout", "read", "rows", "shape", "text", "texts", "whole",
]  # fmt: skip

FRAME = 2**20
"""The most bytes of a frame, its length not counted."""

CHUNK = 2**19
"""The most bytes of a model in one frame: in base 64 they still fit."""

GREETING = b"\n<sartor agent 1>\n"
"""What an agent sends first. Whatever a shell on the way says before is skipped, and a version is agreed on."""

_TEXT = 1000  # characters of a text that are kept
_RANK = 8

Message = dict[str, Any]


class ProtocolError(ValueError):
    """Something was received that the protocol does not allow; the message says what."""


def frame(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of `message`; ProtocolError for more than `FRAME`, ValueError for NaN or infinity."""
    data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(data) > FRAME:
        raise ProtocolError(f"a frame of {len(data)} bytes is too long: {FRAME} are allowed")
    return len(data).to_bytes(4, "big") + data


def read(stream: BinaryIO) -> Message:
    """Read one frame; EOFError where the stream ends, ProtocolError for anything but a JSON object."""
    head = _exactly(stream, 4)
    length = int.from_bytes(head, "big")
    if length > FRAME and head.isascii() and head.decode().isprintable():
        raise ProtocolError(f"it sends text between the frames: {head.decode()!r}...")
    if length > FRAME:
        raise ProtocolError(f"it sends too much: a frame of {length} bytes, where {FRAME} are allowed")
    return parse(_exactly(stream, length))


def parse(data: bytes) -> Message:
    """Return the JSON object that `data` spells."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"it sends no JSON: {clean(str(error))[:100]}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"it sends a JSON {type(value).__name__} instead of an object")
    return value


def number(message: Message, name: str, least: float, most: float) -> float:
    """Return a finite number between `least` and `most`."""
    return _number(message.get(name), name, least, most)


def whole(message: Message, name: str, least: int, most: int) -> int:
    """Return a whole number between `least` and `most`."""
    return _whole(message.get(name), name, least, most)


def ids_below(message: Message) -> int:
    """Return what the token ids of a model's input are below; 0 of floats, of which older clients say nothing."""
    return whole(message, "ids_below", 0, 2**31) if "ids_below" in message else 0


def text(message: Message, name: str) -> str:
    """Return a text, cleaned."""
    return _text(message.get(name), name)


def texts(message: Message, name: str, most: int) -> tuple[str, ...]:
    """Return a list of at most `most` texts, cleaned."""
    return tuple(_text(item, name) for item in _list(message.get(name), name, 0, most))


def shape(message: Message, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    return tuple(_whole(item, name, 1, 2**31) for item in _list(message.get(name), name, 0, _RANK))


def rows(message: Message, name: str, *, most_rows: int, most_columns: int) -> list[list[float]]:
    """Return a table of positive numbers below a million, with at least one row and column."""
    found = [
        [_number(item, name, 0.0, 1e6) for item in _list(row, name, 1, most_columns)]
        for row in _list(message.get(name), name, 1, most_rows)
    ]
    if len({len(row) for row in found}) != 1:
        raise ProtocolError(f"its {name!r} is no table: the rows differ in length")
    if min(min(row) for row in found) <= 0:
        raise ProtocolError(f"its {name!r} holds a time that is not positive")
    return found


def clean(said: str) -> str:
    """Return one line that can be shown: what steers a terminal is blanked, and too much is cut off."""
    shown = "".join(c if c.isprintable() else " " for c in said[: 4 * _TEXT])
    return " ".join(shown.split())[:_TEXT]


def private_stdout() -> BinaryIO:
    """Return what was standard output, which from now on goes to standard error.

    A runtime that prints would otherwise write into the frames.
    """
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _no_constant(name: str) -> Any:
    raise ProtocolError(f"{name} is no JSON")


def _number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"its {name!r} is no number")
    if not (math.isfinite(value) and least <= value <= most):
        raise ProtocolError(f"its {name!r} is {value!r:.40}, and not between {least:g} and {most:g}")
    return float(value)


def _whole(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProtocolError(f"its {name!r} is no whole number")
    if not least <= value <= most:
        raise ProtocolError(f"its {name!r} is {value!r:.40}, and not between {least} and {most}")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"its {name!r} is no text")
    return clean(value)


def _list(value: object, name: str, least: int, most: int) -> Sequence[object]:
    if not isinstance(value, list):
        raise ProtocolError(f"its {name!r} is no list")
    if not least <= len(value) <= most:
        raise ProtocolError(f"its {name!r} has {len(value)} entries, and not {least} to {most}")
    return value
