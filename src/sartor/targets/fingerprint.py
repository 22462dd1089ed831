# SPDX-License-Identifier: Apache-2.0
"""What decides a measurement, and the refusal to compare numbers of which different things decided.

A target's fingerprint holds processor (graphics card and driver too), runtime, version, threads and dtype. The
batch and the shape of a sample are the artefact's; `of_artefact` adds them, and a Measurement carries the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sartor.protocols import Artefact, Measurement

__all__ = ["differences", "of_artefact", "require_comparable"]


def of_artefact(target: Mapping[str, str], artefact: Artefact) -> dict[str, str]:
    """Return the fingerprint `target` with the artefact's batch and the shape of one sample, as "3x32x32"."""
    batch, *shape = artefact.input_shape or (1,)
    return {**target, "batch": str(batch), "shape": "x".join(map(str, shape))}


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return in what two fingerprints differ: name to both values, "" where one has none."""
    found = {name: (first.get(name, ""), second.get(name, "")) for name in sorted({*first, *second})}
    return {name: values for name, values in found.items() if values[0] != values[1]}


def require_comparable(measurements: Iterable[Measurement], *, apart_from: Collection[str] = ()) -> None:
    """Pass if all latencies can be compared: their fingerprints are equal, apart from the names given.

    ``apart_from=("shape",)`` is for networks whose input size was searched: there the shape is a property of the
    candidate, not of the conditions.

    Raises:
        ValueError: two fingerprints differ, or a measurement has none; it names the first difference.
    """
    first: Measurement | None = None
    for position, one in enumerate(measurements):
        if not one.fingerprint:
            raise ValueError(f"measurement {position} has no fingerprint, so nothing says what it can be compared with")
        first = first or one
        unlike = differences(first.fingerprint, one.fingerprint)
        for name in (name for name in unlike if name not in apart_from):
            a, b = (value or "unknown" for value in unlike[name])
            raise ValueError(
                f"measurements 0 and {position} cannot be compared: {name} is {a!r} and {b!r}; measure both under the"
                " same conditions"
            )
