"""Quantities as people write them: `200us`, `2MB`, `10M`, `1h30min`, and back.

Every `parse_*` function takes a text and returns a positive, finite number, or raises a ValueError of one
line that states the value, what was expected and an example. Every `format_*` function takes a finite number
that is not negative. Spelling ignores case; sizes are always of bytes, never of bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

# Scales are decimal, so that 200us is the float 0.2 and not its neighbour.
_LATENCY = {"ns": "0.000001", "us": "0.001", "µs": "0.001", "μs": "0.001", "ms": "1", "s": "1000"}
_SIZE = {
    "b": "1",
    "kb": "1000",
    "mb": "1000000",
    "gb": "1000000000",
    "kib": str(1 << 10),
    "mib": str(1 << 20),
    "gib": str(1 << 30),
}
_ENERGY = {"uj": "0.001", "µj": "0.001", "μj": "0.001", "mj": "1", "j": "1000"}
_COUNT = {"": "1", "k": "1000", "m": "1000000", "g": "1000000000", "b": "1000000000", "t": "1000000000000"}
_DURATION = {
    "d": "86400",
    "h": "3600",
    "min": "60",
    "m": "60",
    "s": "1",
    "sec": "1",
    "ms": "0.001",
}

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:inf|infinity|nan)"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([a-zµμ]*)\s*", re.IGNORECASE)
_PART = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)


def parse_latency(text: str) -> float:
    """Return a latency such as "200us", "1.5ms", "0.2 ms" or "2s" in milliseconds."""
    return _quantity(text, "latency", _LATENCY, "ns, us, ms or s", "0.2ms")


def parse_energy(text: str) -> float:
    """Return an energy such as "500uJ", "1.5mJ" or "2J" in millijoules."""
    return _quantity(text, "energy", _ENERGY, "uJ, mJ or J", "5mJ")


def parse_size(text: str) -> int:
    """Return a size such as "500kB", "2MB" (decimal) or "1MiB" (binary) in bytes, a whole number."""
    size = round(_quantity(text, "size", _SIZE, "B, kB, MB, GB, KiB, MiB or GiB", "2MB"))
    if size < 1:
        raise ValueError(f"size {text!r} is less than one byte; expected at least 1B, for example 2MB")
    return size


def parse_count(text: str) -> float:
    """Return a count such as "10M", "1.5G", "300k" or "5000"; the units are k, M, G (or B) and T."""
    return _quantity(text, "count", _COUNT, "none, k, M, G or T", "10M")


def parse_duration(text: str) -> float:
    """Return a duration such as "90s", "3min" or "1h30min" in seconds; a leading "+" is allowed."""
    expected = "expected numbers with units of d, h, min or s, greatest first, for example 3min or 1h30min"
    shown = f"duration {text!r}"
    body = text.strip().lower().removeprefix("+")
    if body.startswith("-"):
        raise ValueError(f"{shown} is negative; {expected}")
    scales: list[Decimal] = []
    total, position = Decimal(0), 0
    while match := _PART.match(body, position):
        scale = Decimal(_DURATION.get(match[2], "0"))
        if not scale or (scales and scale >= scales[-1]):
            break
        scales.append(scale)
        total += Decimal(match[1]) * scale
        position = match.end()
    if not scales or position != len(body):
        raise ValueError(f"{shown} is not understood; {expected}")
    return _positive(total, shown, expected)


def format_latency(milliseconds: float, digits: int = 3) -> str:
    """Return milliseconds as "200 us", "1.5 ms" or "2 s", to `digits` significant digits."""
    return _format(milliseconds, (("us", "0.001"), ("ms", "1"), ("s", "1000")), digits)


def format_energy(millijoules: float, digits: int = 3) -> str:
    """Return millijoules as "200 uJ", "1.5 mJ" or "2 J", to `digits` significant digits."""
    return _format(millijoules, (("uJ", "0.001"), ("mJ", "1"), ("J", "1000")), digits)


def format_size(size: float, digits: int = 3) -> str:
    """Return bytes as "812 B", "500 kB" or "2 MB" (decimal units), to `digits` significant digits."""
    return _format(size, tuple((unit, _SIZE[unit.lower()]) for unit in ("B", "kB", "MB", "GB")), digits)


def format_count(count: float, digits: int = 3) -> str:
    """Return a count as "812", "300k", "10M", "1.5G" or "2T", to `digits` significant digits."""
    return _format(count, tuple((unit, _COUNT[unit.lower()]) for unit in ("", "k", "M", "G", "T")), digits, "")


def format_duration(seconds: float) -> str:
    """Return seconds as "0.35 s", "45 s", "3 min 20 s" or "1 h 30 min", to what a reader cares for."""
    value = _non_negative(seconds)
    if value < 10:
        return f"{_plain(_rounded(value, 2))} s"
    whole = int(value.to_integral_value())
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two_parts(whole, 60, "min", "s")
    return _two_parts(int((value / 60).to_integral_value()), 60, "h", "min")


def _quantity(text: str, what: str, scales: Mapping[str, str], units: str, example: str) -> float:
    shown = f"{what} {text!r}"
    expected = f"expected a positive number with one of the units {units}, for example {example}"
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown} is not understood; {expected}")
    number, unit = match[1], match[2].lower()
    if unit not in scales:
        raise ValueError(f"{shown} has {f'the unknown unit {match[2]!r}' if unit else 'no unit'}; {expected}")
    try:
        value = Decimal(number) * Decimal(scales[unit])
    except InvalidOperation:  # an exponent beyond what even Decimal holds
        raise ValueError(f"{shown} is out of range; {expected}") from None
    return _positive(value, shown, expected)


def _positive(value: Decimal, shown: str, expected: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{shown} is not finite; {expected}")
    if number <= 0:
        raise ValueError(f"{shown} is {'zero' if number == 0 else 'negative'}; {expected}")
    return number


def _non_negative(value: float) -> Decimal:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"cannot format {value!r}; expected a finite number that is not negative")
    return Decimal(repr(float(value)))


def _rounded(value: Decimal, digits: int) -> Decimal:
    if not value:
        return value
    return value.quantize(Decimal(1).scaleb(value.adjusted() - digits + 1))


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format(value: float, units: tuple[tuple[str, str], ...], digits: int, space: str = " ") -> str:
    """Write `value` in the greatest unit of which it holds at least one."""
    # Rounding comes first, or 999.9 us would become 1000 us.
    number = _rounded(_non_negative(value), digits)
    unit, scale = units[0]
    for candidate in units[1:]:
        if number >= Decimal(candidate[1]):
            unit, scale = candidate
    return f"{_plain(number / Decimal(scale))}{space}{unit}"


def _two_parts(whole: int, base: int, large: str, small: str) -> str:
    high, low = divmod(whole, base)
    return f"{high} {large} {low} {small}" if low else f"{high} {large}"
