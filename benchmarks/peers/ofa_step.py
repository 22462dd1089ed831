# SPDX-License-Identifier: Apache-2.0
"""Networks of the `ofa` package: an order for each line of standard input, an answer for each of output, in JSON.

The first line is {"network": "mobilenetv3" | "proxylessnas" | "resnet50", "batch": 8, "side": 64, "folder": where
to keep weights and outputs}; its answer, the number of parameters. Weights, statistics and kernel transforms are random
and kept in `weights.pt`, the images and labels in `batch.pt`. Then:

{"do": "step", "arch": {...}}     forward and backward of a sub-network: CPU seconds; with "last": true, on images in
                                  channels-last layout
{"do": "extract", "arch": {...}}  `get_active_subnet(preserve_weight=True)`: CPU seconds
{"do": "count", "arch": {...}}    parameters and multiply-accumulates of the extracted sub-network at `side`
{"do": "outputs", "arch": {...}}  outputs in place, in eval mode, into `outputs.pt`: the largest difference of the
                                  extracted sub-network's
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

# torchvision's own library does not load beside a processor-only torch; its Python part needs these names alone.
LIBRARY: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # kept, or it is gone
for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from ofa.imagenet_classification.elastic_nn import networks  # type: ignore[import-not-found]  # noqa: E402

MOBILE: dict[str, Any] = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
RESNET: dict[str, Any] = {
    "depth_list": [0, 1, 2],
    "expand_ratio_list": [0.2, 0.25, 0.35],
    "width_mult_list": [0.65, 0.8, 1.0],
}
NETWORKS = {
    "mobilenetv3": ("OFAMobileNetV3", MOBILE),
    "proxylessnas": ("OFAProxylessNASNets", MOBILE),
    "resnet50": ("OFAResNets", RESNET),
}


def main() -> None:
    """Answer standard input."""
    torch.set_num_threads(1)
    asked = json.loads(sys.stdin.readline())
    folder = Path(asked["folder"])
    net = network(asked["network"], asked.get("width"))
    images = torch.randn(asked["batch"], 3, asked["side"], asked["side"])
    last = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (asked["batch"],))
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save((images, labels), folder / "batch.pt")
    print(json.dumps({"parameters": sum(p.numel() for p in net.parameters())}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        net.set_active_subnet(**order["arch"])
        if order["do"] == "step":
            answer: Any = step(net, order["arch"], last if order.get("last") else images, labels)
        elif order["do"] == "extract":
            answer = extraction(net)
        elif order["do"] == "count":
            answer = counts(net.get_active_subnet(True).eval(), images[:1])
        else:
            answer = outputs(net.eval(), images, folder)
            net.train()
        print(json.dumps(answer), flush=True)


def network(name: str, width: float | None) -> Any:
    """Return the network with random weights, statistics and transforms, so that each of them matters."""
    torch.manual_seed(0)
    kind, dimensions = NETWORKS[name]
    more = {} if width is None else {"width_mult": width}
    net = getattr(networks, kind)(n_classes=1000, dropout_rate=0.0, **dimensions, **more)
    for key, tensor in net.state_dict().items():
        if key.endswith("_matrix"):
            tensor.add_(0.1 * torch.randn_like(tensor))
        elif tensor.dim() == 1 and ("bn" in key or key.endswith("bias")):
            low, high = (-0.1, 0.1) if key.endswith(("bias", "mean")) else (0.8, 1.2)
            tensor.uniform_(low, high)
    return net.train()


def step(net: Any, arch: dict[str, Any], images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the CPU seconds of a forward and a backward pass, the gradients forgotten before."""
    start = time.process_time()
    net.zero_grad(set_to_none=True)
    net.set_active_subnet(**arch)
    torch.autograd.backward(nn.functional.cross_entropy(net(images), labels))
    return time.process_time() - start


def extraction(net: Any) -> float:
    """Return the CPU seconds of making the active sub-network."""
    start = time.process_time()
    net.get_active_subnet(preserve_weight=True)
    return time.process_time() - start


def counts(small: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Return the parameters and the multiply-accumulates of convolutions and linear layers."""
    macs = 0

    def add(module: Any, _: Any, out: torch.Tensor) -> None:
        nonlocal macs
        macs += out[0].numel() * module.weight[0].numel()

    for module in small.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    with torch.no_grad():
        small(image)
    return {"parameters": sum(p.numel() for p in small.parameters()), "macs": macs}


def outputs(net: Any, images: torch.Tensor, folder: Path) -> float:
    """Keep the outputs in place, and return how far the extracted sub-network's are from them."""
    with torch.no_grad():
        found = net(images)
        small = net.get_active_subnet(preserve_weight=True).eval()
        torch.save(found, folder / "outputs.pt")
        return float((small(images) - found).abs().max())


if __name__ == "__main__":
    main()
