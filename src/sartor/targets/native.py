# SPDX-License-Identifier: Apache-2.0
"""What native libraries print: they know the reason of a failure and tell it to the terminal, not to the caller."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Said", "listening"]


@dataclass
class Said:
    """What was printed, once the block has ended."""

    text: str = ""

    def first(self, otherwise: str) -> str:
        """Return the first line that says something, or `otherwise`."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next((line for line in lines if line), otherwise)


@contextmanager
def listening() -> Iterator[Said]:
    """Catch what the block prints to file descriptors 1 and 2, in any language.

    It is for all threads of the process, so the block should be short.
    """
    said = Said()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield said
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            said.text = file.read().decode(errors="replace")
