# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sartor.atomic import write_bytes, write_json


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_it_writes_and_leaves_no_other_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "köln", "values": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "köln", "values": [1, 2.5, None]}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match=r"cannot write .*a\.bin \(0\.2 MB\): No space left on device") as caught:
        write_bytes(path, b"x" * 200_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.json.tmp").write_bytes(b"half")
    write_json(tmp_path / "a.json", 1)
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("write", [lambda p: write_json(p, float("nan")), lambda p: write_json(p, {1j: 1})])
def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises((ValueError, TypeError)):
        write(tmp_path / "a.json")
    assert not os.listdir(tmp_path)
