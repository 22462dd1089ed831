# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Supernets on a small BERT: its MLPs shared, mixed per layer and per neuron, at equal steps.

A BERT of random weights (3 layers, 4 heads, hidden 64, MLP 256) learns to classify 2,000 short sentences of SST-2's
training file; depth, heads and MLP width of each layer are searched, with a sandwich of three passes a step. Two
controls have routers that see a constant instead of the architecture.

accuracy (%) and loss: means over the same 12 sub-networks on 400 other sentences of the training file, of which no part
was trained or chosen by. SARTOR_TEXT and SARTOR_MINILM (for its tokenizer) name the folders; what is trained is kept in
runs/mixture-of-supernets-bert, or SARTOR_OUT.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sartor.adapt import elastic
from sartor.adapt.networks import TextClassifier
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.nn import Router
from sartor.oneshot import FINE_TUNING
from sartor.oneshot.mixture_of_supernets import MixtureOfSupernets
from sartor.space import SearchSpace
from sartor.supernet import activated, search_space
from sst2 import Sentences, sentences

Row = Mapping[str, str | float | int | None]

BATCH, NETWORKS = 16, 12
RECIPE = replace(FINE_TUNING, lr=1e-3, lr_batch=BATCH)
ARMS: dict[str, dict[str, Any]] = {
    "shared (m = 1)": {"experts": 1, "routing": "layer"},
    "layer-wise (m = 2)": {"routing": "layer"},
    "neuron-wise (m = 2)": {"routing": "neuron"},
    "layer-wise, constant encoding": {"routing": "layer", "constant": True},
    "neuron-wise, constant encoding": {"routing": "neuron", "constant": True},
}


def rows(quick: bool) -> Iterator[Row]:
    """A row for each arm: means and deviations over seeds."""
    steps, seeds = (4, 1) if quick else (300, 3)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else _folder()
        for arm, given in ARMS.items():
            found = [kept(folder, arm, seed, steps, given) for seed in range(seeds)]
            digits = {"accuracy (%)": 1, "smallest (%)": 1, "largest (%)": 1, "loss": 3}
            yield {
                "arm": arm, **{name: spread([one[name] for one in found], count) for name, count in digits.items()},
                "parameters": found[0]["parameters"], "passes": 3 * steps, "seeds": seeds,
                "CPU s": round(float(np.mean([one["cpu_s"] for one in found])), 1),
            }  # fmt: skip


def kept(folder: Path, arm: str, seed: int, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """What one training gave, worked out once."""
    path = folder / f"{arm.replace(' ', '-')}-{seed}.json"
    if not path.is_file():
        write_json(path, outcome(seed, steps, **given))
    return json.loads(path.read_bytes())  # type: ignore[no-any-return]


def outcome(seed: int, steps: int, *, constant: bool = False, **given: Any) -> dict[str, Any]:
    """Train; return the accuracies and losses of the sub-networks that are compared."""
    net, data = network(seed), text()
    space = search_space(net)
    learner = MixtureOfSupernets(net, space, steps=steps, batch_size=BATCH, recipe=RECIPE, seed=seed, **given)
    if constant:
        hide_architecture(net, seed)
    before = time.process_time()
    torch.manual_seed(seed)
    for step in range(steps):
        learner.step(data.train.batch(step, BATCH))
    seconds = time.process_time() - before
    scores = [scored(net, arch, data) for arch in compared(space)]
    accuracy, loss = np.mean(scores, axis=0).tolist()
    return {
        "accuracy (%)": accuracy, "loss": loss,
        "largest (%)": scores[0][0], "smallest (%)": scores[1][0], "cpu_s": seconds,
        "parameters": sum(weight.numel() for weight in net.parameters()),
    }  # fmt: skip


@cache
def text() -> Sentences:
    """The sentences, the same for all seeds of a training."""
    return sentences(2000, 400, 0, length=16)


def network(seed: int) -> nn.Module:
    """A small BERT with choices."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(text().words), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    net = TextClassifier(transformers.BertForSequenceClassification(config), pad=0)
    return elastic(net, depth=[1, 2], heads=[1, 2], mlp=[16, 64])


def hide_architecture(net: nn.Module, seed: int) -> None:
    """Let routers see the same random numbers whatever the architecture is."""
    for router in (module for module in net.modules() if isinstance(module, Router)):
        shape = router.encoding.table.shape
        drawn = torch.rand(1, shape[1], generator=torch.Generator().manual_seed(seed))
        router.encoding.table = drawn.expand(shape) / len(router.encoding.choices)


def compared(space: SearchSpace) -> list[Architecture]:
    """The largest, the smallest, and others."""
    found = {space.largest(): None, space.smallest(): None}
    rng = random.Random(0)
    while len(found) < NETWORKS:
        found[space.sample(rng)] = None
    return [*found]


def scored(net: nn.Module, arch: Architecture, data: Sentences) -> tuple[float, float]:
    """Accuracy (%) and cross-entropy of a sub-network."""
    net.eval()
    with torch.inference_mode(), activated(net, arch):
        pairs = [(net(ids), labels) for ids, labels in data.held.batches(50)]
    logits, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    return 100 * float((logits.argmax(1) == labels).double().mean()), float(F.cross_entropy(logits, labels))


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation as text."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _folder() -> Path:
    folder = Path(os.environ.get("SARTOR_OUT") or Path(__file__).parents[1] / "runs" / "mixture-of-supernets-bert")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
