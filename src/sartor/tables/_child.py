# SPDX-License-Identifier: Apache-2.0
"""The process in which `sartor.tables.original` reads files that it does not trust.

It is started isolated (`python -I`) with an empty environment, gives up what it does not need before it opens
the file, and writes one `.npz`, or one line that says why not. It can be killed at any instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from sartor.tables import _nats, _others, _tfrecord, files
from sartor.tables._converted import Converted
from sartor.tables._restricted_pickle import Refused

__all__ = ["READERS", "main"]

READERS = {
    "nasbench101": _tfrecord.read,
    "nasbench201": _nats.read,
    "nats_bench": _nats.read,
    "nasbench301": _others.read_nasbench301,
    "hw_nas_bench": _others.read_hardware,
    "transnas_micro": _others.read_transnas_micro,
    "transnas_macro": _others.read_transnas_macro,
}
# What no reader does: whatever a file made this process try, it ends here.
_NEVER = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn"),
    *("os.spawn", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink"),
)


def main(arguments: list[str]) -> int:
    """Convert `[kind, path, out, seconds, megabytes]`; return 0, or 1 after a line to the standard error."""
    kind, path, out, seconds, megabytes = arguments
    _limit(int(seconds), int(megabytes))
    sys.addaudithook(_refuse)
    try:
        found = READERS[kind](Path(path))
        Path(out).write_bytes(_packed(found))
    except MemoryError:
        return _told("it needs more memory than the converter may use: raise memory_limit_mb")
    except (Refused, ValueError, OSError) as error:
        return _told(" ".join(str(error).split()))
    except Exception as error:  # a reader met what its checks did not foresee
        return _told(f"it is not laid out as the published file is ({type(error).__name__}: {error})")
    return 0


def _packed(found: Converted) -> bytes:
    return files.packed(files.arrays(found.name, found.space, found.archs, found.columns, found.rule))


def _told(line: str) -> int:
    sys.stderr.write(json.dumps({"refused": line[:400]}) + "\n")
    return 1


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_NEVER):
        os._exit(3)


def _limit(seconds: int, megabytes: int) -> None:
    """Limit processor time, memory, files and processes, where the system can (Windows cannot)."""
    try:
        import resource
    except ImportError:
        return
    size = megabytes * 1_000_000
    limits = {"CPU": seconds, "AS": size, "FSIZE": size, "CORE": 0, "NOFILE": 64}
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        lowest = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (lowest, lowest))
