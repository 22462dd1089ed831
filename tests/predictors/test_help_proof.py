# SPDX-License-Identifier: Apache-2.0
"""HELP on devices that it has not seen, with exactly ten measurements, beside what ten measurements give without it.

`help_sources.safetensors` has learnt from nine device settings and was stopped by four others (scripts/make_help.py);
neither they nor the 1,000 networks that are ranked here include what is asked. Networks whose output does not depend
on the input are left out, and on each device the fastest and slowest tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sartor.architecture import Architecture
from sartor.encodings import option_counts
from sartor.predictors import HELP
from sartor.ranking import spearman
from sartor.tables import load

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

SOURCES = ("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r")
PHONES = ("samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
UNSEEN = ("titan_rtx_256", "gold_6226", "pixel2", "raspi4", "eyeriss", "fpga")


@cache
def help_of_sources() -> HELP:
    return HELP.load(Path(__file__).parent / "help_sources.safetensors")


@cache
def archs() -> list[Architecture]:
    return load("nasbench201").architectures()[:1900]


@cache
def counts() -> Floats:
    return option_counts(load("nasbench201").space, archs())


@cache
def column(name: str) -> Floats:
    return np.asarray(load("nasbench201").values(name, archs()), dtype=np.float64)


def latency(device: str) -> Floats:
    return column(f"help_{device}_ms")


def connected(start: int, stop: int) -> Rows:
    return start + np.flatnonzero(column("connected")[start:stop])


def asked(ms: Floats) -> Rows:
    rows = connected(900, 1900)
    order = rows[np.argsort(ms[rows], kind="stable")]
    return order[len(order) // 10 : -(len(order) // 10)]


@cache
def sources() -> Floats:
    return np.stack([latency(name) / latency(name).mean() for name in (*SOURCES, *PHONES)])


def by_help(rows: Rows, ms: Floats, others: Rows) -> Floats:
    device = help_of_sources().adapt([archs()[row] for row in rows], ms)
    return device.predict([archs()[row] for row in others])[0]


def by_ridge(rows: Rows, ms: Floats, others: Rows) -> Floats:
    mean = counts()[rows].mean(axis=0)
    x, y = counts()[rows] - mean, (ms - ms.mean()) / ms.std()
    return np.asarray((counts()[others] - mean) @ np.linalg.solve(x.T @ x + np.eye(5), x.T @ y))


def by_mix(rows: Rows, ms: Floats, others: Rows) -> Floats:
    from scipy.optimize import nnls

    return np.asarray(sources()[:, others].T @ nnls(sources()[:, rows].T, ms)[0])


def suggested(seed: int) -> Rows:
    few = np.random.default_rng(seed).choice(connected(0, 900), 300, replace=False)
    place = {archs()[row]: row for row in few}
    return np.array([place[arch] for arch in help_of_sources().suggest([archs()[row] for row in few])])


def any_ten(seed: int) -> Rows:
    return np.random.default_rng(seed).choice(connected(0, 900), 10, replace=False)


def six_unseen_devices(draw: Callable[[int], Rows], draws: int) -> dict[str, float]:
    """Return the mean correlation of each method; all are given the same ten."""
    rhos: dict[str, list[list[float]]] = {"help": [], "ridge": [], "mix": []}
    for device in UNSEEN:
        ms = latency(device)
        others, drawn = asked(ms), [draw(seed) for seed in range(draws)]
        for name, method in {"help": by_help, "ridge": by_ridge, "mix": by_mix}.items():
            rhos[name].append([spearman(method(rows, ms[rows], others), ms[others]) for rows in drawn])
    return {name: float(np.mean(values)) for name, values in rhos.items()}


@pytest.mark.slow
def test_any_ten_of_six_unseen_devices() -> None:
    """The goal is .93, and to be above ridge on the counts of operations and the mix of source devices."""
    mean = six_unseen_devices(any_ten, 30)
    assert mean["help"] > 0.93
    assert mean["help"] > max(mean["ridge"], mean["mix"]) + 0.01


def test_ten_that_are_suggested_of_six_unseen_devices() -> None:
    mean = six_unseen_devices(suggested, 6)
    assert mean["help"] > 0.945
    assert mean["help"] > max(mean["ridge"], mean["mix"])


def test_a_few_draws_of_any_ten() -> None:
    mean = six_unseen_devices(any_ten, 8)
    assert mean["help"] > 0.93
    assert mean["help"] > max(mean["ridge"], mean["mix"])


def test_the_baselines_are_no_worse_than_was_measured_of_them_before() -> None:
    """With all networks, before: ridge .899 and the mix .896 on the six devices. Ridge is better here."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"ridge": [], "mix": []}
    for device in UNSEEN:
        ms = latency(device)
        order = 900 + np.argsort(ms[900:1900], kind="stable")[100:-100]
        for _ in range(10):
            rows = rng.choice(900, 10, replace=False)
            found["ridge"].append(spearman(by_ridge(rows, ms[rows], order), ms[order]))
            found["mix"].append(spearman(by_mix(rows, ms[rows], order), ms[order]))
    assert np.mean(found["ridge"]) > 0.899 - 0.005
    assert np.mean(found["mix"]) == pytest.approx(0.896, abs=0.015)
