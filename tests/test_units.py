"""Quantities: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sartor import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_latency, "200us", 0.2),
        (units.parse_latency, "200 µs", 0.2),
        (units.parse_latency, "200μs", 0.2),
        (units.parse_latency, "1.5ms", 1.5),
        (units.parse_latency, " 0.2 ms ", 0.2),
        (units.parse_latency, "2s", 2000.0),
        (units.parse_latency, "700ns", 0.0007),
        (units.parse_latency, "+1e-1MS", 0.1),
        (units.parse_size, "2MB", 2_000_000),
        (units.parse_size, "500kB", 500_000),
        (units.parse_size, "1MiB", 1_048_576),
        (units.parse_size, "1.5 KiB", 1536),
        (units.parse_size, "12b", 12),
        (units.parse_count, "10M", 1e7),
        (units.parse_count, "1.5G", 1.5e9),
        (units.parse_count, "7B", 7e9),
        (units.parse_count, "300k", 3e5),
        (units.parse_count, "1e3", 1000.0),
        (units.parse_duration, "3min", 180.0),
        (units.parse_duration, "90s", 90.0),
        (units.parse_duration, "1h30min", 5400.0),
        (units.parse_duration, "1h 30m", 5400.0),
        (units.parse_duration, "+2 min 0.5 s", 120.5),
        (units.parse_duration, "1d", 86400.0),
        (units.parse_duration, "250ms", 0.25),
    ],
)
def test_reads_what_people_write(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


PARSERS = (units.parse_latency, units.parse_size, units.parse_count, units.parse_duration)
ALWAYS_WRONG = (
    "",
    " ",
    "fast",
    "-",
    "1,5ms",
    "0x1ms",
    "1 2ms",
    "5 parsecs",
    "ms",
    "infms",
    "nan ms",
    "1ms\n2",
)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", ALWAYS_WRONG)
def test_refuses_what_is_no_quantity(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(ValueError, match="for example") as error:
        parse(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (units.parse_latency, "-5ms", "is negative"),
        (units.parse_latency, "0ms", "is zero"),
        (units.parse_latency, "1e-400ms", "is zero"),
        (units.parse_latency, "1e400ms", "is not finite"),
        (units.parse_latency, "infms", "is not finite"),
        (units.parse_latency, "nan ms", "is not finite"),
        (units.parse_latency, "inf ms", "is not finite"),
        (units.parse_latency, "5", "has no unit"),
        (units.parse_latency, "5min", "unknown unit 'min'"),
        (units.parse_latency, "1e99999999999999999999ms", "out of range|not finite"),
        (units.parse_size, "2M", "unknown unit 'M'"),
        (units.parse_size, "0.2B", "less than one byte"),
        (units.parse_count, "0", "is zero"),
        (units.parse_count, "-1M", "is negative"),
        (units.parse_count, "3 kB", "unknown unit 'kB'"),
        (units.parse_duration, "0min", "is zero"),
        (units.parse_duration, "-3min", "is negative"),
        (units.parse_duration, "3", "not understood"),
        (units.parse_duration, "30min1h", "not understood"),
        (units.parse_duration, "1min2min", "not understood"),
    ],
)
def test_says_what_is_wrong(parse: Callable[[str], float], text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("format_", "value", "text"),
    [
        (units.format_latency, 0.2, "200 us"),
        (units.format_latency, 0.99996, "1 ms"),
        (units.format_latency, 1.5, "1.5 ms"),
        (units.format_latency, 2000.0, "2 s"),
        (units.format_latency, 123456.0, "123 s"),
        (units.format_latency, 0.0, "0 us"),
        (units.format_latency, 0.0000123, "0.0123 us"),
        (units.format_size, 812, "812 B"),
        (units.format_size, 315_400, "315 kB"),
        (units.format_size, 2_000_000, "2 MB"),
        (units.format_count, 233_626, "234k"),
        (units.format_count, 1e7, "10M"),
        (units.format_count, 7, "7"),
        (units.format_duration, 0.351, "0.35 s"),
        (units.format_duration, 0.0, "0 s"),
        (units.format_duration, 59.6, "1 min"),
        (units.format_duration, 200, "3 min 20 s"),
        (units.format_duration, 5400, "1 h 30 min"),
        (units.format_duration, 3599.7, "1 h"),
    ],
)
def test_writes_what_people_read(format_: Callable[[float], str], value: float, text: str) -> None:
    assert format_(value) == text


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "format_", [units.format_latency, units.format_size, units.format_count, units.format_duration]
)
def test_refuses_to_write_what_is_no_amount(format_: Callable[[float], str], value: float) -> None:
    with pytest.raises(ValueError, match="cannot format"):
        format_(value)


PAIRS = [
    (units.parse_latency, units.format_latency, 1e-6, 1e7, False),
    (units.parse_size, units.format_size, 1.0, 1e13, True),
    (units.parse_count, units.format_count, 1e-3, 1e16, False),
]


@pytest.mark.parametrize(("parse", "format_", "low", "high", "whole"), PAIRS)
@given(share=st.floats(0, 1), digits=st.integers(1, 9))
def test_reading_undoes_writing(
    parse: Callable[[str], float],
    format_: Callable[..., str],
    low: float,
    high: float,
    whole: bool,
    share: float,
    digits: int,
) -> None:
    value = low * (high / low) ** share
    text = format_(value, digits)
    assert abs(parse(text) - value) <= 0.5 * 10.0 ** (1 - digits) * value * (1 + 1e-9) + 0.5 * whole
    if not whole:
        assert format_(parse(text), digits) == text


@given(st.floats(1e-3, 1e7))
def test_reading_undoes_writing_of_durations(seconds: float) -> None:
    text = units.format_duration(seconds)
    read = units.parse_duration(text)
    tolerance = 0.05 * seconds if seconds < 10 else 0.5 if seconds < 3600 else 30
    assert abs(read - seconds) <= tolerance + 1e-9
    assert units.format_duration(read) == text


@given(st.text(max_size=12))
def test_any_text_gives_a_positive_number_or_one_line(text: str) -> None:
    for parse in PARSERS:
        try:
            value = parse(text)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert 0 < value < math.inf
