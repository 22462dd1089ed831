# SPDX-License-Identifier: Apache-2.0
"""The models of latency on a simulated device, their choice, and adapting to another device."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from sartor.architecture import Architecture
from sartor.costs.additive import Line, additive, counted, summed
from sartor.costs.fitting import BASELINES, MODELS, candidates, chosen, committee, cross_validated, judged, prediction
from sartor.costs.operators import CALL, OperatorTable, key, pair_key, pairs
from sartor.costs.profile import Workloads
from sartor.costs.transfer import TRANSFERS, transfers, well_spread
from sartor.predictors import GBDT
from sartor.predictors.workload_latency import OperatorCounts
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import search_space
from sartor.workload import macs
from simulated_device import CALL_MS, network_ms, op_ms

with torch.device("meta"):
    NETWORK = MobileNet(10, 1, (8, 8))
SPACE = search_space(NETWORK)
WORKLOAD = Workloads(NETWORK, (1, 8, 8))
ARCHS = list(dict.fromkeys(SPACE.sample(random.Random(seed)) for seed in range(40)))
OPS = {key(op): op for arch in ARCHS for op in WORKLOAD(arch)}
TABLE = OperatorTable.of(
    {key(CALL): CALL_MS}
    | {name: CALL_MS + op_ms(op) for name, op in OPS.items()}
    | {pair_key(*pair): network_ms(pair) for pair in pairs([WORKLOAD(arch) for arch in ARCHS])}
)
QUICK = ("operators", "additive", "workload", "ridge", *BASELINES)


def latencies(archs: list[Architecture]) -> dict[Architecture, float]:
    return {arch: network_ms(WORKLOAD(arch)) for arch in archs}


TRAIN, TEST = latencies(ARCHS[:26]), latencies(ARCHS[26:])


def test_the_additive_model_is_exact_on_an_additive_device_and_is_chosen() -> None:
    makers = {name: make for name, make in candidates(SPACE, WORKLOAD, TABLE).items() if name in QUICK}
    found = {one.name: one for one in judged(makers, TRAIN, TEST)}
    assert chosen([*found.values()]).name == "additive"
    for name in QUICK:
        assert found[name].test is not None
    errors = {name: (one.test or {})["mape"].value or 0.0 for name, one in found.items()}
    assert errors["additive"] < 0.01
    assert errors["additive"] < errors["operators"] < errors["flops"]
    assert (found["additive"].test or {})["spearman"].value == pytest.approx(1.0, abs=0.02)


def test_every_model_and_baseline_is_there_and_works() -> None:
    makers = candidates(SPACE, WORKLOAD, TABLE)
    assert [*makers] == [*MODELS, *BASELINES]
    for name in set(makers) - set(QUICK):
        mean = prediction(makers[name], TRAIN, [*TEST])
        assert np.mean(np.abs(mean / np.array([*TEST.values()]) - 1)) < 0.1, name


def test_operator_counts_tell_apart_what_the_kinds_lump_together() -> None:
    counts = OperatorCounts(WORKLOAD, ARCHS)
    table = counts(ARCHS).reshape(len(ARCHS), -1, 3)
    assert {"relu", "batch_norm"} < set(counts.places)
    for row, arch in zip(table, ARCHS, strict=True):
        assert row[:, 0].sum() == len(WORKLOAD(arch))
        assert row[:, 1].sum() == macs(WORKLOAD(arch))
        assert row[counts.places["relu"], 0] == sum(op.kind == "relu" for op in WORKLOAD(arch))
    alone = OperatorCounts(WORKLOAD, [SPACE.smallest()])
    assert alone([SPACE.largest()]).shape == (1, 3 * len(alone.places))  # what was not seen is left out


def test_trees_see_the_extra_columns() -> None:
    values = np.array([*TRAIN.values()])
    ramp = dict(zip(TRAIN, range(len(TRAIN)), strict=True))
    trees = GBDT(SPACE, members=0, rounds=300, least=1, extra=lambda archs: np.array([[ramp[one]] for one in archs]))
    order = [*TRAIN]
    random.Random(0).shuffle(order)
    mean, _ = trees.fit(order, np.array([float(ramp[one]) for one in order])).predict(order)
    assert np.corrcoef(mean, [ramp[one] for one in order])[0, 1] > 0.99
    assert trees.contributions(order).shape == (len(values), sum(map(len, SPACE.choices.values())) + 1)


def test_without_operators_or_lightgbm_there_are_fewer_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [*candidates(SPACE, WORKLOAD, None)] == ["workload", "ridge", "gcn", *BASELINES]


def test_baselines_are_never_chosen() -> None:
    makers = {name: make for name, make in candidates(SPACE, WORKLOAD, None).items() if name in BASELINES}
    several = judged(makers, TRAIN, {})
    assert all(one.test is None for one in several)
    with pytest.raises(ValueError, match="no model"):
        chosen(several)


def test_cross_validation_has_not_seen_what_it_predicts() -> None:
    archs = [*TRAIN]
    values = np.array([*TRAIN.values()])
    seen: list[set[Architecture]] = []

    class Spy:
        def fit(self, given: list[Architecture], y: object) -> Spy:
            seen.append(set(given))
            return self

        def predict(self, asked: list[Architecture]) -> tuple[np.ndarray, np.ndarray]:
            assert not seen[-1] & set(asked)
            return np.ones(len(asked)), np.zeros(len(asked))

    assert cross_validated(Spy, archs, values).tolist() == [1.0] * len(archs)  # type: ignore[arg-type]
    assert len(seen) == 5
    with pytest.raises(ValueError, match="at least 3"):
        cross_validated(Spy, archs[:2], values[:2])  # type: ignore[arg-type]


def test_a_line_is_exact_where_the_device_is_one_and_never_falls() -> None:
    line = Line(counted(macs, WORKLOAD), free=1).fit(
        ARCHS, np.array([0.5 + 1e-5 * macs(WORKLOAD(arch)) for arch in ARCHS])
    )
    mean, deviation = line.predict(ARCHS)
    np.testing.assert_allclose(mean, [0.5 + 1e-5 * macs(WORKLOAD(arch)) for arch in ARCHS], rtol=1e-6)
    assert (deviation < 1e-6 * mean).all()
    falling = Line(counted(macs, WORKLOAD)).fit(ARCHS, np.array([1 / macs(WORKLOAD(arch)) for arch in ARCHS]))
    assert falling.slopes is not None and (falling.slopes >= 0).all()
    assert line.predict([])[0].shape == (0,)


def test_what_a_line_refuses() -> None:
    line = Line(summed(TABLE, WORKLOAD))
    with pytest.raises(ValueError, match="call fit first"):
        line.predict(ARCHS)
    with pytest.raises(ValueError, match="2 or more"):
        line.fit(ARCHS[:1], np.ones(1))
    with pytest.raises(ValueError, match="not above 0"):
        line.fit(ARCHS[:2], np.array([1.0, 0.0]))


def test_the_columns_are_sums_over_operators() -> None:
    columns = additive(TABLE, WORKLOAD)(ARCHS[0])
    plain = summed(TABLE, WORKLOAD)(ARCHS[0])[0]
    assert columns.reshape(-1, 2)[:, 0].sum() == pytest.approx(network_ms(WORKLOAD(ARCHS[0])) - CALL_MS, rel=1e-6)
    assert columns.reshape(-1, 2)[:, 0].sum() < plain
    assert columns.reshape(-1, 2)[:, 1].sum() < len(WORKLOAD(ARCHS[0]))


def test_models_disagree_where_little_is_known() -> None:
    makers = {name: make for name, make in candidates(SPACE, WORKLOAD, TABLE).items() if name in QUICK}
    small = sorted(ARCHS, key=lambda arch: network_ms(WORKLOAD(arch)))
    doubt = committee(makers, latencies(small[:12]), [small[0], small[-1]])
    assert doubt.shape == (2,)
    assert doubt[1] > doubt[0]


class Old:
    """The exact latency of the simulated device."""

    def fit(self, archs: object, values: object) -> Old:
        return self

    def predict(self, archs: list[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([network_ms(WORKLOAD(arch)) for arch in archs]), np.zeros(len(archs))


def test_a_device_that_differs_by_a_factor_and_a_call_is_found_with_four_networks() -> None:
    few = well_spread(ARCHS, Old().predict(ARCHS)[0], WORKLOAD, 4)
    makers = transfers(SPACE, WORKLOAD, Old())  # type: ignore[arg-type]
    assert [*makers] == [*(name for name in TRANSFERS if name != "help"), *BASELINES]  # which is for another space
    train = {arch: 0.2 + 3 * network_ms(WORKLOAD(arch)) for arch in few}
    rest = [arch for arch in ARCHS if arch not in few]
    expected = [0.2 + 3 * network_ms(WORKLOAD(arch)) for arch in rest]
    np.testing.assert_allclose(prediction(makers["old"], train, rest), expected, rtol=1e-3)
    assert chosen(judged(makers, train, {}, folds=4)).name == "old"


def test_the_networks_to_measure_span_the_range_and_differ() -> None:
    values: Mapping[Architecture, float] = latencies(ARCHS)
    found = well_spread(ARCHS, np.array([*values.values()]), WORKLOAD, 10)
    assert len({*found}) == 10
    assert min(values, key=values.__getitem__) in found and max(values, key=values.__getitem__) in found
    assert well_spread(ARCHS, np.array([*values.values()]), WORKLOAD, 1)
    with pytest.raises(ValueError, match="ask for 1 to"):
        well_spread(ARCHS, np.array([*values.values()]), WORKLOAD, 41)
