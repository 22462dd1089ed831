# SPDX-License-Identifier: Apache-2.0
"""The value: immutable, ordered, hashable, and JSON there and back."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor.architecture import Architecture

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
options = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
architectures = st.dictionaries(st.text(), options, max_size=6).map(Architecture)


@given(architectures)
def test_json_there_and_back(arch: Architecture) -> None:
    back = Architecture.from_json(arch.to_json())
    assert back == arch and hash(back) == hash(arch) and back.id == arch.id
    assert back.to_json() == arch.to_json()


@given(architectures, architectures)
def test_equal_exactly_if_the_json_is_equal(a: Architecture, b: Architecture) -> None:
    assert (a == b) == (a.to_json() == b.to_json())


@given(architectures)
def test_pickle_and_copy(arch: Architecture) -> None:
    assert pickle.loads(pickle.dumps(arch)) == copy.deepcopy(arch) == arch


def test_types_are_told_apart() -> None:
    several = [Architecture({"a": value}) for value in (1, True, 1.0, "1", (1,), (True,), ((1,),))]
    assert len(set(several)) == len(several) == len({arch.id for arch in several})
    assert Architecture({"a": 0.0}) == Architecture({"a": -0.0})
    assert Architecture({"a": -0.0}).to_json() == '{"a": 0.0}'


def test_mapping_ordered_by_name() -> None:
    arch = Architecture({"b": 2, "a": 1})
    assert list(arch) == ["a", "b"] and dict(arch) == {"a": 1, "b": 2} and len(arch) == 2
    assert arch["a"] == 1 and "c" not in arch and "a" in arch
    assert arch != {"a": 1, "b": 2}
    assert eval(repr(arch)) == arch


def test_id_is_golden() -> None:
    arch = Architecture({"stem.out_channels": 16, "mix": "conv3", "exits": (1, 2), "se": True, "rate": 0.5, "x": None})
    assert arch.to_json() == (
        '{"exits": [1, 2], "mix": "conv3", "rate": 0.5, "se": true, "stem.out_channels": 16, "x": null}'
    )
    assert arch.id == "f9850bfaa6dd"


def test_the_source_can_change_without_harm() -> None:
    source = {"a": [1, 2]}
    arch = Architecture(source)  # type: ignore[arg-type]
    source["a"].append(3)
    assert arch["a"] == (1, 2)
    with pytest.raises(TypeError):
        arch["a"] = 1  # type: ignore[index]


def test_replace() -> None:
    arch = Architecture({"a": 1, "b.c": 2})
    assert arch.replace({"b.c": 3}, a=0) == Architecture({"a": 0, "b.c": 3})
    assert arch == Architecture({"a": 1, "b.c": 2})
    with pytest.raises(ValueError, match=r"no choice is named 'c': the names are a, b\.c"):
        arch.replace(c=1)


@pytest.mark.parametrize("option", [float("nan"), float("inf"), np.int64(1), np.float64(1), {"a": 1}, b"x", {1}])
def test_what_json_cannot_carry_is_refused(option: object) -> None:
    with pytest.raises(ValueError, match="cannot be an option"):
        Architecture({"a": option})  # type: ignore[dict-item]


def test_names_are_strings() -> None:
    with pytest.raises(ValueError, match="the name 1 of a choice is no string"):
        Architecture({1: 2})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "null", '"a"', '{"a": NaN}', '{"a": 1e999}', '{"a": {"b": 1}}', '{"a": 1, "a": 2}',
     '{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "{1: 2}", "{'a': 1}"],
)  # fmt: skip
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Architecture.from_json(text)


@given(st.text())
def test_any_text_is_an_architecture_or_a_value_error(text: str) -> None:
    try:
        arch = Architecture.from_json(text)
    except ValueError:
        return
    assert isinstance(json.loads(text), dict) and len(arch) == len(json.loads(text))


def test_not_even_text() -> None:
    with pytest.raises(ValueError):
        Architecture.from_json(None)  # type: ignore[arg-type]
