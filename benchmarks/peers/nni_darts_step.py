# SPDX-License-Identifier: Apache-2.0
"""Steps of NNI's DARTS, one for each line of standard input: its CPU seconds, as a line of output.

The first line of input is {"batch": 4}; that of output, the numbers of parameters. A step is what NNI's strategy does
with a batch of each split: forward and backward for the architecture, forward and backward for the weights, both
optimisers. Images are random; the data, the loop and the logs are not timed.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import torch
from torch import nn

logging.disable(logging.WARNING)

from nni.nas.hub.pytorch.nasnet import DARTS as Space  # type: ignore[import-not-found]  # noqa: E402
from nni.nas.space import model_context  # type: ignore[import-not-found]  # noqa: E402,F401
from nni.nas.strategy import DARTS  # type: ignore[import-not-found]  # noqa: E402


def main() -> None:
    """Answer standard input."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = int(json.loads(sys.stdin.readline())["batch"])
    strategy = DARTS()
    net = strategy.mutate_model(Space(width=16, num_cells=8, dataset="cifar"))
    alphas = {id(p): p for module in net.modules() for p in getattr(module, "arch_parameters", list)()}
    weights = [p for p in net.parameters() if id(p) not in alphas]
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counts = {"parameters": sum(map(torch.numel, weights)), "alphas": sum(map(torch.numel, alphas.values()))}
    counts["convolutions"] = sum(m.weight.numel() for m in layers)
    print(json.dumps(counts), flush=True)
    of_alphas = torch.optim.Adam(alphas.values(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    of_weights = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    x, y = torch.randn(2, batch, 3, 32, 32), torch.randint(10, (2, batch))
    for _ in sys.stdin:
        start = time.process_time()
        of_alphas.zero_grad()
        nn.functional.cross_entropy(net(x[0]), y[0]).backward()  # type: ignore[no-untyped-call]
        of_alphas.step()
        of_weights.zero_grad()
        nn.functional.cross_entropy(net(x[1]), y[1]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 5.0)
        of_weights.step()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
