# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the process in which an agent runs models. Its arguments say where it fails, as "probe 1 crash"."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def say(message: object) -> None:
    data = json.dumps(message).encode()
    sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
    sys.stdout.buffer.flush()


def main() -> None:
    say({"fingerprint": {}})
    while len(head := sys.stdin.buffer.read(4)) == 4:
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(head, "big")))
        place = f" {Path(request['path']).stem}" if "path" in request else ""
        actions = [text.rpartition(" ")[2] for text in sys.argv[1:] if text.startswith(f"{request['do']}{place} ")]
        match actions:
            case ["crash"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["error"]:
                say({"error": "no"})
            case ["garbage"]:
                say([])
            case _:
                say({"memory_mb": None, "call_s": 9 if actions else 0.001, "doubts": [], "notes": []})


if __name__ == "__main__":
    main()
