# SPDX-License-Identifier: Apache-2.0
"""HELP: the contract of its predictor, the parts of the method, its files, and what was shown of it."""

from __future__ import annotations

import itertools
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.func import functional_call

from contracts.predictor_contract import GATED, PredictorContract, accuracies, sampled
from sartor.architecture import Architecture
from sartor.encodings import onehot
from sartor.predictors import HELP
from sartor.predictors._help_adapted import AdaptedHELP
from sartor.predictors._help_network import Inputs, Meta, counting, prior
from sartor.predictors._help_tasks import devices_of_episode, drawn_samples, spread_out
from sartor.ranking import spearman
from sartor.space import SearchSpace
from sartor.tables import load

Floats = NDArray[np.float64]

OPERATIONS = ("none", "skip", "conv")
CELL = SearchSpace(dict.fromkeys(("op_01", "op_02", "op_03", "op_12", "op_13", "op_23"), OPERATIONS))
LINKS = [(one, other) for one in CELL.choices for other in CELL.choices if one[-1] == other[-2]]
COSTS = {"a": (1.0, 0.0, 9.0), "b": (1.0, 1.0, 3.0), "c": (1.0, 4.0, 5.0), "d": (2.0, 0.1, 3.0)}


def latencies(archs: list[Architecture], costs: tuple[float, ...]) -> Floats:
    """Take the time of each operation, and a little more for the last of three in a row."""
    table = dict(zip(OPERATIONS, costs, strict=True))
    return np.array(
        [
            5.0 + sum(table[str(option)] for option in arch.values()) + 2.0 * (arch["op_01"] == arch["op_12"])
            for arch in archs
        ]
    )


def learnt(episodes: int = 0, **options: object) -> HELP:
    """Return what has seen four devices of a small cell."""
    archs = sampled(CELL, 200, 0)
    devices = {name: latencies(archs, costs) for name, costs in COSTS.items()}
    return HELP(CELL, episodes=episodes, units=16, draws=2, **options).meta_fit(archs, devices)  # type: ignore[arg-type]


@cache
def trained() -> HELP:
    return learnt(60)


def on_two_devices(space: SearchSpace) -> AdaptedHELP:
    """Return a predictor that has seen little of two devices."""
    archs = sampled(space, 40, 5)
    values = accuracies(archs)
    devices = {"one": values - values.min() + 1.0, "other": np.linspace(1.0, 2.0, len(archs))}
    return HELP(space, episodes=3, units=16, draws=3).meta_fit(archs, devices).predictor()


class TestHELP(PredictorContract):
    make = staticmethod(on_two_devices)


# ---- the parts of the method ------------------------------------------------------------------------------


def summary(space: SearchSpace, archs: list[Architecture]) -> Floats:
    return onehot(space, archs) @ counting(space)


def meta(help: HELP) -> Meta:
    assert help._meta is not None
    return help._meta


