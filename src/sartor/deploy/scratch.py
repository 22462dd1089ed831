# SPDX-License-Identifier: Apache-2.0
"""Hidden folders for files that are not finished, which outlive a kill by one attempt at most."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["scratch_beside", "scratch_path"]


def scratch_path(path: Path) -> Path:
    """Return the scratch folder of `path`, which follows from its name."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `path`, whose parent is made if need be; it is gone afterwards.

    What a kill left is cleared when the same work is done again; two processes must not work on one path at once.
    """
    folder = scratch_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
