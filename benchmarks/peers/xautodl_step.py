# SPDX-License-Identifier: Apache-2.0
"""Steps of XAutoDL's DARTS or GDAS, one for each line of standard input: its CPU seconds, as a line of output.

The first line of input is {"batch": 16, "folder": a checkout of AutoDL-Projects, "network": "DARTS" or "GDAS"}; that
of output, the numbers of parameters. A step is that of the published loop on NAS-Bench-201's cell: forward and backward
for the weights, clipping, forward and backward for the architecture, both optimisers. Images are random; the data and
the logs are not timed.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import nn


def main() -> None:
    """Answer standard input."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    asked = json.loads(sys.stdin.readline())
    sys.path.insert(0, asked["folder"])
    from xautodl.models.cell_operations import SearchSpaceNames  # type: ignore[import-not-found]
    from xautodl.models.cell_searchs import nas201_super_nets  # type: ignore[import-not-found]

    kind = nas201_super_nets["DARTS-V1" if asked["network"] == "DARTS" else "GDAS"]
    net = kind(16, 5, 4, 10, SearchSpaceNames["nas-bench-201"], False, False)
    if asked["network"] == "GDAS":
        net.set_tau(10)
    weights, alphas = net.get_weights(), net.get_alphas()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counts = {"parameters": sum(map(torch.numel, weights)), "alphas": sum(map(torch.numel, alphas))}
    counts["convolutions"] = sum(m.weight.numel() for m in layers)
    print(json.dumps(counts), flush=True)
    of_alphas = torch.optim.Adam(alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    of_weights = torch.optim.SGD(weights, 0.025, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = torch.randn(2, int(asked["batch"]), 3, 32, 32), torch.randint(10, (2, int(asked["batch"])))
    for _ in sys.stdin:
        start = time.process_time()
        of_weights.zero_grad()
        nn.functional.cross_entropy(net(x[0])[1], y[0]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 5.0)
        of_weights.step()
        of_alphas.zero_grad()
        nn.functional.cross_entropy(net(x[1])[1], y[1]).backward()  # type: ignore[no-untyped-call]
        of_alphas.step()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
