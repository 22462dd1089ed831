# SPDX-License-Identifier: Apache-2.0
"""Steps and extraction of a GPT supernet, beside the `whittle` package: CPU milliseconds, one thread.

The same network, 6 blocks of width 256 with rotary positions, with the same weights, and the same architectures on both
sides, 4 sequences of 128 tokens. A step puts a sub-network in force, takes its forward and backward pass and updates
the weights with AdamW, as each library's training does: whittle's by torch's default, ours in one pass over the
weights. The two passes are a row of their own. Extraction is `extract`, and `extract_current_sub_network` of the same
sub-networks; whittle's takes equal blocks alone, so all have those. All are taken in turns, each library in a process
of its own.

Before that, the logits of several sub-networks are compared in eval mode: ours with the weights of theirs (the largest
difference over the largest logit), and the extracted sub-network's with those in place (the largest difference).

`benchmarks/peers/setup whittle` makes the environment.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from peer import Library, Process
from sartor.architecture import Architecture
from sartor.oneshot import Recipe
from sartor.oneshot._training import Training
from sartor.spaces.gpt import GPT
from sartor.supernet import activated, extract, search_space

Row = Mapping[str, str | float | int | None]
WHITTLE = Library("whittle 0.6.0", "whittle", "whittle_step.py")
ASKED = {"vocabulary": 1000, "length": 128, "layers": 6, "width": 256, "head": 64, "batch": 4}
STEP_GOAL, TOLERANCE = 0.8, 1e-5


def rows(quick: bool) -> Iterator[Row]:
    """The outputs, then the two times."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Process(WHITTLE, {**ASKED, "folder": folder}) as peer:
        network = GPT(1000, 128, width=(128, 192, 256), heads=(2, 3, 4), ratio=(2, 3, 4), depth=(2, 4, 6), tied=False)
        network.load_state_dict(weights(load_file(f"{folder}/weights.safetensors")))
        tokens = load_file(f"{folder}/tokens.safetensors")["tokens"]
        archs = _architectures(network, 2 if quick else 6)
        yield from _outputs(network, tokens, archs, peer, folder)
        yield from _times(network, tokens, archs, peer, 2 if quick else 9)


def weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of whittle's network, by our names."""
    found = {
        "tokens.weight": theirs["transformer.wte.weight"],
        "head.weight": theirs["lm_head.weight"],
        "norm.weight": theirs["transformer.ln_f.weight"],
        "norm.bias": theirs["transformer.ln_f.bias"],
    }
    names = {
        "attention_norm": "norm_1", "mlp_norm": "norm_2", "attention.out_proj": "attn.proj",
        "fc1": "mlp.fc", "fc2": "mlp.proj",
    }  # fmt: skip
    for i in range(6):
        for kind in ("weight", "bias"):
            for name, their in names.items():
                found[f"blocks.{i}.{name}.{kind}"] = theirs[f"transformer.h.{i}.{their}.{kind}"]
            for name, part in zip("qkv", theirs[f"transformer.h.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                found[f"blocks.{i}.attention.{name}_proj.{kind}"] = part
    return found


def _outputs(network: GPT, tokens: Tensor, archs: list[Architecture], peer: Process, folder: str) -> Iterator[Row]:
    """How far apart the two libraries are, and ours in place from our extracted sub-networks."""
    worst = between = 0.0
    network.eval()
    for arch in archs:
        peer.answer({"do": "outputs", "arch": asked(arch)})
        theirs = load_file(f"{folder}/outputs.safetensors")["logits"]
        with torch.no_grad(), activated(network, arch):
            ours = network(tokens[:, :-1])
            alone = extract(network, arch)(tokens[:, :-1])
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        between = max(between, float((ours - alone).abs().max()))
    network.train()
    for what, value, goal in (
        ("logits beside whittle's, relative", worst, TOLERANCE), ("logits in place beside extracted", between, 0.0)
    ):  # fmt: skip
        yield _row(what, error=value, goal=goal)


def _times(network: GPT, tokens: Tensor, archs: list[Architecture], peer: Process, repeats: int) -> Iterator[Row]:
    recipe = Recipe(optimizer="adamw", lr=1e-4, lr_batch=4, schedule="constant", weight_decay=0.01, label_smoothing=0.0)
    training = Training(network, steps=1000, batch_size=4, recipe=recipe)
    calls: dict[str, Callable[[Architecture], float]] = {
        "update": partial(_update, training, tokens),
        "step": partial(_passes, network, tokens),
        "extract": partial(_extraction, network),
    }
    told = {"update": ("step with AdamW", STEP_GOAL), "step": ("its two passes", None), "extract": ("extraction", 0.8)}
    for what, call in calls.items():
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(repeats + 1):
            for arch in archs:
                own = call(arch)
                other = peer.answer({"do": what, "arch": asked(arch)})
                if turn:  # the first warms up
                    ours.append(1e3 * own)
                    theirs.append(1e3 * other)
        ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
        name, goal = told[what]
        yield _row(f"{name}, CPU ms", ours, theirs, statistics.median(ratios), goal)


def _row(
    what: str,
    ours: list[float] | None = None,
    theirs: list[float] | None = None,
    error: float = 0.0,
    goal: float | None = None,
) -> Row:
    def told(times: list[float] | None) -> str | None:
        return f"{statistics.median(times):.1f} [{min(times):.1f}-{max(times):.1f}]" if times else None

    return {
        "what": what, "ours": told(ours), "whittle": told(theirs), "ratio or error": float(f"{error:.3g}"), "goal": goal
    }  # fmt: skip


def _update(training: Training, tokens: Tensor, arch: Architecture) -> float:
    start = time.process_time()
    for ids, labels in training.parts((tokens[:, :-1], tokens[:, 1:])):
        training.backward(nn.functional.cross_entropy(training.logits(arch, ids), labels))
    training.update()
    return time.process_time() - start


def _passes(network: nn.Module, tokens: Tensor, arch: Architecture) -> float:
    start = time.process_time()
    network.zero_grad(set_to_none=True)
    with activated(network, arch):
        logits = network(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - start


def _extraction(network: nn.Module, arch: Architecture) -> float:
    start = time.process_time()
    extract(network, arch)
    return time.process_time() - start


def asked(arch: Architecture) -> dict[str, Any]:
    """The sub-network as whittle takes it."""
    width, depth = arch["width"], arch["blocks.depth"]
    assert isinstance(width, int)
    heads, ratios = ([arch[f"blocks.{i}.{name}"] for i in range(6)] for name in ("heads", "ratio"))
    hidden = [width * ratio for ratio in ratios if isinstance(ratio, int)]
    return {"width": width, "layers": depth, "heads": heads, "hidden": hidden}


def _architectures(network: nn.Module, count: int) -> list[Architecture]:
    """The largest, the smallest, and random ones, whose blocks are equal."""
    space, rng = search_space(network), random.Random(0)
    found = [space.largest(), space.smallest()]
    for _ in range(count):
        values = dict(space.sample(rng))
        for name in ("heads", "ratio"):
            same = rng.choice(space.choices["blocks.0." + name])
            values |= {f"blocks.{i}.{name}": same for i in range(6)}
        found.append(Architecture(values))
    return found
