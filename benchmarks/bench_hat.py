# SPDX-License-Identifier: Apache-2.0
"""HAT: its latency predictor on measured transformers, and how shared weights rank a toy translator's networks.

`latency`: 16,000 latencies of four translation tasks on three devices (the authors' set, encoder plus decoder), of each
task and device 1,600 to learn and 400 to test, drawn by the seed, 3 seeds. The perceptron beside a straight line
through the multiply-accumulates (which cannot tell devices apart) and a ridge regression on the same ten features.

`shared weights`: strings of ten digits to be reversed, a small HAT (embeddings 24 and 32, one to three decoder layers).
A supernet trained by uniform sampling for 1,200 steps; the validation loss with its weights beside that of 10 random
networks trained alone for as many steps each, 2 seeds.

Set SARTOR_HAT to the folder with `hat_transformer_latency.parquet`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.oneshot import Recipe, Supervised
from sartor.oneshot.spos import SPOS
from sartor.predictors.hat import HAT as HATPredictor
from sartor.ranking import kendall_tau, spearman
from sartor.spaces.hat import HAT, features
from sartor.supernet import activated, extract, search_space

Row = Mapping[str, str | float | int | None]
Floats = NDArray[np.float64]
LENGTH, DIGITS, STEPS, BATCH = 10, 18, 1200, 64
SENTENCE, INNER, BEAM = 30, 512, 5  # of the measured latencies


def rows(quick: bool) -> Iterator[Row]:
    """The predictor on every task and device, then the ranking."""
    yield from _latency(1 if quick else 3, 200 if quick else 5000)
    yield from _ranking(1 if quick else 2, 60 if quick else STEPS, 4 if quick else 10)


def _latency(seeds: int, steps: int) -> Iterator[Row]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(Path(os.environ["SARTOR_HAT"]) / "hat_transformer_latency.parquet")
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    described = np.stack([columns[name] for name in table.column_names[2:12]], 1).astype(float)
    latency = columns["latency_mean_encoder"] + columns["latency_mean_decoder"]
    kinds = sorted({*zip(columns["task"].tolist(), columns["device"].tolist(), strict=True)})
    for task, device in kinds:
        chosen = (columns["task"] == task) & (columns["device"] == device)
        x, y = described[chosen], latency[chosen]
        errors: dict[str, list[tuple[float, float]]] = {"perceptron": [], "ridge": [], "MACs": []}
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(y))
            known, new = order[:-400], order[-400:]
            network = HATPredictor(features, steps=steps, seed=seed).fit_features(x[known], y[known])
            line = Ridge(1e-3).fit(x[known] / x.max(0), y[known])
            count = _macs(x)[:, None]
            macs = Ridge(1e-9).fit(count[known] / count.max(), y[known])
            for name, found in (
                ("perceptron", network.predict_features(x[new])),
                ("ridge", line.predict(x[new] / x.max(0))), ("MACs", macs.predict(count[new] / count.max())),
            ):  # fmt: skip
                error = float(np.mean(np.abs(found - y[new]) / y[new]))
                errors[name].append((100 * error, spearman(found, y[new])))
        told: dict[str, Any] = {}
        for name, each in errors.items():
            told[f"{name}: error %"] = _told([error for error, _ in each], 1)
            told[f"{name}: rank"] = round(float(np.mean([rank for _, rank in each])), 3)
        yield {"what": f"latency, {task} on {device}", **told, "tau": None}


def _macs(x: Floats) -> Floats:
    """Multiply-accumulates of a sentence: the encoder reads it once, the decoder makes its tokens by beam search."""
    encoder, layers, ffn, _, decoder, depth, hidden, _, _, read = x.T
    once = layers * (4 * encoder * INNER + 2 * encoder * ffn) * SENTENCE
    each = depth * (6 * decoder * INNER + 2 * decoder * hidden) * SENTENCE * BEAM
    memory = depth * 2 * encoder * INNER * read * SENTENCE
    return np.asarray(once + each + memory)


class Reversal(nn.Module):
    """Source and shifted target in one tensor (N, 2 LENGTH), to the logits (N, LENGTH, DIGITS + 2) of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.net = HAT(
            DIGITS + 2, embed=(24, 32), ffn=(32, 64), heads=(2, 4), depth=(1, 2, 3), layers=2, inner=16, read=(1, 2),
            longest=LENGTH, dropout=0.0,
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        """The logits."""
        out: Tensor = self.net(ids[:, :LENGTH], ids[:, LENGTH:])
        return out


def _batch(seed: int, size: int = BATCH) -> tuple[Tensor, Tensor]:
    digits = torch.randint(2, DIGITS + 2, (size, LENGTH), generator=torch.Generator().manual_seed(seed))
    target = digits.flip(1)
    shifted = torch.cat([torch.zeros(size, 1, dtype=torch.long), target[:, :-1]], 1)
    return torch.cat([digits, shifted], 1), target


RECIPE = Recipe(
    optimizer="adam", lr=2e-3, lr_batch=BATCH, schedule="cosine", warmup=0.1, label_smoothing=0.1, eps=1e-8,
    betas=(0.9, 0.98), dropout=None, weight_decay=0.0,
)  # fmt: skip


def _ranking(seeds: int, steps: int, count: int) -> Iterator[Row]:
    taus, started = [], time.process_time()
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = Reversal()
        space = search_space(net)
        supernet = SPOS(net, space, steps=steps, batch_size=BATCH, recipe=RECIPE, seed=seed)
        _trained(supernet, steps, seed)
        rng, shared, alone = random.Random(seed), [], []
        for arch in dict.fromkeys(space.sample(rng) for _ in range(count)):
            with activated(net.eval(), arch):
                shared.append(_loss(net))
            alone.append(_loss(_trained_alone(arch, steps, seed)))
        taus.append(kendall_tau(shared, alone))
    yield {
        "what": "shared weights", **dict.fromkeys(f"{one}: {what}" for one in ("perceptron", "ridge", "MACs")
        for what in ("error %", "rank")), "tau": f"{_told(taus, 2)} ({time.process_time() - started:.0f} CPU s)",
    }  # fmt: skip


def _trained_alone(arch: Architecture, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(1000 + seed)
    net = extract(Reversal(), arch)
    _trained(Supervised(net, nn.functional.cross_entropy, steps=steps, batch_size=BATCH, recipe=RECIPE), steps, seed)
    return net


def _trained(learner: Any, steps: int, seed: int) -> None:
    for step in range(steps):
        learner.step(_batch(1_000_000 * (seed + 1) + step))


def _loss(net: nn.Module) -> float:
    ids, target = _batch(7, 512)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net.eval()(ids).flatten(0, 1), target.flatten()))


def _told(values: list[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