def toy(help: HELP, tasks: int = 3) -> tuple[Inputs, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return samples, their values, and embeddings and z of some tasks."""
    archs = [sampled(CELL, 10, seed) for seed in range(tasks)]
    each = [help._inputs(few) for few in archs]
    y = torch.stack([torch.from_numpy(latencies(few, (1.0, 2.0, seed))).float() for seed, few in enumerate(archs)])
    y = (y - y.mean(dim=1, keepdim=True)) / y.std(dim=1, keepdim=True)
    samples = Inputs(torch.stack([one.x for one in each]), torch.stack([one.f for one in each]))
    line = meta(help).regression(samples.f, y)
    v = meta(help).embedding(line, y)
    z = torch.randn(tasks, meta(help).entries, generator=torch.Generator().manual_seed(0))
    return Inputs(samples.x, line(samples.f)), y, v, z


def test_no_steps_and_no_z_leave_theta() -> None:
    help = learnt(20, steps=0)
    samples, y, v, z = toy(help)
    theta = dict(meta(help).theta.named_parameters())
    for name, weights in meta(help).adapted(samples, y, v, 0 * z).items():
        for one in weights:
            torch.testing.assert_close(one, theta[name])


def test_z_scales_the_weights_and_shifts_the_biases_of_the_last_three_layers() -> None:
    help = learnt(20, steps=0)
    samples, y, v, z = toy(help)
    theta, weights = dict(meta(help).theta.named_parameters()), meta(help).adapted(samples, y, v, z)
    assert meta(help).entries == 2 * (16 + 16 + 1)
    torch.testing.assert_close(
        weights["third.weight"][1], theta["third.weight"] * (1 + 0.01 * z[1, :16, None]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(weights["fifth.bias"][2], theta["fifth.bias"] + 0.01 * z[2, -1:])
    torch.testing.assert_close(weights["device.0.weight"][1], theta["device.0.weight"])


def test_a_step_is_theta_minus_alpha_times_the_gradient() -> None:
    help = learnt(20, steps=1, modulation=0.0)
    network, (samples, y, v, z) = meta(help), toy(help)
    found = network.adapted(samples, y, v, z)
    for task in range(len(y)):
        network.theta.zero_grad()
        scores = functional_call(network.theta, dict(network.theta.named_parameters()), (samples.x[task], v[task]))
        loss = (scores + samples.f[task] - y[task]).square().mean()
        slopes = torch.autograd.grad(loss, list(network.theta.parameters()))
        pairs = zip(network.theta.named_parameters(), network.rates, slopes, strict=True)
        for (name, before), rate, slope in pairs:
            torch.testing.assert_close(found[name][task], before - rate * slope, rtol=1e-4, atol=1e-6)


def test_the_outer_gradient_goes_through_the_steps() -> None:
    """Step sizes, z's encoder and the prior of the line learn; theta's gradient is of second order."""
    help = learnt(5)
    network, (samples, y, v, z) = meta(help), toy(help)
    rates = [rate.detach().clone() for rate in network.rates]
    weights = network.adapted(samples, y, v, z)
    network.zero_grad()
    network.scores(weights, samples.x[0], samples.f, v).square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(rate.grad is not None for rate in network.rates)
    assert sum(float(rate.grad.abs().sum()) for rate in network.rates if rate.grad is not None) > 0
    after = meta(learnt(8)).rates
    assert any(not torch.equal(one, other) for one, other in zip(rates, after, strict=True))
    assert not torch.equal(meta(learnt(8)).mean, torch.zeros_like(network.mean))


def test_before_anything_is_learnt_it_is_ridge_with_the_prior_of_the_sources() -> None:
    """The weights w minimise |y - X w|^2 + w' C^-1 w, where C is the covariance of the prior."""
    archs, asked, sources = sampled(CELL, 10, 1), sampled(CELL, 50, 2), sampled(CELL, 200, 0)
    help, ms = learnt(steps=0, modulation=0.0), latencies(archs, (1.0, 2.0, 6.0))
    tables = np.stack([latencies(sources, costs) for costs in COSTS.values()])
    factor = prior(onehot(CELL, sources), counting(CELL), tables)
    np.testing.assert_allclose(meta(help).factor.detach(), factor, atol=1e-5)
    covariance = factor @ factor.T + 0.05**2 * np.eye(len(factor))
    x, y = onehot(CELL, archs), (ms - ms.mean()) / ms.std()
    away = x - x.mean(axis=0)
    weights = np.linalg.solve(away.T @ away + np.linalg.inv(covariance), away.T @ y)
    expected = ms.mean() + ms.std() * (onehot(CELL, asked) - x.mean(axis=0)) @ weights
    np.testing.assert_allclose(help.adapt(archs, ms).predict(asked)[0], expected, atol=5e-3)


def test_the_prior_holds_what_options_cost_on_the_sources() -> None:
    archs = sampled(CELL, 200, 0)
    plain = np.array(
        [sum({"none": 1.0, "skip": 2.0, "conv": 6.0}[str(one)] for one in arch.values()) for arch in archs]
    )
    directions = prior(onehot(CELL, archs), counting(CELL), plain[None])
    assert directions.shape == (18, 3 + 1)
    costs = directions[:, 3].reshape(6, 3)
    np.testing.assert_allclose((costs[:, 2] - costs[:, 0]) / (costs[:, 1] - costs[:, 0]), 5.0, rtol=0.1)


@settings(max_examples=12)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(0.0, 1e3))
def test_the_unit_of_a_device_changes_no_order(scale: float, shift: float) -> None:
    archs, asked = sampled(CELL, 10, 1), sampled(CELL, 60, 2)
    ms = latencies(archs, (1.0, 2.0, 6.0))
    plain, other = (trained().adapt(archs, one).predict(asked)[0] for one in (ms, scale * ms + shift))
    np.testing.assert_allclose((other - shift) / scale, plain, rtol=1e-2, atol=2e-2)


