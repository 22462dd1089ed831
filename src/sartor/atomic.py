# SPDX-License-Identifier: Apache-2.0
"""Files that are wholly there or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["write_bytes", "write_json"]


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one move: a reader, or a kill at any instant, sees the old file or the new one.

    The temporary file lies beside `path` under a fixed name, so that what a kill leaves is overwritten next
    time; two processes must not write one path at once.

    Raises:
        OSError: with the path and the size; a full disk, for one. The file that was there is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name on empty data
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # gives the space back; the first error is the one to tell
            temporary.unlink(missing_ok=True)
        size = f"{len(data) / 1e6:.1f} MB" if len(data) >= 1e5 else f"{len(data)} bytes"
        reason = f"cannot write {path} ({size}): {error.strerror}; nothing that was there has changed"
        raise OSError(error.errno, reason) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, in one move as `write_bytes`.

    Raises:
        ValueError: a number that is not finite, which other JSON readers reject.
        TypeError: a value that JSON has no form for.
        OSError: as `write_bytes`.
    """
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
