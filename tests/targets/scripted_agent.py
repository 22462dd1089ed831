# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an agent, run as a program: honest, but for what the JSON in its first argument says.

The keys are requests; the values what to do instead of answering: an object to answer with, or an action. With
"first", a path, all this holds only until that file exists, which the program then makes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

GREETING = b"\n<sartor agent 1>\n"
MACHINE = {
    "processor": "Abacus", "cores": "1", "system": "none", "runtime": "beads", "version": "1", "threads": "1",
}  # fmt: skip
RESULT = {
    "seconds": [[0.001, 0.002]] * 6, "calibration": [[0.001] * 6], "cold": 0.1, "repeats": 1, "settled": True,
    "memory_mb": 1.5, "energy": None,
}  # fmt: skip


def say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def framed(message: object) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def act(action: str) -> None:
    match action:
        case "die":
            sys.stderr.write("out of beads\n")
            sys.exit(3)
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            signal.pause()
        case "garbage":
            say(b"Warning: this is not JSON at all")
        case "no json":
            say((9).to_bytes(4, "big") + b"{'a': 1.}")
        case "list":
            say(framed([1]))
        case "nan":
            say((10).to_bytes(4, "big") + b'{"a": NaN}')
        case "half":
            say((100).to_bytes(4, "big") + b"{")
            sys.exit(0)
        case "beats":
            while True:
                say(framed({"working": True}) * 1000)
        case "slow beats":
            while True:
                time.sleep(0.02)
                say(framed({"working": True}))
        case "flood":
            while True:
                say(b"\xff" * 2**16)


def main() -> None:
    script = json.loads(sys.argv[1])
    once = script.pop("first", None)
    if once is not None and Path(once).exists():
        script = {}
    elif once is not None:
        Path(once).touch()
    say(script.pop("noise", "").encode())
    if "greeting" in script:
        act(script["greeting"])
    say(GREETING)
    count, left = 0, 0
    while len(head := sys.stdin.buffer.read(4)) == 4:
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(head, "big")))
        do = request["do"]
        instead = script.get(do)
        if isinstance(instead, str):
            act(instead)
            continue
        if do == "model":
            count, left = count + 1, request["bytes"]
        if do == "data":
            left -= len(request["data"]) * 3 // 4 - request["data"].count("=")
        honest: dict[str, dict[str, object]] = {
            "describe": {"fingerprint": MACHINE}, "model": {"index": count}, "data": {"left": left},
            "measure": {"reasons": [""] * count, "doubts": [], "notes": []}, "result": RESULT,
        }  # fmt: skip
        say(framed({**honest[do], **(instead or {})}))


if __name__ == "__main__":
    main()