def test_the_order_of_the_samples_does_not_matter() -> None:
    archs, asked = sampled(CELL, 10, 1), sampled(CELL, 60, 2)
    ms = latencies(archs, (1.0, 2.0, 6.0))
    one = trained().adapt(archs, ms).predict(asked)[0]
    np.testing.assert_allclose(trained().adapt(archs[::-1], ms[::-1]).predict(asked)[0], one, rtol=1e-4)


@pytest.mark.parametrize("links", [(), LINKS])
def test_a_source_in_another_unit_is_known_again(links: list[tuple[str, str]]) -> None:
    help = learnt(15, links=links) if links else trained()
    archs, asked = sampled(CELL, 10, 8), sampled(CELL, 300, 9)
    mean, deviation = help.adapt(archs, 40 * latencies(archs, COSTS["c"])).predict(asked)
    assert spearman(mean, latencies(asked, COSTS["c"])) > 0.95
    assert (deviation > 0).all()


def test_learning_over_devices_beats_the_line() -> None:
    """What the line cannot say, a pair of operations that costs more, is the same on all devices."""
    archs, asked = sampled(CELL, 10, 8), sampled(CELL, 300, 9)
    ms, true = (latencies(few, (1.5, 0.5, 4.0)) for few in (archs, asked))
    errors = [np.abs(help.adapt(archs, ms).predict(asked)[0] - true).mean() for help in (learnt(), learnt(100))]
    assert errors[1] < 0.9 * errors[0]


def test_the_uncertainty_falls_with_samples() -> None:
    archs, asked = sampled(CELL, 200, 8), sampled(CELL, 50, 9)
    ms = latencies(archs, (1.5, 0.5, 4.0)) * (1 + 0.1 * np.random.default_rng(0).normal(size=200))
    few, many = (trained().adapt(archs[:n], ms[:n]).predict(asked)[1].mean() for n in (10, 200))
    assert many < few


# ---- samples and devices ----------------------------------------------------------------------------------


def test_the_counts_of_options_that_are_shared_and_of_those_that_are_not() -> None:
    space = SearchSpace({"a": ("x", "y"), "b": ("x", "y"), "c": ("x", "z"), "r": tuple(range(0, 24, 2))})
    arch = Architecture({"a": "x", "b": "x", "c": "z", "r": 22})
    assert summary(space, [arch]).tolist() == [[2, 0, 0, 1, 1.0]]
    assert summary(SearchSpace({"a": (0, 1), "b": (False, True)}), []).shape == (0, 4)


def test_the_counts_leave_out_what_is_gated_off() -> None:
    shallow = Architecture({"depth": 1, "kernel2": 5, "kernel3": 5, "se": True})
    assert summary(GATED, [shallow]).tolist() == [[1, 0, 0, 0, 0, 0, 0, 1]]


def test_suggested_samples_have_the_greatest_determinant() -> None:
    space = SearchSpace({"a": (1, 2), "b": ("x", "y"), "c": ("u", "v", "w")})
    rows = summary(space, [space.sample(random.Random(seed)) for seed in range(12)])
    inputs = np.concatenate([rows - rows.mean(axis=0), np.ones((12, 1))], axis=1)

    def information(taken: tuple[int, ...]) -> float:
        few = inputs[list(taken)]
        return float(np.linalg.slogdet(few.T @ few + 0.1 * np.eye(few.shape[1]))[1])

    found = information(tuple(spread_out(rows, 5)))
    everything = sorted((information(taken) for taken in itertools.combinations(range(12), 5)), reverse=True)
    assert found > everything[0] - 0.7  # greedy: within a factor of 2 of the best determinant
    assert found > np.median(everything)


