# SPDX-License-Identifier: Apache-2.0
"""A step of DARTS and of GDAS, beside NNI's and XAutoDL's: CPU seconds, one thread.

On DARTS's cells (16 channels, 8 cells) and on NAS-Bench-201's (16 channels, 5 cells a stage): one step of the alphas
and one of the weights, first order, with clipping and both optimisers, on random images of 32x32. Steps are taken in
turns, each library in a process of its own. That the operators are equal is checked by the weights of all convolutions
and linear layers. XAutoDL's convolutions have biases in front of batch norms, ours and NNI's have none; NNI's pools
have no batch norm and its other batch norms have scales. Their steps also compute the gradients that they do not use.

`benchmarks/peers/setup nni` makes NNI's environment, in which XAutoDL's files run, too: `SARTOR_XAUTODL` names a
checkout of AutoDL-Projects, and without it the comparison is with NNI alone, which has no NAS-Bench-201 to compare.
XAutoDL's own network of DARTS's cells cannot have 8 of them and is left out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from peer import Library, Process
from sartor.differentiable.darts import DARTS
from sartor.differentiable.gdas import GDAS
from sartor.spaces.darts import DartsNetwork
from sartor.spaces.nasbench201 import NASBench201
from sartor.supernet import search_space

Row = Mapping[str, str | float | int | None]
GOAL = 0.8
NNI = Library("NNI 3.0", "nni", "nni_darts_step.py")
XAUTODL = Library("XAutoDL", "nni", "xautodl_step.py")


def rows(quick: bool) -> Iterator[Row]:
    """Four comparisons; a row for each library in each of them."""
    folder = os.environ.get("SARTOR_XAUTODL")
    for what, batch, repeats in (("cells", 4, 9), ("cells", 16, 5), ("DARTS", 16, 9), ("GDAS", 16, 25)):
        with ExitStack() as stack:
            peers: dict[str, Process] = {}
            if what == "cells":
                peers[NNI.name] = stack.enter_context(Process(NNI, {"batch": batch}))
            elif folder:
                asked = {"batch": batch, "folder": folder, "network": what}
                peers[XAUTODL.name] = stack.enter_context(Process(XAUTODL, asked))
            yield from compared(what, batch, 2 if quick else repeats, peers)


def compared(what: str, batch: int, repeats: int, peers: Mapping[str, Process]) -> Iterator[Row]:
    """Take steps in turns, two of each unmeasured first."""
    network, step = ours(what, batch)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = sum(module.weight.numel() for module in layers)
    calls: dict[str, Callable[[], float]] = {
        "ours": step,
        **{name: partial(peer.answer, "step") for name, peer in peers.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            seconds = call()
            if turn > 1:
                times[name].append(seconds)
    medians = {name: statistics.median(own) for name, own in times.items()}
    same = {name: peer for name, peer in peers.items() if peer.first["convolutions"] == convolutions}
    best = min((medians[name] for name in same), default=None)
    for name, own in times.items():
        yield {
            "step": {"cells": "DARTS, DARTS's cells"}.get(what, f"{what}, NAS-Bench-201's cell"),
            "batch": batch,
            "library": name,
            "weights of layers": peers[name].first["convolutions"] if name in peers else convolutions,
            "CPU s": round(medians[name], 3),
            "lowest": round(min(own), 3),
            "highest": round(max(own), 3),
            "of the best equal peer": round(medians[name] / best, 3) if best and name == "ours" else None,
            "goal": GOAL if name == "ours" else None,
        }


def ours(what: str, batch: int) -> tuple[nn.Module, Callable[[], float]]:
    """Return our network, and what takes a step of it and returns its CPU seconds."""
    torch.manual_seed(0)
    network = DartsNetwork() if what == "cells" else NASBench201(affine=False, track_running_stats=False)
    method = GDAS if what == "GDAS" else DARTS
    learner = method(network, search_space(network), steps=1000)
    x, y = torch.randn(2, batch, 3, 32, 32), torch.randint(10, (2, batch))

    def step() -> float:
        start = time.process_time()
        learner.step(((x[0], y[0]), (x[1], y[1])))
        return time.process_time() - start

    return network, step
