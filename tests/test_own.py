# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from sartor.own import is_own, load_own


def test_a_class_is_loaded_with_its_neighbours_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 3\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom beside_it import VALUE\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    value: int = VALUE\n"
    )
    path = list(sys.path)
    kind = load_own(f"{file}:Mine", "space")
    assert kind().value == 3
    assert pickle.loads(pickle.dumps(kind())) == kind()
    assert load_own(f"{file}:Mine", "space") is kind
    assert sys.path == path
    file.write_text("class Mine:\n    value = 4\n")
    assert load_own(f"{file}:Mine", "space").value == 4  # type: ignore[attr-defined]


def test_what_looks_like_the_users_own() -> None:
    assert is_own("a/b.py:C")
    assert is_own("b.py")
    assert not is_own("onnxruntime:int8")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("class A: pass\nclass B: pass\n", "C", "C is not defined in .*; its classes: A, B"),
        ("import math\nx = 3\n", "x", "x is not a class in .*; its classes: none"),
        ("x = 1\nx.y\n", "A", r"mine\.py, line 2 raises AttributeError: 'int' object has no attribute 'y'"),
        ("x = (\n", "A", r"mine\.py, line 1 raises SyntaxError"),
        ("import sartor_nothing\n", "A", r"mine\.py, line 1 raises ModuleNotFoundError: No module"),
        ("raise SystemExit\n", "A", "line 1 raises SystemExit"),
        ("class A: pass\n", "A B", "is not of the form path.py:Class"),
        ("class A: pass\n", "", "is not of the form path.py:Class"),
    ],
)
def test_each_mistake_gets_one_line(tmp_path: Path, content: str, name: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(content)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=said) as caught:
        load_own(f"{tmp_path}/mine.py:{name}", "strategy")
    assert str(caught.value).startswith("strategy '")
    assert "\n" not in str(caught.value)
    if "raises" in said:
        assert not [name for name in set(sys.modules) - before if name.startswith("sartor_own")]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none\.py"):
        load_own(f"{tmp_path}/none.py:A", "space")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match="there is no file"):
        load_own(f"{tmp_path}/folder.py:A", "space")