def test_suggested_architectures_are_candidates_and_repeat() -> None:
    candidates = sampled(CELL, 40, 3)
    found = trained().suggest(candidates)
    assert len(found) == 10 and set(found) <= set(candidates)
    assert trained().suggest(candidates, count=3) == found[:3]
    assert len(trained().suggest(candidates[:4])) == 4
    assert trained().suggest(seed=1) == trained().suggest(seed=1) != trained().suggest(seed=2)


@pytest.mark.parametrize("rng", [np.random.default_rng(seed) for seed in range(4)])
def test_samples_are_distinct(rng: np.random.Generator) -> None:
    assert len(set(drawn_samples(rng.normal(size=(50, 3)), 10, rng))) == 10


def test_devices_of_an_episode() -> None:
    rng = np.random.default_rng(0)
    tables, columns = rng.uniform(0.5, 1.5, (3, 80)), rng.integers(0, 4, (80, 5)).astype(float)
    sources = devices_of_episode(tables, columns, 20, synthetic=0, noise=0, rng=rng)
    assert {tuple(row) for row in sources} <= {tuple(row) for row in tables}
    made = devices_of_episode(tables, columns, 20, synthetic=1, noise=0, rng=rng)
    strange = {tuple(row) for row in made} - {tuple(row) for row in tables}
    assert (made > 0).all() and len(strange) > 10
    off = devices_of_episode(tables, columns, 20, synthetic=0, noise=0.05, rng=np.random.default_rng(1))
    assert (np.abs(off / tables[np.argmin(((off[:, None] - tables) ** 2).sum(-1), axis=1)] - 1) < 0.3).all()


# ---- learning ---------------------------------------------------------------------------------------------


