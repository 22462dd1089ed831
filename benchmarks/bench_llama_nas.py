# SPDX-License-Identifier: Apache-2.0
"""LLaMA-NAS: sub-networks of two small Llamas beside uniform cuts and one-shot pruning, at equal latency and size.

A row per cut: its perplexity on the test part without fine-tuning, and with its share of the supernet's passes (so that
all cuts together cost what the supernet did); then the sub-network that validation prefers among those of LINAS that
are no slower (measured) and among those no larger. A gain is over the cut's better perplexity of the two. Latency: ONNX
Runtime, one thread, one sequence of 128 tokens. Further rows: LINAS beside random search, weights in int8, tokens per
second with a cache. SARTOR_STORIES and SARTOR_TEXT name the folders of the data.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from causal_common import Shape, Study, Values, cuts, losses, network_of, perplexity, stories, text
from oneshot_common import spread
from sartor.architecture import Architecture
from sartor.deploy.quantize import size_in_bytes, weights_int8
from sartor.objective import Objective, costs
from sartor.pareto import hypervolume
from sartor.search import search
from sartor.strategies.linas import LINAS
from sartor.strategies.random_search import RandomSearch
from sartor.supernet import activated
from sartor.targets.decoding import decoding_speed
from sartor.trial import TrialLog

Row = Mapping[str, str | int | float | None]
Told = dict[str, Any]
EVALUATIONS, POPULATION = 100, 25
SLACK = 1.01  # of a measured latency
SEEDS = {"stories": (0, 1, 2), "text": (0, 1, 2)}


def rows(quick: bool) -> Iterator[Row]:
    """The rows of both networks."""
    for name, make, folder in (("stories", stories, "SARTOR_STORIES"), ("text", text, "SARTOR_TEXT")):
        if not os.environ.get(folder) or (quick and name == "text"):
            continue
        made: Callable[..., Study] = partial(make, steps=12) if quick else make
        studies = [made(seed) for seed in ((0,) if quick else SEEDS[name])]
        found = [told(study) for study in studies]
        yield from table(name, found)
        study = studies[0]
        yield from study.kept(f"quantised-{study.steps}", partial(quantised, study, found[0]))
        yield from study.kept(f"decoded-{study.steps}", partial(decoded, study, found[0]))
        if name == "stories":
            yield from study.kept(f"searched-{study.steps}", partial(searched, study, 2 if quick else 10))


def told(study: Study) -> Told:
    """All that is known of a study: losses, and latencies beside them."""
    found: Told = study.kept(f"compared-{study.steps}", partial(compared, study))
    clock = study.kept(f"timed-cpu-{study.steps}", partial(timed, study, found))
    found["full"]["latency"] = clock["latency"]["full"]
    for name, one in found["cuts"].items():
        one |= {"latency": clock["latency"][name], **clock["picks"][name]}
    for key, one in found["archs"].items():
        one["latency"] = clock["latency"][key]
    return found


# ---- cuts and sub-networks --------------------------------------------------------------------------


def compared(study: Study) -> Told:
    """Losses of all cuts, of the full network, and of the sub-networks that validation prefers within bounds."""
    net, seconds = study.learned()
    shapes = cuts(study)
    archs = {arch.id: arch for arch in pool(study, net, list(shapes.values()))}
    share = max(1, study.steps // len(shapes))
    full = study.space.largest()
    found: Told = {
        "passes": study.steps, "share": share, "cpu_s": seconds, "cuts": {}, "archs": {},
        "full": {"size": study.parameters(study.shape(full)), "before": losses(study.whole(), study.test).tolist(),
                 "after": losses(network_of(net, full), study.test).tolist()},
    }  # fmt: skip
    for name, shape in shapes.items():
        tuned, spent = study.tuned(shape, share)
        found["cuts"][name] = {
            "size": study.parameters(shape), "shape": shape, "share s": spent,
            "none": losses(study.cut(shape), study.test).tolist(), "share": losses(tuned, study.test).tolist(),
        }  # fmt: skip
    for key, arch in archs.items():
        shape = study.shape(arch)
        found["archs"][key] = {"arch": dict(arch), "size": study.parameters(shape), "shape": shape,
                               "losses": losses(network_of(net, arch), study.test).tolist()}  # fmt: skip
    return found


def pool(study: Study, net: nn.Module, shapes: Sequence[Shape]) -> list[Architecture]:
    """What LINAS found best no larger than each cut, and no slower, or a little faster, by the line of latencies."""
    predicted = latency_model(study)
    trials = searched_front(study, net, predicted)
    found = []
    for shape in shapes:
        found += best(trials, "size", study.parameters(shape))[:1]
        for part in (1.0, 0.97):
            found += best(trials, "latency", part * predicted(shape))[:2]
    return list(dict.fromkeys(found))


def timed(study: Study, found: Told) -> Told:
    """Latencies of all that was compared, in the same rounds, and which sub-network stands against each cut.

    It is the one of the lowest loss on the validation part of those that are no slower, and of those no larger.
    """
    net, _ = study.learned()
    archs = {key: study.space.canonical(one["arch"]) for key, one in found["archs"].items()}
    networks: dict[str, nn.Module] = {"full": study.whole()}
    networks |= {name: study.cut(Shape(*map(tuple, one["shape"]))) for name, one in found["cuts"].items()}
    networks |= {key: network_of(net, arch) for key, arch in archs.items()}
    latency = study.measured(networks)
    loss = {key: float(losses(networks[key], study.validation).mean()) for key in archs}
    picks: Told = {}
    for name, one in found["cuts"].items():
        fast = [key for key in archs if latency[key] <= SLACK * latency[name]]
        small = [key for key in archs if found["archs"][key]["size"] <= one["size"]]
        picks[name] = {
            kind: min(keys, key=loss.__getitem__, default=None) for kind, keys in (("fast", fast), ("small", small))
        }
    return {"latency": latency, "picks": picks}


def best(trials: TrialLog, what: str, most: float) -> list[Architecture]:
    """The architectures of at most so much latency or size by their loss on the validation part, the lowest first."""
    able = [trial for trial in trials if trial.state == "done" and trial.values[what] <= most]
    return [trial.arch for trial in sorted(able, key=lambda trial: trial.values["loss"])]


def latency_model(study: Study) -> Callable[[Shape], float]:
    """Latency by layers and neurons, a line through measurements of a dozen sub-networks."""
    rng = random.Random("latency")
    space = study.space
    archs = [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(8))]
    shapes = [study.shape(arch) for arch in archs]

    def measured() -> list[float]:
        networks = {str(i): study.cut(shape) for i, shape in enumerate(shapes)}
        return list(study.measured(networks).values())

    features = np.array([(1.0, len(one.layers), sum(one.widths)) for one in shapes])
    line, *_ = np.linalg.lstsq(features, np.array(study.kept("latency", measured)), rcond=None)
    return lambda shape: float(line @ (1.0, len(shape.layers), sum(shape.widths)))


def objectives(study: Study, loss: Callable[[Architecture], float], latency: Callable[[Shape], float]) -> Any:
    """Loss, predicted latency and parameters."""
    return (
        Objective("loss", loss),
        Objective("latency", lambda arch: latency(study.shape(arch)), cheap=True),
        Objective("size", lambda arch: float(study.parameters(study.shape(arch))), cheap=True),
    )


def searched_front(study: Study, net: Any, latency: Callable[[Shape], float]) -> TrialLog:
    """The trials of LINAS on the supernet."""

    def loss(arch: Architecture) -> float:
        with activated(net, arch):
            return float(losses(net, study.validation).mean())

    asked = objectives(study, loss, latency)
    strategy = LINAS(study.space, asked, population=POPULATION, evaluations=5000)
    return search(study.space, strategy, asked, trials=EVALUATIONS, seed=study.seed)


def table(name: str, found: Sequence[Told]) -> Iterator[Row]:
    """A row per cut, means and deviations over the seeds."""
    full = [one["full"] for one in found]
    yield {
        "network": name, "cut": "none", "parameters": full[0]["size"], "latency ms": spread_of(full, "latency", 3),
        "untuned": ppl([one["before"] for one in full]), "sub-network, as fast": ppl([one["after"] for one in full]),
        "passes": found[0]["passes"], "CPU s": round(float(np.mean([one["cpu_s"] for one in found])), 1),
    }  # fmt: skip
    for cut in found[0]["cuts"]:
        ours = [one["cuts"][cut] for one in found]
        row: dict[str, Any] = {
            "network": name, "cut": cut, "parameters": ours[0]["size"], "latency ms": spread_of(ours, "latency", 3),
            "untuned": ppl([one["none"] for one in ours]), "tuned, equal in all": ppl([one["share"] for one in ours]),
        }  # fmt: skip
        for kind, label in (("fast", "as fast"), ("small", "as small")):
            pairs = [(a, b["archs"][a[kind]]) for a, b in zip(ours, found, strict=True) if a[kind]]
            row[f"sub-network, {label}"] = ppl([b["losses"] for _, b in pairs])
            if kind == "fast":
                row["its latency ms"] = spread_of([b for _, b in pairs], "latency", 3) if pairs else ""
            row[f"gain, {label}"] = gain(pairs)
        row["passes"] = found[0]["share"]
        yield row


def gain(pairs: Sequence[tuple[Told, Told]]) -> str:
    """Perplexity of the cut, tuned with its share or untuned, whichever is better, over that of the sub-network.

    The mean over seeds, its 95 % interval over windows, and how many of the seeds the sub-network wins.
    """
    if not pairs:
        return ""
    cut = [min((a["share"], a["none"]), key=np.mean) for a, _ in pairs]
    gaps = np.array([np.subtract(a, b["losses"]) for a, (_, b) in zip(cut, pairs, strict=True)])  # (seeds, windows)
    rng = np.random.default_rng(0)
    drawn = rng.integers(gaps.shape[1], size=(1000, gaps.shape[1]))
    low, high = np.exp(np.percentile(gaps.mean(0)[drawn].mean(1), (2.5, 97.5)))
    return f"x {np.exp(gaps.mean()):.2f} [{low:.2f}, {high:.2f}], {sum(gaps.mean(1) > 0)} of {len(gaps)}"


def ppl(found: Sequence[Values | Sequence[float]]) -> str:
    """Mean and deviation over seeds of a perplexity."""
    values = [perplexity(one) for one in found]
    return spread(values, 2) if len(values) > 1 else "".join(f"{value:.2f}" for value in values)


def spread_of(found: Sequence[Told], key: str, digits: int) -> str:
    """Mean and deviation over seeds."""
    return spread([one[key] for one in found], digits)


# ---- search, int8, decoding -------------------------------------------------------------------------


def searched(study: Study, seeds: int) -> list[Row]:
    """Hypervolume of loss and parameters after 100 evaluations, over that of the whole space."""
    net, _ = study.learned()
    windows = study.validation.first(8)
    known: dict[Architecture, float] = {}
    for arch in every(study):
        with activated(net, arch):
            known[arch] = float(losses(net, windows).mean())
    asked = objectives(study, known.__getitem__, lambda shape: 0.0)
    asked = (asked[0], asked[2])
    points = np.array([[one.measure(arch) for one in asked] for arch in known])
    reference = [float(points[:, 0].max()), 1.01 * float(points[:, 1].max())]
    optimum = hypervolume(points, reference)
    makes: dict[str, Callable[..., Any]] = {
        "LINAS": partial(LINAS, population=POPULATION),
        "random search": partial(RandomSearch, unique=True),
    }
    found: list[Row] = []
    for name, make in makes.items():
        volumes = []
        for seed in range(seeds):
            strategy = make(study.space, asked)
            log = search(study.space, strategy, asked, trials=EVALUATIONS, seed=seed)
            volumes.append(hypervolume(np.array([costs(trial, asked) for trial in log]), reference) / optimum)
        found.append({"network": study.name, "cut": f"{name}, {EVALUATIONS} of {len(known)}, {seeds} seeds",
                      "hypervolume": spread(volumes, 4)})  # fmt: skip
    return found


def every(study: Study) -> list[Architecture]:
    """All architectures of the space, each once."""
    import itertools

    space = study.space
    values = itertools.product(*space.choices.values())
    return list(dict.fromkeys(space.canonical(dict(zip(space.choices, one, strict=True))) for one in values))


def chosen(found: Told, count: int = 5) -> list[Told]:
    """Sub-networks that were compared and that none beats in both loss and size, evenly spaced in size."""
    nets = sorted(found["archs"].values(), key=lambda one: (one["size"], np.mean(one["losses"])))
    front: list[Told] = []
    for one in nets:
        if not front or np.mean(one["losses"]) < np.mean(front[-1]["losses"]):
            front.append(one)
    places = np.linspace(0, len(front) - 1, min(count, len(front))).round().astype(int)
    return [front[i] for i in dict.fromkeys(places.tolist())]


def quantised(study: Study, found: Told) -> list[Row]:
    """Perplexity and bytes of five sub-networks, in float32 and with weights in int8."""
    net, _ = study.learned()
    made: list[Row] = []
    for one in chosen(found):
        network = network_of(net, study.space.canonical(one["arch"]))
        rounded = weights_int8(copy.deepcopy(network))
        before, after = perplexity(one["losses"]), perplexity(losses(rounded, study.test))
        sizes = size_in_bytes(network), size_in_bytes(rounded)
        made.append({
            "network": study.name, "cut": f"int8, {label(one)}", "parameters": one["size"],
            "untuned": f"{before:.3f}", "int8": f"{after:.3f} ({100 * (after / before - 1):+.2f} %)",
            "kB": f"{sizes[0] / 1000:.0f} -> {sizes[1] / 1000:.0f} (/ {sizes[0] / sizes[1]:.2f})",
        })  # fmt: skip
    return made


def decoded(study: Study, found: Told) -> list[Row]:
    """Tokens per second with a cache, of the full network and of three sub-networks."""
    net, _ = study.learned()
    some = chosen(found, 3)
    networks = [study.whole(), *(network_of(net, study.space.canonical(one["arch"])) for one in some)]
    speeds = decoding_speed(networks, study.test.tokens.flatten()[:64][None], tokens=32, seconds=2.0)
    names = ["full", *(label(one) for one in some)]
    return [
        {
            "network": study.name,
            "cut": f"decoding, {name}",
            "tokens/s": f"{one.per_s:.0f} [{one.low:.0f}, {one.high:.0f}]",
            "prompt tokens/s": f"{one.prompt_per_s:.0f} [{one.prompt_low:.0f}, {one.prompt_high:.0f}]",
        }
        for name, one in zip(names, speeds, strict=True)
    ]


def label(one: Told) -> str:
    """The widths of a sub-network, layer by layer."""
    return "/".join(map(str, one["shape"][1]))
