# SPDX-License-Identifier: Apache-2.0
"""AutoFormer's weight entanglement beside the classical sharing, where every option of a block has weights of its own.

Noisy digits (500 training images) as 16 patches, AutoFormer's small form (embeddings 16, 24 and 32, two to four
blocks). Both supernets train by uniform sampling for 1,500 passes, 3 seeds; 20 networks trained alone for 600 steps
each, 1 seed, are the truth. Accuracy in % on the 1,297 other images with the shared weights; `after one pass` is
entanglement before it learnt. Kendall's tau is of inherited against stand-alone losses. Kept in runs/autoformer, and
continued there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sartor.spaces.autoformer as autoformer
from oneshot_common import Comparison, digits
from sartor.choice import Choice
from sartor.oneshot import Recipe
from sartor.ranking import kendall_tau

Row = Mapping[str, str | float | int | None]

RECIPE = Recipe(
    optimizer="adamw", lr=2e-3, lr_batch=64, schedule="cosine", warmup=0.05, weight_decay=0.05, eps=1e-8, dropout=None
)
FORM = autoformer.FORMS["digits"]


class Classical(nn.Module):
    """The same space and names, where each embedding, and in it each kind of block, has weights of its own."""

    def __init__(self, classes: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.embed, self.depth = Choice(FORM.embed, name="embed"), Choice(FORM.depth, name="blocks.depth")
        most = max(FORM.depth)
        self.heads = [Choice(FORM.heads, name=f"blocks.{i}.heads") for i in range(most)]
        self.ratios = [Choice(FORM.ratio, name=f"blocks.{i}.ratio") for i in range(most)]
        self.parts = nn.ModuleDict({str(width): self._part(width, classes, channels, size) for width in FORM.embed})

    def _part(self, width: int, classes: int, channels: int, size: tuple[int, int]) -> nn.ModuleDict:
        whole: Any = autoformer.AutoFormer(classes, channels, size)
        plain = replace(FORM, embed=(width,))
        grid = (size[0] // whole.patches.stride[0], size[1] // whole.patches.stride[1])
        stem, tokens = nn.Conv2d(channels, width, whole.patches.kernel_size, whole.patches.stride), grid[0] * grid[1]
        blocks = {
            f"{i}-{heads}-{int(ratio)}": autoformer.Block(
                Choice((width,), name="embed"), replace(plain, heads=(heads,), ratio=(ratio,)), grid
            )
            for i in range(max(FORM.depth)) for heads in FORM.heads for ratio in FORM.ratio
        }  # fmt: skip
        for name, block in blocks.items():
            block.heads.name, block.ratio.name = f"own.{width}.{name}.heads", f"own.{width}.{name}.ratio"
            block.attention.query.in_features.name = f"own.{width}.{name}.embed"
        ends = {"stem": stem, "norm": nn.LayerNorm(width, eps=1e-6), "head": nn.Linear(width, classes)}
        return nn.ModuleDict({**ends, "places": nn.Embedding(tokens + 1, width), "blocks": nn.ModuleDict(blocks)})

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        part: Any = self.parts[str(int(self.embed))]
        x = part["stem"](images).flatten(2).transpose(1, 2)
        x = nn.functional.pad(x, (0, 0, 1, 0)) + part["places"].weight
        for i in range(int(self.depth)):
            ratio = int(float(str(self.ratios[i])))
            x = part["blocks"][f"{i}-{int(self.heads[i])}-{ratio}"](x)
        out: Tensor = part["head"](part["norm"](x)[:, 1:].mean(1))
        return out


def rows(quick: bool) -> Iterator[Row]:
    """One row for each way to share."""
    torch.set_num_threads(1)
    seeds, passes = range(1 if quick else 3), 40 if quick else 1500
    common: dict[str, Any] = {
        "task": digits().task, "recipe": RECIPE, "truth_steps": 20 if quick else 600, "truth_seeds": 1,
        "networks": 4 if quick else 18,
    }  # fmt: skip
    folder = Path("runs/autoformer") / ("quick" if quick else "full")
    entangled = Comparison(network=lambda: autoformer.AutoFormer(10, 1, (8, 8)), folder=folder / "entangled", **common)
    classical = Comparison(network=lambda: Classical(10, 1, (8, 8)), folder=folder / "classical", **common)
    classical.__dict__["architectures"] = entangled.architectures  # the same networks, of the same names
    alone = [100 * accuracy for accuracy, _ in entangled.truth]
    yield _row("trained alone", [alone], [])
    ways = (("entangled", entangled, passes), ("classical", classical, passes), ("after one pass", entangled, 1))
    for name, one, count in ways:
        found = [one.trained("spos", seed, count)["scores"] for seed in seeds]
        accuracies = [[100 * accuracy for accuracy, _ in scores] for scores in found]
        losses = [loss for _, loss in entangled.truth]
        taus = [kendall_tau([loss for _, loss in scores], losses) for scores in found]
        yield _row(name, accuracies, taus)


def _row(what: str, accuracies: Sequence[Sequence[float]], taus: Sequence[float]) -> Row:
    means = [float(np.mean(one)) for one in accuracies]
    return {
        "weights": what, "mean": _told(means, 1), "smallest": _told([min(one) for one in accuracies], 1),
        "largest": _told([max(one) for one in accuracies], 1), "tau": _told(list(taus), 2) if taus else None,
    }  # fmt: skip


def _told(values: list[float], digits_: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits_}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits_}f}{spread}"
