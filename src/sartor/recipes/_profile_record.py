# SPDX-License-Identifier: Apache-2.0
"""What a profile says of itself: models with their errors, the chosen one, how well a ranking is known, coverage."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sartor.architecture import Architecture
from sartor.costs.errors import errors
from sartor.costs.fitting import MODELS, Judged, Make, chosen, judged, prediction
from sartor.costs.ledger import Entry, Ledger, Session
from sartor.costs.levels import levelled
from sartor.costs.profile import RECORD_FORMAT, Profile, networks_of, operators_of, table_of
from sartor.costs.transfer import transfers
from sartor.space import SearchSpace
from sartor.workload import Workload

__all__ = ["adapted_record", "record_of"]

_TO_RMS = math.sqrt(math.pi / 2)  # from the mean absolute error of a normal distribution to its deviation
_METHOD = (
    "The model with the least error in a 5-fold cross-validation over the networks to learn from; the error is that of "
    "its fit to them on networks that neither fit nor choice has seen."
)
_METHOD_OF_FEW = (
    "The model with the least error when each measured network is left out in turn; the error is that of leaving out "
    "each network and choosing the model among the others."
)


def record_of(
    ledger: Ledger,
    entry: Entry,
    makers: Mapping[str, Make],
    space: SearchSpace,
    workload: Callable[[Architecture], Workload],
    asked: Sequence[str],
) -> dict[str, Any]:
    """Judge the models on what was measured; ValueError for fewer than 3 networks to learn from.

    asked: the keys of the profile's operators.
    """
    train, test = networks_of(ledger, entry)
    if len(train) < 3:
        raise ValueError(f"{len(train)} networks were measured, too few to learn from: give more samples or time")
    several = judged(makers, train, test)
    sessions = ledger.sessions(entry)
    table = table_of(ledger, entry, asked)
    seen = {} if table is None else table.coverage([workload(arch) for arch in (test or train)])
    return {
        **_common(several, chosen(several), _METHOD, sessions, train, test),
        "source": None,
        "operators": operators_of(ledger, entry, asked),
        "retest": _retest(sessions, [*test]),
        "coverage": {**seen, "operators_measured": 0 if table is None else len(table.ms), **_options(space, [*train])},
        "left_out": [f"{name}: its library is not installed" for name in MODELS if name not in makers and table],
    }


def adapted_record(ledger: Ledger, entry: Entry, ours: Entry, source: Profile) -> dict[str, Any]:
    """Judge what the few networks of a new device make of an old profile."""
    train, _ = networks_of(ledger, entry)
    if len(train) < 4:
        raise ValueError(f"{len(train)} networks were measured, too few to adapt a profile: measure 4 or more")
    makers = transfers(source.space, source.workload, source.predictor, seed=int(entry.settings["seed"]))
    several = judged(makers, train, {}, folds=len(train))
    best = chosen(several)
    honest = Judged(best.name, errors(_nested(makers, train), np.array([*train.values()])), None)
    several = [honest if one is best else one for one in several]
    sessions = ledger.sessions(entry)
    return {
        **_common(several, honest, _METHOD_OF_FEW, sessions, train, {}),
        "source": ours.reference,
        "operators": {},
        "retest": None,
        "coverage": _options(source.space, [*train]),
        "left_out": [],
    }


def _common(
    several: Sequence[Judged],
    best: Judged,
    method: str,
    sessions: Sequence[Session],
    train: Mapping[Architecture, float],
    test: Mapping[Architecture, float],
) -> dict[str, Any]:
    networks = [one for session in sessions for one in session.networks]
    refused = {one.arch: one.reason for one in networks if one.measurement is None}
    return {
        "format": RECORD_FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "method": method,
        "chosen": best.name,
        "relative_error": _TO_RMS * (best.validation["mape"].value or 0.0),
        "models": [_json(one) for one in several],
        "samples": {
            "train": len(train),
            "test": len(test),
            "sessions": len(sessions),
            "refused": len(refused),
            "reasons": sorted({*refused.values()})[:3],
            "noisy": sum(one.measurement is not None and one.measurement.noisy for one in networks),
            "measurements": len(networks),
            "milliseconds": [min(train.values()), max(train.values())],
        },
        "seconds": sum(session.seconds for session in sessions),
    }


def _nested(makers: Mapping[str, Make], train: Mapping[Architecture, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N,) predictions of each network by the model that the others alone would have chosen."""
    found = []
    for arch in train:
        others = {other: ms for other, ms in train.items() if other != arch}
        name = chosen(judged(makers, others, {}, folds=len(others))).name
        found.append(float(prediction(makers[name], others, [arch])[0]))
    return np.array(found)


def _retest(sessions: Sequence[Session], test: Sequence[Architecture]) -> dict[str, Any] | None:
    """How well the test networks' second measurement agrees with the first: what no predictor can exceed by much."""
    values = dict(zip([session.kind for session in sessions], levelled(sessions), strict=True))
    both = [arch for arch in test if arch in values.get("retest", {})]
    if len(both) < 2:
        return None
    first, second = (np.array([values[kind][arch] for arch in both]) for kind in ("test", "retest"))
    return {name: found.to_list() for name, found in errors(second, first).items()}


def _options(space: SearchSpace, archs: Sequence[Architecture]) -> dict[str, int]:
    """Count the options that are in a network to learn from, and all."""
    seen = {(name, repr(arch[name])) for arch in archs for name in space.choices if space.is_active(name, arch)}
    return {"options_seen": len(seen), "options": sum(map(len, space.choices.values()))}


def _json(one: Judged) -> dict[str, Any]:
    return {
        "name": one.name,
        "validation": {name: found.to_list() for name, found in one.validation.items()},
        "test": one.test and {name: found.to_list() for name, found in one.test.items()},
    }
