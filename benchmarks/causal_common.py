# SPDX-License-Identifier: Apache-2.0
"""What sub-networks of LLaMA-NAS are compared on: two small Llamas, cuts of them, and equal fine-tuning for all.

A cut keeps some layers of the trained network and the best neurons of each MLP; neurons are sorted once, by the same
scores, for cuts and for the supernet. All that is fine-tuned has one loss, half of it the divergence from a teacher:
for a cut the network it was cut from, for a sub-network the full one. What was computed is kept in a folder.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from causal_data import LENGTH, VOCABULARY, Windows, texts
from sartor.adapt import elastic, sort_by_importance
from sartor.adapt.importance import taylor
from sartor.adapt.networks import LanguageModel
from sartor.architecture import Architecture
from sartor.atomic import write_json
from sartor.fit import fit
from sartor.oneshot import Recipe, Supervised
from sartor.oneshot._training import Means, Training
from sartor.oneshot.divergences import kl
from sartor.oneshot.llama_nas import RECIPE, LLaMANAS
from sartor.permutation import channel_groups
from sartor.run import Run
from sartor.space import SearchSpace
from sartor.supernet import extract, search_space
from sartor.targets.onnxruntime import OnnxRuntimeTarget
from sartor.targets.timing import rounds
from stories import load_llama2c, samples

BATCH = 16
FINE_TUNING = replace(RECIPE, lr=2e-3)  # of the stories; the other network, less settled, forgets at that rate
DISTILLATION = 0.5
SCORING = 8  # batches that neurons are scored by
Values = NDArray[np.float64]


class Shape(NamedTuple):
    """Layers that are kept, in order, and the width of the MLP of each of them."""

    layers: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """A trained network with its data, the options of the supernet, and the folder of what was computed."""

    name: str
    base: Callable[[], Any]
    train: Windows
    validation: Windows
    test: Windows
    depth: tuple[int, ...]
    mlp: tuple[int, ...]
    steps: int
    folder: Path
    seed: int = 0
    recipe: Recipe = FINE_TUNING
    distillation: float = DISTILLATION
    given: Mapping[str, Any] = field(default_factory=dict)

    # ---- networks -------------------------------------------------------------------------------

    def elastic(self, network: nn.Module, depth: Sequence[Any], mlp: Sequence[int]) -> nn.Module:
        """The network, elastic in these options, in place."""
        return elastic(network, depth=list(depth), mlp=list(mlp))

    @cached_property
    def ranked(self) -> tuple[dict[str, Any], list[Values]]:
        """The weights of the trained network with the neurons of each MLP sorted, and their scores by layer."""
        net = elastic(LanguageModel(copy.deepcopy(self.base())), mlp=list(self.mlp))
        batches = [self.train.batch(10**6 + i, BATCH) for i in range(SCORING)]
        sort_by_importance(net, batches)
        scores = [one.numpy().astype(float) for one in taylor(net, channel_groups(net), batches)]
        return {key: value.clone() for key, value in net.state_dict().items()}, scores

    def whole(self) -> LanguageModel:
        """The trained network, neurons sorted."""
        net = LanguageModel(copy.deepcopy(self.base()))
        net.load_state_dict(self.ranked[0])
        return net.eval()

    def supernet(self) -> nn.Module:
        """The trained network with all options."""
        full = len(self.base().model.layers)
        return self.elastic(self.whole(), [spaced(full, depth) for depth in self.depth], self.mlp)

    @cached_property
    def space(self) -> SearchSpace:
        """All sub-networks."""
        return search_space(self.supernet())

    def shape(self, arch: Mapping[str, Any]) -> Shape:
        """What an architecture of the space keeps."""
        depth = next(value for name, value in arch.items() if name.endswith(".depth"))
        layers = tuple(range(depth)) if isinstance(depth, int) else tuple(depth)
        widths = [arch[name] for name in sorted(n for n in arch if n.endswith(".mlp"))]
        return Shape(layers, tuple(widths[i] for i in layers))

    def cut(self, shape: Shape) -> LanguageModel:
        """The trained network, cut: no weight is changed."""
        net = self.elastic(self.whole(), [shape.layers], sorted({*shape.widths, self.mlp[-1]}))
        widths = dict(zip(shape.layers, shape.widths, strict=True))
        values: dict[str, Any] = {}
        for name in search_space(net).choices:
            last = [int(part) for part in name.split(".") if part.isdigit()]
            values[name] = shape.layers if name.endswith(".depth") else widths.get(last[-1], self.mlp[-1])
        found: LanguageModel = extract(net, values)  # type: ignore[assignment]
        return found.eval()

    def parameters(self, shape: Shape) -> int:
        """How many there are; what is tied counts once."""
        model = self.base()
        layer = model.model.layers[0]
        hidden = model.config.hidden_size
        fixed = sum(p.numel() for name, p in layer.named_parameters() if ".mlp." not in f".{name}")
        ends = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.model.layers.parameters())
        return int(ends + len(shape.layers) * fixed + 3 * hidden * sum(shape.widths))

    # ---- training -------------------------------------------------------------------------------

    def tuned(
        self, shape: Shape, steps: int, start: Callable[[], nn.Module] | None = None
    ) -> tuple[LanguageModel, float]:
        """A cut that was fine-tuned for `steps` passes, the network that it was cut from as its teacher; CPU s.

        start: makes what training starts from, such as a sub-network of the shape, instead of the cut.
        """

        def train() -> nn.Module:
            network, teacher = (start or partial(self.cut, shape))(), self.whole()
            training = Training(network, steps=steps, batch_size=BATCH, recipe=self.recipe, means=Means())
            for step in range(steps):
                for ids, labels in training.parts(self.train.batch(step, BATCH)):
                    with torch.no_grad():
                        told = teacher(ids).flatten(0, 1)
                    logits = training.logits({}, ids)
                    own = (1 - self.distillation) * F.cross_entropy(logits, labels)
                    training.backward(own + self.distillation * kl(logits, told))
                training.update()
            return network

        label = "-".join([*map(str, shape.layers), "x", *map(str, shape.widths)])
        kind = f"cut-{label}-{steps}" if start is None else f"sub-{self.steps}-{label}-{steps}"
        network, seconds = self._weights(kind, train, lambda: self.cut(shape))
        return network.eval(), seconds  # type: ignore[return-value]

    def learned(self) -> tuple[nn.Module, float]:
        """The supernet after `steps` steps of LLaMA-NAS, and the CPU seconds of that."""

        def train() -> nn.Module:
            net = self.supernet()
            learner = LLaMANAS(
                net, self.space, steps=self.steps, batch_size=BATCH, seed=self.seed, recipe=self.recipe,
                distillation=self.distillation, teacher=self.whole(), **self.given,
            )  # fmt: skip
            fit(learner, self.train, steps=self.steps, batch_size=BATCH, seed=self.seed, progress=_quiet)
            return net

        label = "-".join([f"llama-nas-{self.steps}", *(f"{k}={v}" for k, v in self.given.items())])
        net, seconds = self._weights(label, train, self.supernet)
        return net.eval(), seconds

    def _weights(
        self, label: str, train: Callable[[], nn.Module], blank: Callable[[], nn.Module]
    ) -> tuple[nn.Module, float]:
        path = self._path(f"{label}-{self.recipe.lr:g}-{self.distillation:g}.safetensors")
        if path.is_file():
            net = blank()
            safetensors.torch.load_model(net, path)
            return net, float(json.loads(path.with_suffix(".json").read_bytes())["cpu_s"])
        before = time.process_time()
        net = train()
        seconds = time.process_time() - before
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path.with_suffix(".json"), {"cpu_s": seconds})
        safetensors.torch.save_model(net, str(path))
        return net, seconds

    # ---- numbers --------------------------------------------------------------------------------

    def kept(self, label: str, made: Callable[[], Any]) -> Any:
        """What `made` returns, from the folder if it is there."""
        path = self._path(f"{label}-{self.recipe.lr:g}-{self.distillation:g}.json")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"value": made()})
        return json.loads(path.read_bytes())["value"]

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.name}-{self.seed}" / name

    def measured(self, networks: Mapping[str, nn.Module], seconds: float = 1.0) -> dict[str, float]:
        """Latency in ms of a sequence on ONNX Runtime, one thread, all networks in the same shuffled rounds.

        It is the processor time of the thread: where a dozen processes share a core, wall-clock time tells who waited.
        """
        target = OnnxRuntimeTarget()
        example = next(self.test.batches(1))[0].contiguous()
        folder = self._path("onnx")
        artefacts = [target.prepare(net, (example,), (), folder / str(i)) for i, net in enumerate(networks.values())]
        calls = [partial(target.runner(one), example.numpy()) for one in artefacts]
        timings = rounds(calls, budget_s=seconds * len(calls), seed=0, clock=time.process_time, runs=3)
        return {name: 1000 * float(np.median(one.medians)) for name, one in zip(networks, timings, strict=True)}


@torch.no_grad()
def losses(network: nn.Module, windows: Windows) -> Values:
    """The mean negative log-likelihood in nats of the tokens of each window, (windows,)."""
    network.eval()
    found = [
        F.cross_entropy(network(ids).transpose(1, 2), labels, reduction="none").mean(1)
        for ids, labels in windows.batches(16)
    ]
    return torch.cat(found).double().numpy()


def perplexity(values: Values | Sequence[float]) -> float:
    """Of losses of windows of equal length."""
    return float(np.exp(np.mean(values)))


def cuts(study: Study) -> dict[str, Shape]:
    """The cuts that are compared: uniform in depth, first layers or evenly spaced, or in width, and pruned."""
    full, widest = len(study.base().model.layers), study.mlp[-1]
    found = {}
    for depth in sorted(study.depth)[-2::-1]:
        found[f"first {depth} layers"] = Shape(tuple(range(depth)), (widest,) * depth)
        found[f"{depth} layers, spaced"] = Shape(spaced(full, depth), (widest,) * depth)
    for width in sorted(study.mlp)[-2::-1]:
        found[f"MLP {width}"] = Shape(tuple(range(full)), (width,) * full)
    for width in sorted(study.mlp)[-2::-1]:
        found[f"Taylor, {width} on average"] = Shape(tuple(range(full)), pruned(study.ranked[1], width * full))
    return found


def spaced(full: int, depth: int) -> tuple[int, ...]:
    """So many of the layers, evenly spaced, the first and the last among them."""
    return tuple(int(i) for i in np.linspace(0, full - 1, depth).round())


def pruned(scores: Sequence[Values], keep: int, least: int = 4) -> tuple[int, ...]:
    """How many neurons each layer keeps if the `keep` of the highest scores in the network stay, `least` in each."""
    place = np.concatenate([np.full(len(one), layer) for layer, one in enumerate(scores)])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    counts = np.bincount(place[order[:keep]], minlength=len(scores))
    return tuple(max(least, int(count)) for count in counts)


# ---- the two networks -------------------------------------------------------------------------------


def stories(seed: int, folder: Path | None = None, *, steps: int = 200, sequences: int = 2048) -> Study:
    """The trained Llama of `SARTOR_STORIES` on its own samples; those for training differ with the seed."""
    folder = folder or default_folder()
    model = load_llama2c(Path(os.environ["SARTOR_STORIES"]) / "stories260K.bin")

    def drawn(name: str, count: int, own: int) -> Windows:
        path = folder / f"samples-{name}-{count}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file({"tokens": samples(model, count, LENGTH + 1, own)}, path)
        return Windows(safetensors.torch.load_file(path)["tokens"], seed=seed)

    return Study(
        "stories", lambda: model, drawn(f"train-{seed}", sequences, 100 + seed), drawn("validation", 64, 1),
        drawn("test", 256, 2), (3, 4, 5), (88, 116, 144, 172), steps, folder, seed,
    )  # fmt: skip


TEXT_STEPS = 1200
TEXT_RECIPE = replace(RECIPE, lr=2e-3)


def text(seed: int, folder: Path | None = None, *, steps: int = 120) -> Study:
    """A Llama of 4.9 million parameters, trained on the texts of `SARTOR_TEXT` for 1,200 steps of 16 x 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = folder or default_folder()
    train, validation, test = texts(Path(os.environ["SARTOR_TEXT"]), folder / "tokenizer.json")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=640, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LanguageModel(LlamaForCausalLM(config))
    learner = Supervised(network, steps=TEXT_STEPS, batch_size=BATCH, recipe=TEXT_RECIPE)
    with Run.create(folder / "text-base", {"seed": 0}, resume=True) as run:
        fit(learner, train, steps=TEXT_STEPS, batch_size=BATCH, run=run, every=100, progress=_quiet)
    return Study(
        "text", lambda: network.eval().model, replace(train, seed=100 + seed), validation.first(32), test.first(96),
        (4, 5, 6), (256, 384, 512, 640), steps, folder, seed, recipe=replace(RECIPE, lr=5e-4),
    )  # fmt: skip


def default_folder() -> Path:
    """Where all is kept."""
    return Path(os.environ.get("SARTOR_OUT") or Path(__file__).parents[1] / "runs" / "llama-nas")


def network_of(supernet: nn.Module, arch: Architecture) -> nn.Module:
    """A sub-network with the weights it shares."""
    return extract(supernet, arch).eval()


def _quiet(done: int, steps: int, scalars: Mapping[str, float]) -> None:
    return None