def test_what_validates_best_is_kept() -> None:
    archs = sampled(CELL, 200, 0)
    devices = {name: latencies(archs, costs) for name, costs in COSTS.items()}
    validation = {"held": np.exp(latencies(archs, (1.0, 3.0, 0.0)) / 5)}
    help = HELP(CELL, episodes=20, units=16, lr=0.05).meta_fit(archs, devices, validation, every=5)
    assert [episode for episode, _ in help.history] == [0, 5, 10, 15, 20]
    best = max(help.history, key=lambda one: one[1])
    stopped = HELP(CELL, episodes=20, units=16, lr=0.05)
    stopped.episodes = best[0]
    stopped.meta_fit(archs, devices)
    asked, ms = sampled(CELL, 50, 7), latencies(archs[:10], (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(
        help.adapt(archs[:10], ms).predict(asked), stopped.adapt(archs[:10], ms).predict(asked)
    )


def test_learning_repeats_and_leaves_generators_alone() -> None:
    before = torch.random.get_rng_state()
    archs = sampled(CELL, 10, 1)
    ms, asked = latencies(archs, (1.0, 2.0, 3.0)), sampled(CELL, 20, 2)
    first, again = (learnt(5, seed=3).adapt(archs, ms).predict(asked) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_papers_embedding_is_the_latencies_of_references() -> None:
    references = sampled(CELL, 10, 0)
    help = learnt(5, references=references, line=False, synthetic=0.0)
    assert help.suggest() == references
    ms, asked = latencies(references, (1.0, 2.0, 3.0)), sampled(CELL, 20, 2)
    found = help.adapt(references[::-1], ms[::-1]).predict(asked)[0]
    np.testing.assert_array_equal(found, help.adapt(references, ms).predict(asked)[0])
    with pytest.raises(ValueError, match="no latency is given for the reference"):
        help.adapt(references[1:], ms[1:])
    y = torch.randn(2, 10)
    line = meta(help).regression(torch.zeros(2, 10, 18), y)
    assert torch.equal(meta(help).embedding(line, y), y)


@pytest.mark.parametrize("wrong", [np.zeros(200), np.full(200, np.nan), np.ones(3)])
def test_latencies_that_are_none(wrong: Floats) -> None:
    with pytest.raises(ValueError, match="device 'toaster'"):
        HELP(CELL).meta_fit(sampled(CELL, 200, 0), {"toaster": wrong})


def test_mistakes() -> None:
    archs = sampled(CELL, 5, 0)
    with pytest.raises(ValueError, match="too few to learn from"):
        HELP(CELL).meta_fit(archs, {})
    with pytest.raises(ValueError, match="too few to learn from"):
        HELP(CELL).meta_fit(archs, {"one": np.ones(5)})
    with pytest.raises(ValueError, match="call meta_fit"):
        HELP(CELL).adapt(archs, np.ones(5))
    with pytest.raises(ValueError, match="give references"):
        HELP(CELL, line=False)
    with pytest.raises(ValueError, match="units 0"):
        HELP(CELL, units=0)


# ---- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"links": LINKS}, {"references": sampled(CELL, 10, 0), "line": False}])
def test_a_file_gives_the_same_predictions(options: dict[str, object], tmp_path: Path) -> None:
    help, archs, asked = learnt(3, **options), sampled(CELL, 10, 0), sampled(CELL, 20, 2)
    ms = latencies(archs, (1.0, 2.0, 3.0))
    help.save(tmp_path / "help.safetensors")
    read = HELP.load(tmp_path / "help.safetensors")
    assert read.space == help.space
    np.testing.assert_array_equal(read.adapt(archs, ms).predict(asked), help.adapt(archs, ms).predict(asked))
    read.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "help.safetensors").read_bytes()


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"PK\x03\x04 not it")
    with pytest.raises(ValueError, match=r"does not hold what HELP\.save writes"):
        HELP.load(path)
    for text in ("", "[]", "{}", '{"format": 9}', '{"format": 1, "space": "{}"}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"help": text})
        with pytest.raises(ValueError, match=r"does not hold what HELP\.save writes"):
            HELP.load(path)
    with pytest.raises(FileNotFoundError):
        HELP.load(tmp_path / "none.safetensors")


# ---- NAS-Bench-201 ----------------------------------------------------------------------------------------


def test_what_is_shipped_knows_its_devices() -> None:
    """A device that equals a source up to its unit is ranked as that one is."""
    help, table = HELP.shipped(), load("nasbench201")
    assert help.space == table.space
    archs = [arch for arch in table.architectures() if table.columns["connected"][table.row(arch)]][:3000]
    few = help.suggest(archs)
    for device in ("2080ti_256", "eyeriss", "samsung_a50", "raspi4"):
        column = f"help_{device}_ms"
        mean, _ = help.adapt(few, 3.0 * table.values(column, few)).predict(archs)
        assert spearman(mean, table.values(column, archs)) > 0.93, device


def test_nothing_else_is_shipped() -> None:
    with pytest.raises(ValueError, match="there is nasbench201"):
        HELP.shipped("nasbench999")


@pytest.mark.parametrize(("device", "floor"), [("edgegpu", 0.75), ("edgetpu", 0.85)])
def test_what_is_shipped_on_devices_that_are_no_sources(device: str, floor: float) -> None:
    """A Jetson TX2, of whose order even the closest source says little (.64), and an Edge TPU."""
    help, table = HELP.shipped(), load("nasbench201")
    column = f"cifar10_{device}_latency_ms"
    known = np.isfinite(table.columns[column]) & (table.columns["connected"] > 0)
    archs = [table.architecture(int(row)) for row in np.flatnonzero(known)[:1200]]
    few, asked = help.suggest(archs[:300]), archs[300:]
    mean, _ = help.adapt(few, table.values(column, few)).predict(asked)
    assert spearman(mean, table.values(column, asked)) > floor


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "methods" / "help.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "help.md", "exec"), names)
    assert float(capsys.readouterr().out) > 0.75
