# SPDX-License-Identifier: Apache-2.0
"""AutoDistil: two sub-spaces with a supernet each beside one supernet over both, by relation loss and linear probes.

The teacher is the BERT of all-MiniLM-L6-v2 (6 layers, 12 heads of 32, hidden 384, MLP 1536); text, of which no label is
read, are 2,000 sentences of SST-2's training file, at most 16 tokens each. Sub-space tiny has 2 or 3 layers and hidden
sizes of 96 to 160, small 4 or 5 layers and 192 to 288; both 6 or 9 heads and 384 or 768 neurons. Units are sorted by
importance first. Both arms have as many steps in all, so that each of two supernets has half of them.

loss: mean relation loss of ten sub-networks of each sub-space, the extremes among them, the same in all arms, on 64
other sentences. probe: accuracy (%) on 300 sentences of the dev file of a logistic regression on the mean of a
sub-network's last hidden states, fitted on 364 sentences of the training file; tau is Kendall's, of loss and probe.
SARTOR_TEXT and SARTOR_MINILM name the folders; what is trained is kept in runs/autodistil, or SARTOR_OUT.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.adapt import elastic, sort_by_importance
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.oneshot.autodistil import RECIPE, AutoDistil
from sartor.oneshot.autodistil_spaces import union
from sartor.ranking import kendall_tau
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sst2 import Sentences, minilm, sentences

Row = Mapping[str, str | float | int | None]

LENGTH, BATCH, DEPTH = 16, 8, "model.bert.encoder.layer.depth"
WIDTHS: dict[str, Any] = {"heads": [6, 9], "mlp": [384, 768]}
PARTS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "tiny": {"hidden": [96, 128, 160], DEPTH: [2, 3], **WIDTHS},
    "small": {"hidden": [192, 240, 288], DEPTH: [4, 5], **WIDTHS},
}
ARMS = ("not trained", "one supernet over both", "two supernets")
SHORT = replace(RECIPE, lr=3e-4, lr_batch=BATCH, warmup=0.05)


def rows(quick: bool) -> Iterator[Row]:
    """A row for each arm: means and deviations over seeds."""
    steps, seeds, children = (2, 1, 2) if quick else (200, 3, 10)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else _folder()
        for arm in ARMS:
            found = [kept(folder, arm, seed, steps, children) for seed in range(1 if arm == ARMS[0] else seeds)]
            columns = {f"loss, {name}": spread([np.mean(one["loss"][name]) for one in found], 3) for name in PARTS}
            probes = [100 * np.concatenate([*one["probe"].values()]) for one in found]
            losses = [np.concatenate([*one["loss"].values()]) for one in found]
            inside = [[kendall_tau(one["loss"][name], one["probe"][name]) for name in PARTS] for one in found]
            yield {
                "arm": arm, **columns, "loss": spread([one.mean() for one in losses], 3),
                "probe": spread([one.mean() for one in probes], 1),
                "tau": spread([kendall_tau(a, b) for a, b in zip(losses, probes, strict=True)], 2),
                "tau, inside": spread([float(np.mean(one)) for one in inside], 2),
                "steps": found[0]["steps"], "seeds": len(found),
                "CPU s": round(float(np.mean([one["cpu_s"] for one in found]))),
            }  # fmt: skip


def kept(folder: Path, arm: str, seed: int, steps: int, children: int) -> dict[str, Any]:
    """What one training gave, worked out once."""
    path = folder / f"{arm.replace(' ', '-')}-{seed}.json"
    if not path.is_file():
        write_json(path, outcome(arm, seed, 0 if arm == ARMS[0] else steps, children))
    return json.loads(path.read_bytes())  # type: ignore[no-any-return]


def outcome(arm: str, seed: int, steps: int, children: int) -> dict[str, Any]:
    """Train; return the relation losses and the accuracies of the probes, by sub-space."""
    data, before = text(), time.process_time()
    learner = made(arm, seed, steps)
    torch.manual_seed(seed)
    for step in range(steps):
        learner.step(data.train.batch(step, BATCH))
    seconds = time.process_time() - before
    held = [*data.held.batches(32)][:2]
    loss: dict[str, list[float]] = {}
    probe: dict[str, list[float]] = {}
    for name, part in PARTS.items():
        archs = drawn(learner.branches.root.space.restrict(part), children)
        loss[name] = [learner.relation_loss(arch, held) for arch in archs]
        probe[name] = [
            probed(extract(learner.network_for(arch), arch), data, 2 if children < 3 else 10) for arch in archs
        ]
    return {"loss": loss, "probe": probe, "steps": steps, "cpu_s": seconds}


@cache
def text() -> Sentences:
    """The sentences, the same for all seeds of a training."""
    return sentences(2000, 364, 300, length=LENGTH)


def made(arm: str, seed: int, steps: int) -> AutoDistil:
    """The learner of an arm, on the pretrained network."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        name: sorted({o for part in PARTS.values() for o in part[name]}) for name in PARTS["tiny"]
    }
    net = elastic(minilm(text().words), shared=("heads", "mlp"), depth=options[DEPTH],
                  hidden=options["hidden"], **WIDTHS)  # fmt: skip
    with torch.no_grad():
        sort_by_importance(net)
    space = search_space(net).restrict(options)
    parts: Any = [*PARTS.values()]
    given: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "recipe": SHORT, "seed": seed}
    if arm == ARMS[1]:
        return AutoDistil(net, union(space, parts), parts=[{}], **given)
    return AutoDistil(net, space, parts=parts, **given)


def drawn(space: SearchSpace, count: int) -> list[Architecture]:
    """The extremes of a sub-space, and others."""
    found = {space.largest(): None, space.smallest(): None}
    rng = random.Random(0)
    while len(found) < count:
        found[space.sample(rng)] = None
    return [*found]


def probed(net: nn.Module, data: Sentences, batches: int) -> float:
    """Accuracy of a logistic regression on the mean of a network's last hidden states; in so many batches."""
    from sklearn.linear_model import LogisticRegression

    x, y = _features(net, [*data.held.batches(52)][:batches])
    return float(LogisticRegression(max_iter=300).fit(x, y).score(*_features(net, [*data.dev.batches(50)][:batches])))


def _features(net: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    parts, labels = [], []
    net.eval()
    with torch.inference_mode():
        for ids, wanted in batches:
            mask = (ids != 0).float()
            hidden = net.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            parts.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
            labels.append(wanted)
    return torch.cat(parts).numpy(), torch.cat(labels).numpy()


def spread(values: Sequence[Any], digits: int) -> str:
    """Mean and standard deviation as text."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _folder() -> Path:
    folder = Path(os.environ.get("SARTOR_OUT") or Path(__file__).parents[1] / "runs" / "autodistil")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
