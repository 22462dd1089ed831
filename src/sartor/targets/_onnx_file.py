# SPDX-License-Identifier: Apache-2.0
"""Whether an ONNX file from elsewhere may be given to a runtime: it must hold all that it computes with.

A tensor of an ONNX file may name another file that holds its values, and runtimes open whatever is named. The
check reads the structure of the file alone, with neither onnx nor protobuf, which a small device may lack; all
else that can be wrong with a model is for the runtime to say, in a process of its own.

The numbers below are the field numbers of onnx.proto3 (ONNX 1.18), by message.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["reason_against"]

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
_EXTERNAL = (13, 14)  # of a tensor: external_data, data_location
_OPERATOR = 4  # of a node: op_type
_FORBIDDEN = b"EPContext"  # an operator that stands for a compiled model in another file
_MOST_FIELDS = 2_000_000

_Bytes = bytes | mmap.mmap


def reason_against(path: Path) -> str:
    """Return why the file at `path` is not to be run; "" if nothing speaks against it."""
    if not path.stat().st_size:
        return "the file is empty"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _reason(data)
        except ValueError as error:
            return f"not an ONNX file ({error})"


def _reason(data: _Bytes) -> str:
    graphs, fields = 0, 0
    todo = [("model", 0, len(data))]
    while todo:
        kind, start, end = todo.pop()
        for number, wire, low, high in _fields(data, start, end):
            fields += 1
            if fields > _MOST_FIELDS:
                return f"it has more than {_MOST_FIELDS} parts"
            if kind == "tensor" and number in _EXTERNAL and (number, wire, data[low:high]) != (14, 0, b"\0"):
                return "its weights are in another file: save them inside the model"
            if kind == "node" and number == _OPERATOR and data[low:high] == _FORBIDDEN:
                return "it refers to a compiled model in another file"
            graphs += (kind, number, wire) == ("model", 7, 2)
            if wire == 2 and number in _INSIDE.get(kind, ()):
                todo.append((_INSIDE[kind][number], low, high))
    return "" if graphs else "not an ONNX file (it has no graph)"


def _fields(data: _Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Give number, wire type, and first and last position of the value of each field of a message."""
    place = start
    while place < end:
        tag, place = _varint(data, place, end)
        if tag >= 1 << 32:  # readers disagree on what is beyond: some drop the upper bits
            raise ValueError(f"a tag before byte {place} is too large")
        number, wire, low = tag >> 3, tag & 7, place
        if wire == 0:
            _, place = _varint(data, place, end)
        elif wire == 2:
            length, low = _varint(data, place, end)
            place = low + length
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
        else:
            raise ValueError(f"its byte {place} opens no field")
        if place > end or not number:
            raise ValueError(f"a field ends behind byte {end}" if number else "a field has no number")
        yield number, wire, low, place


def _varint(data: _Bytes, place: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            raise ValueError(f"it breaks off at byte {place}")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"a number at byte {place} is too long")
