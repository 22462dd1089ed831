# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sartor.protocols import Artefact, Measurement
from sartor.targets.fingerprint import differences, of_artefact, require_comparable

FINGERPRINTS = st.dictionaries(st.text(max_size=8), st.text(min_size=1, max_size=8), max_size=5)
ONE = Measurement(
    1, 1, 1, 1, 1, 1, 10, 1, 1, 1, 0, False, (), 0.1, None, fingerprint={"threads": "1", "shape": "1x8x8"}
)


def test_batch_and_shape_are_those_of_the_artefact() -> None:
    target = {"runtime": "r"}
    found = of_artefact(target, Artefact(Path("m"), (4, 3, 32, 24), ()))
    assert found == {"runtime": "r", "batch": "4", "shape": "3x32x24"}
    assert target == {"runtime": "r"}


@settings(max_examples=50)
@given(FINGERPRINTS, FINGERPRINTS)
def test_there_are_no_differences_exactly_between_equals(a: dict[str, str], b: dict[str, str]) -> None:
    found = differences(a, b)
    assert bool(found) == (a != b)
    assert {name: values[::-1] for name, values in found.items()} == differences(b, a)


def test_equal_fingerprints_are_comparable() -> None:
    require_comparable([])
    require_comparable([ONE, replace(ONE, latency_ms=2)])


@pytest.mark.parametrize("name", ["threads", "shape", "driver"])
def test_unlike_fingerprints_are_not(name: str) -> None:
    other = replace(ONE, fingerprint={**ONE.fingerprint, name: "2"})
    with pytest.raises(ValueError, match=f"measurements 0 and 2 cannot be compared: {name} is .* and '2'"):
        require_comparable([ONE, ONE, other])
    require_comparable([ONE, other], apart_from=[name])


def test_a_measurement_without_a_fingerprint_is_comparable_with_nothing() -> None:
    with pytest.raises(ValueError, match="measurement 1 has no fingerprint"):
        require_comparable([ONE, replace(ONE, fingerprint={})])


def test_the_fingerprint_survives_json_and_older_files_are_read() -> None:
    values = json.loads(json.dumps(ONE.to_dict()))
    assert Measurement.from_dict(values) == ONE
    assert hash(ONE) == hash(replace(ONE, fingerprint={}))
    del values["fingerprint"]
    assert Measurement.from_dict(values).fingerprint == {}
