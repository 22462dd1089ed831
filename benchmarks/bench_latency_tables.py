"""Predictors of latency from 10, 100 and 900 measured networks, on published tables of FBNet and HAT.

Means over devices and over seeds that draw the measured networks; 1,000 others are predicted. MAPE is in percent, of
medians brought to the same scale for FLOPs, which have no unit of time. `published` predictors are the sum of a table
of operators, as FBNet's (here fitted to whole networks: ridge), HAT's perceptron (10-400-400-400-1, ReLU, squared
error, Adam at 1e-5, 5,000 steps of 128), and BRP-NAS's graph network, here of 64 units and 60 epochs. Of HAT's networks
only ten averages are known: our predictors see eight levels of each. SARTOR_LATENCIES names the folder of the tables
(see latency_tables.py), SARTOR_SEEDS sets the seeds (3; HAT's perceptron has one). HELP learnt from the other devices'
tables, from half of the networks; those that are predicted are of the other half.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from latency_tables import Floats, Latencies, family, fbnet, hat_table
from sartor.architecture import Architecture
from sartor.predictors import GBDT, GCN, HELP, MLP, GaussianProcess, Ridge
from sartor.protocols import Predictor
from sartor.ranking import spearman
from sartor.space import SearchSpace

Row = Mapping[str, str | float | int | None]

SAMPLES = (10, 100, 900)
HELD_OUT = 1000
# One setting of each device of FBNet's table: of GPUs the smallest and largest batch of two.
_GPUS = ("1080ti_1", "1080ti_64", "titan_rtx_1", "titan_rtx_64")
FBNET = (*_GPUS, "gold_6226", "gold_6240", "samsung_s7", "pixel3", "raspi4", "eyeriss", "fpga")
MAKES: dict[str, Callable[[SearchSpace, int], Predictor]] = {
    "ridge (operator table)": lambda space, seed: Ridge(space),
    "Gaussian process": lambda space, seed: GaussianProcess(space),
    "GBDT": lambda space, seed: GBDT(space, members=0, seed=seed),
    "MLP": lambda space, seed: MLP(space, seed=seed),
    "GCN, 64 units": lambda space, seed: GCN(space, units=64, epochs=60, draws=0, lr=2e-3, seed=seed),
}


def rows(quick: bool) -> Iterator[Row]:
    """A row per table, number of samples and predictor."""
    seeds = 1 if quick else int(os.environ.get("SARTOR_SEEDS", "3"))
    episodes = 20 if quick else int(os.environ.get("SARTOR_EPISODES", "500"))
    for name, table in {"FBNet": fbnet(), "HAT wmt14ende": hat_table("wmt14ende")}.items():
        devices = [device for device in table.devices if name != "FBNet" or device in FBNET][: 1 if quick else None]
        helps = {} if name != "FBNet" else others_learnt(table, devices, episodes)
        yield found(name, 0, "FLOPs", [of_flops(table, device) for device in devices], len(devices), 1)
        for samples in SAMPLES[: 2 if quick else None]:
            for predictor, make in MAKES.items():
                scores = [fitted(table, d, samples, make, seed) for d in devices for seed in range(seeds)]
                yield found(name, samples, predictor, scores, len(devices), seeds)
            if helps:
                scores = [fitted(table, d, samples, adapting(helps[d]), seed) for d in devices for seed in range(seeds)]
                yield found(name, samples, "HELP, other devices", scores, len(devices), seeds)
            if table.features is not None and not quick:
                scores = [of_perceptron(table, device, samples) for device in devices]
                yield found(name, samples, "HAT's perceptron", scores, len(devices), 1)


def others_learnt(table: Latencies, devices: Sequence[str], episodes: int) -> dict[str, HELP]:
    """Return for each device what HELP learnt from the others, without any batch size of it, on the first half."""
    half, of_family = len(table.archs) // 2, {}
    for one in sorted(set(map(family, devices))):
        known = {name: ms[:half] for name, ms in table.devices.items() if family(name) != one}
        of_family[one] = HELP(table.space, episodes=episodes).meta_fit(table.archs[:half], known)
    return {device: of_family[family(device)] for device in devices}


def adapting(help: HELP) -> Callable[[SearchSpace, int], Predictor]:
    """Return what makes predictors of it."""
    return lambda space, seed: help.predictor()


def found(name: str, samples: int, predictor: str, scores: Sequence[Floats], devices: int, seeds: int) -> Row:
    """Return the means, and the deviation of the correlation."""
    rhos, errors = np.array(scores).T
    return {
        "table": name,
        "samples": samples,
        "predictor": predictor,
        "devices": devices,
        "seeds": seeds,
        "Spearman": round(float(rhos.mean()), 3),
        "worst": round(float(rhos.min()), 3),
        "MAPE": round(100 * float(errors.mean()), 1),
    }


def split(ms: Floats, samples: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return which networks are measured, of the first half, and which are predicted, of the second."""
    rng, rows = np.random.default_rng(seed), np.flatnonzero(np.isfinite(ms))
    half = len(rows) // 2
    known, asked = rng.permutation(rows[:half]), rng.permutation(rows[half:])
    return known[:samples].tolist(), asked[:HELD_OUT].tolist()


def scored(predicted: Floats, true: Floats) -> Floats:
    """Return the correlation and the mean absolute relative error."""
    return np.array([spearman(predicted, true), np.mean(np.abs(predicted / true - 1))])


def fitted(
    table: Latencies, device: str, samples: int, make: Callable[[SearchSpace, int], Predictor], seed: int
) -> Floats:
    """Fit and predict."""
    ms = table.devices[device]
    known, asked = split(ms, samples, seed)

    def taken(places: Sequence[int]) -> list[Architecture]:
        return [table.archs[place] for place in places]

    model = make(table.space, seed).fit(taken(known), ms[known])
    return scored(model.predict(taken(asked))[0], ms[asked])


def of_flops(table: Latencies, device: str) -> Floats:
    """Rank by FLOPs."""
    assert table.flops is not None
    _, asked = split(table.devices[device], 0, 0)
    flops, ms = table.flops[asked], table.devices[device][asked]
    return scored(flops * np.median(ms) / np.median(flops), ms)


def of_perceptron(table: Latencies, device: str, samples: int) -> Floats:
    """Train HAT's perceptron on its ten features, each over its greatest value, and latencies over their mean."""
    assert table.features is not None
    features, ms = table.features, table.devices[device]
    known, asked = split(ms, samples, 0)
    x = torch.from_numpy(features / features.max(axis=0)).float()
    unit = float(ms[known].mean())
    y = torch.from_numpy(ms / unit).float()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        sizes = (10, 400, 400, 400, 1)
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        net = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())][:-1])
    adam = torch.optim.Adam(net.parameters(), lr=1e-5)
    places = torch.tensor(known)
    for _ in range(5000):
        batch = places[torch.randint(len(places), (min(128, len(places)),), generator=generator)]
        adam.zero_grad()
        (net(x[batch])[:, 0] - y[batch]).square().mean().backward()
        adam.step()
    with torch.no_grad():
        return scored(unit * net(x[torch.tensor(asked)])[:, 0].double().numpy(), ms[asked])
