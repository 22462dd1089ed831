# SPDX-License-Identifier: Apache-2.0
"""Learners of shared weights at equal passes, 5 seeds: how their sub-networks fare, beside uniform sampling.

Noisy digits (500 images to train), the elastic MobileNet for 8x8 images, one recipe, batches of 64; see
`oneshot_common`. Accuracies in percent, of 1,297 images: of the largest and the smallest sub-network, and the mean over
30 from small to large. tau: Kendall's, between the losses of those 32 with shared weights and trained alone (600 steps,
3 seeds). gap: how many points the 30 are behind their twins that were trained from scratch for as many passes as the
whole supernet had, the mean over three of them. against uniform: the difference of the mean accuracy to uniform
sampling (SPOS) with the same seed, and its 95 % interval. Passes are forward-backward passes of a batch.

Three learners deploy something else than sub-networks of a supernet:

- neas: its sub-networks are members of ensembles; as trained, and with no option dropped. ensembles: pairs that share
  nothing, of each of the 30 and the next, so that each is a member of two.
- supertickets: it trains the largest network. Sub-networks are cut out of its ticket, 80 % of whose weights are zero,
  and out of the dense network before the last pruning (unpruned), the most important channels first (`sort_channels`);
  channels that were taken out are zeros. hold=1: weights never return.
- bossnas: it has no weights to deploy, and no logits. tau is that of its ratings, on 256 held-out images without their
  labels; so it is for an untrained supernet, rated alike. Projections are 64 and 32 wide.

What is trained is kept in runs/oneshot-digits, or SARTOR_OUT, and several processes may share the work.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from oneshot_common import Comparison, Network, digits, spread, summary
from sartor.evaluation import specialised
from sartor.nn.channels import Channels, channels_of, shrink
from sartor.permutation import sort_channels
from sartor.ranking import kendall_tau
from sartor.spaces.mobilenet import InvertedResidual
from sartor.supernet import extract, recalibrate_batchnorm

Row = Mapping[str, str | float | int | None]

METHODS = (
    "spos", "fairnas", "slimmable", "universally_slimmable", "ofa", "bignas", "attentivenas", "alphanet",
    "shiftnas", "pa_da", "few_shot", "gm_nas", "netadaptv2", "mixture_of_supernets",
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "bignas, half on labels": ("bignas", {"label_share": 0.5}),  # as `sartor train` has it
}
BASELINE = "spos"
PASSES, SEEDS = 2400, 5
SCRATCH = (0, 16, 31)  # of the architectures: those trained from scratch for as long as the supernet


def rows(quick: bool) -> Iterator[Row]:
    """A row per learner, then one for the networks trained alone."""
    comparison = digits()
    passes, seeds = (40, range(2)) if quick else (PASSES, range(SEEDS))
    *learners, alone = compared(comparison, (*METHODS, *VARIANTS, *OTHERS), passes, seeds)
    yield from learners
    yield from rated(comparison, passes, seeds)
    yield alone


def compared(comparison: Comparison, methods: Sequence[str], passes: int, seeds: Sequence[int]) -> Iterator[Row]:
    """A row per learner, the mean and standard deviation over the seeds."""

    def trained(name: str, seed: int) -> Mapping[str, Any]:
        if name in OTHERS:
            return OTHERS[name](comparison, seed, passes)
        method, given = VARIANTS.get(name, (name, {}))
        return comparison.trained(method, seed, passes, **given)

    found = {name: [trained(name, seed) for seed in seeds] for name in ordered(methods)}
    alone = [[comparison.alone(comparison.architectures[i], passes, seed)[0] for i in SCRATCH] for seed in seeds]
    base = [summary(comparison, one) for one in found[BASELINE]]
    for name in methods:
        told = [summary(comparison, one) for one in found[name]]
        gaps = [100 * np.mean([alone[s][k] - found[name][s]["scores"][i][0] for k, i in enumerate(SCRATCH)])
                for s in range(len(alone))]  # fmt: skip
        yield {
            "learner": name,
            **{key: spread([one[key] for one in told]) for key in ("largest", "mean", "smallest")},
            "tau": spread([one["tau"] for one in told], 2),
            "gap": spread(gaps),
            "against uniform": "" if name == BASELINE else difference(told, base),
            **cost(found[name]),
        }
        if "ensembles" in found[name][0]:
            means = [100 * float(np.mean(one["ensembles"])) for one in found[name]]
            yield {"learner": f"{name}, ensembles", "mean": spread(means)}
    accuracies = [100 * a for a, _ in comparison.truth]
    yield {"learner": "each alone", "largest": accuracies[0], "smallest": accuracies[1],
           "mean": float(np.mean(accuracies[2:])), "passes": comparison.truth_steps * len(accuracies)}  # fmt: skip


def cost(found: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """The mean effort, and the median of the CPU seconds."""
    efforts = {key: int(np.mean([one["effort"][i] for one in found])) for i, key in enumerate(EFFORT)}
    return {**efforts, "CPU s": float(np.median([one["cpu_s"] for one in found]))}


EFFORT = ("passes", "looks", "updates")


def ordered(methods: Sequence[str]) -> Sequence[str]:
    """The learners from the front, or for a second process (SARTOR_BACKWARDS) from the back."""
    return methods[::-1] if os.environ.get("SARTOR_BACKWARDS") else methods


def difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> str:
    """The mean paired difference of the mean accuracy, and its 95 % interval."""
    from scipy.stats import t

    each = np.array([one["mean"] - other["mean"] for one, other in zip(ours, theirs, strict=True)])
    half = float(t.ppf(0.975, len(each) - 1)) * float(np.std(each, ddof=1)) / len(each) ** 0.5
    return f"{each.mean():+.1f} ± {half:.1f}"


# ---- NEAS -----------------------------------------------------------------------------------------


def neas(comparison: Comparison, seed: int, passes: int, **given: Any) -> Mapping[str, Any]:
    """Scores of the sub-networks, one by one, and accuracies of pairs of neighbours that share no block."""
    label = "-".join(["neas", *(f"{key}={value}" for key, value in given.items())])
    return comparison._kept(f"{label}-{passes}-{seed}", lambda: _neas(comparison, seed, passes, given))


def _neas(comparison: Comparison, seed: int, passes: int, given: Mapping[str, Any]) -> Mapping[str, Any]:
    learner, seconds = comparison.learned("neas", seed, passes, **given)
    archs, middle = comparison.architectures, comparison.architectures[2:]
    ring = zip(middle, [*middle[1:], middle[0]], strict=True)
    pairs = [learner.whole.encoded(pair, learner.whole.blocks) for pair in ring]
    return {
        "scores": [comparison.score(comparison.specialised(learner, arch)) for arch in archs],
        "ensembles": [comparison.score(comparison.specialised(learner, pair))[0] for pair in pairs],
        "effort": list(learner.effort),
        "cpu_s": seconds,
    }


# ---- SuperTickets ---------------------------------------------------------------------------------


class Named(InvertedResidual):
    """An inverted residual that names its hidden channels, once extracted; SuperTickets takes out such."""

    def channels(self) -> Channels:
        """The hidden channels, and what holds them; the gate reads them, and makes as many factors."""
        gate: Any = self.squeeze if hasattr(self.squeeze, "reduce") else None
        made: Any = (self.expand_conv, *([gate.expand] if gate else []))
        norms: Any = (self.expand_norm, self.depth_norm)
        read: Any = (self.project_conv, *([gate.reduce] if gate else []))
        return Channels(norms[1], made, norms, (self.depth_conv,), read, self)


def named(network: Network) -> nn.Module:
    """A network whose blocks name their channels."""
    net = network()
    for module in net.modules():
        if isinstance(module, InvertedResidual):
            module.__class__ = Named
    return net


def tickets(comparison: Comparison, seed: int, passes: int, *, dense: bool = False, hold: float = 0) -> Any:
    """Scores of what is cut out of the ticket of a training, or of the dense network that it has in the end."""
    label = f"supertickets-hold={hold:g}-{passes}-{seed}"
    found = comparison._kept(label, lambda: _tickets(comparison, seed, passes, hold))
    return {**found, "scores": found["dense" if dense else "ticket"]}


def _tickets(comparison: Comparison, seed: int, passes: int, hold: float) -> Mapping[str, Any]:
    comparison = replace(comparison, network=partial(named, comparison.network))
    learner, seconds = comparison.learned("supertickets", seed, passes, hold=hold)
    found: dict[str, Any] = {"effort": list(learner.effort), "cpu_s": seconds}
    found["left"] = [sum(map(len, learner.kept.values())), sum(learner.whole.values())]
    for name, plain in {"ticket": learner.ticket(), "dense": learner.ticket(0.0)}.items():
        torch.manual_seed(seed)
        net = supernet(comparison, learner.kept, plain)
        recalibrate_batchnorm(plain, comparison.calibration)
        whole = specialised(net, comparison.space.largest(), comparison.calibration)
        if abs(comparison.score(whole)[1] - comparison.score(plain.eval())[1]) > 1e-4:
            raise RuntimeError(f"the {name} changed on its way into the supernet")
        sort_channels(net)
        networks = [specialised(net, arch, comparison.calibration) for arch in comparison.architectures]
        found[name] = [comparison.score(network) for network in networks]
    return found


@torch.no_grad()
def supernet(comparison: Comparison, kept: Mapping[str, Sequence[int]], plain: nn.Module) -> nn.Module:
    """The supernet with the weights of its largest network, of which `kept` channels are left; the others are 0.

    A supernet whose every number is its own place tells where the plain network's come from.
    """
    net = comparison.network()
    places, values = copy.deepcopy(net).double(), [t for t in net.state_dict().values() if t.is_floating_point()]
    ends = np.cumsum([0, *(value.numel() for value in values)]).tolist()
    floats = [t for t in places.state_dict().values() if t.is_floating_point()]
    for tensor, start, end in zip(floats, ends, ends[1:], strict=False):
        tensor.copy_(torch.arange(start, end).view(tensor.shape))
    largest = extract(places, comparison.space.largest())
    flat = torch.cat([value.flatten() for value in values])
    for one in channels_of(largest).values():
        for layer, name, _ in one.places():
            if (tensor := getattr(layer, name)) is not None:
                flat[tensor.long().flatten()] = 0.0
    for path, one in channels_of(largest).items():
        shrink(one, kept[path])
    weights = plain.state_dict()
    for name, tensor in largest.state_dict().items():
        if tensor.is_floating_point():
            flat[tensor.long().flatten()] = weights[name].flatten()
    for value, start, end in zip(values, ends, ends[1:], strict=False):
        value.copy_(flat[start:end].view(value.shape))
    return net


OTHERS: Mapping[str, Callable[[Comparison, int, int], Mapping[str, Any]]] = {
    "neas": neas,
    "neas, nothing dropped": lambda comparison, seed, passes: neas(comparison, seed, passes, shrinks=0),
    "supertickets": tickets,
    "supertickets, unpruned": lambda comparison, seed, passes: tickets(comparison, seed, passes, dense=True),
    "supertickets, hold=1": lambda comparison, seed, passes: tickets(comparison, seed, passes, hold=1),
}


# ---- BossNAS --------------------------------------------------------------------------------------


def rated(comparison: Comparison, passes: int, seeds: Sequence[int]) -> Iterator[Row]:
    """Rows of BossNAS, and of the same without training: tau alone."""
    truth = [loss for _, loss in comparison.truth]
    for name, still in {"bossnas": False, "bossnas, untrained": True}.items():
        found = [ratings(comparison, seed, passes, still) for seed in seeds]
        tau = [kendall_tau(one["ratings"], truth) for one in found]
        yield {"learner": name, "tau": spread(tau, 2), **({} if still else cost(found))}


def ratings(comparison: Comparison, seed: int, passes: int, still: bool = False) -> Mapping[str, Any]:
    """BossNAS's ratings of the 32 networks, the lower the better."""
    label = f"bossnas{'-untrained' * still}-{passes}-{seed}"
    return comparison._kept(label, lambda: _ratings(comparison, seed, passes, still))


def _ratings(comparison: Comparison, seed: int, passes: int, still: bool) -> Mapping[str, Any]:
    given: dict[str, Any] = {"hidden": 64, "features": 32, "validation": [comparison.held_out[0][0][:256]]}
    if still:  # a step for each of its two blocks, which changes nothing
        passes, recipe = 16, replace(comparison.recipe, lr=0.0)
        given |= {"recipe": recipe, "momentum": (1.0, 1.0)}
    learner, seconds = comparison.learned("bossnas", seed, passes, **given)
    scores = [learner.score(arch) for arch in comparison.architectures]
    return {"ratings": scores, "effort": list(learner.effort), "cpu_s": seconds}
