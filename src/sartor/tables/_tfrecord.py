# SPDX-License-Identifier: Apache-2.0
"""The original file of NAS-Bench-101, read without TensorFlow: records, JSON, and a small protocol buffer.

A record is its length (8 bytes), a check sum of that, the content, a check sum of the content. The content is
the JSON of [hash of the module, epochs, adjacency matrix, operations, metrics]; the metrics are a
`ModelMetrics` message in base64: field 1, an evaluation at the start, half-way and the end of training
(1 epoch, 2 seconds, 3 train, 4 validation, 5 test accuracy, doubles); field 2, parameters; field 3, seconds.

Columns are means over the repeats, accuracies as fractions: `valid`, `test`, `cost_s` (seconds of training)
for the longest training, `valid4`, `test4`, `cost4_s` for one of 4 epochs, and so on; `params_m`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sartor.architecture import Architecture
from sartor.spaces import nasbench101_cell
from sartor.tables._converted import Converted, mean, stacked
from sartor.tables._restricted_pickle import Refused

__all__ = ["masked_crc", "read", "records"]

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_LONGEST = 1 << 20


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _table()


def masked_crc(content: bytes) -> int:
    """Return TensorFlow's masked CRC-32C."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file; Refused where it is cut off or damaged."""
    with path.open("rb") as file:
        count = 0
        while head := file.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc(head[:8]) or length > _LONGEST:
                raise Refused(f"record {count} does not begin as a TFRecord: the file is damaged, copy it anew")
            content, tail = file.read(length), file.read(4)
            if len(content) < length or len(tail) < 4:
                raise Refused(f"it ends within record {count}: copy it anew")
            if struct.unpack("<I", tail)[0] != masked_crc(content):
                raise Refused(f"record {count} has another check sum: the file is damaged, copy it anew")
            yield content
            count += 1


def read(path: Path) -> Converted:
    """Return the table in a `.tfrecord` file; Refused where it is laid out otherwise."""
    cells: dict[str, Architecture] = {}
    found: dict[str, dict[int, list[tuple[float, ...]]]] = {}
    millions: dict[str, float] = {}
    for count, record in enumerate(records(path)):
        try:
            key, epochs, matrix, operations, metrics = json.loads(record)
            if key not in cells:
                cells[key] = _cell(matrix, operations.split(","))
            measured, parameters = _metrics(base64.b64decode(metrics, validate=True))
        except (ValueError, TypeError, AttributeError, IndexError, struct.error, binascii.Error) as error:
            raise Refused(f"record {count} cannot be understood: {' '.join(str(error).split())[:120]}") from None
        found.setdefault(key, {}).setdefault(int(epochs), []).append(measured)
        millions[key] = parameters / 1e6
    if not cells:
        raise Refused("it holds no record")
    longest = max(epochs for by_epochs in found.values() for epochs in by_epochs)
    rows = [{**_row(found[key], longest), "params_m": millions[key]} for key in cells]
    space = nasbench101_cell.space()
    return Converted("nasbench101", space, list(cells.values()), stacked(rows), rule="nasbench101")


def _row(by_epochs: dict[int, list[tuple[float, ...]]], longest: int) -> dict[str, float]:
    row: dict[str, float] = {}
    for epochs, repeats in by_epochs.items():
        suffix = "" if epochs == longest else str(epochs)
        seconds, _, valid, test = zip(*repeats, strict=True)
        row |= {f"valid{suffix}": mean(valid), f"test{suffix}": mean(test), f"cost{suffix}_s": mean(seconds)}
    return row


def _cell(matrix: str, operations: list[str]) -> Architecture:
    side = math.isqrt(len(matrix))
    if side * side != len(matrix) or set(matrix) - set("01"):
        raise ValueError(f"the adjacency matrix {matrix[:60]!r} is no square of zeros and ones")
    rows = [[int(digit) for digit in matrix[i * side : (i + 1) * side]] for i in range(side)]
    return nasbench101_cell.from_matrix(rows, operations)


def _metrics(message: bytes) -> tuple[tuple[float, ...], int]:
    """Return (seconds, train, validation, test accuracy) at the end of training, and the parameters."""
    evaluations, parameters = [], 0
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            evaluations.append({number: one for number, one in _fields(value) if isinstance(one, float)})
        elif field == 2 and isinstance(value, int):
            parameters = value
    if len(evaluations) < 3:
        raise ValueError(f"it has {len(evaluations)} evaluations: three are expected, the last at the end of training")
    return tuple(evaluations[2].get(number, math.nan) for number in (2, 3, 4, 5)), parameters


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protocol buffer: an int, a float from 8 bytes, or bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        length = 8 if kind == 1 else 4 if kind == 5 else 0
        if kind == 2:
            length, place = _varint(message, place)
        content = message[place : place + length]
        if kind not in (1, 2, 5) or len(content) < length:
            raise ValueError("its metrics are cut off, or no protocol buffer")
        place += length
        yield tag >> 3, struct.unpack("<d", content)[0] if kind == 1 else content


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("its metrics hold a number of more than 64 bits")
