# SPDX-License-Identifier: Apache-2.0
"""A GPT of whittle: an order for each line of standard input, an answer for each of output, in JSON.

The first line is {"vocabulary": ..., "length": ..., "layers": ..., "width": ..., "head": ..., "batch": ..., "folder":
where to keep weights and tokens}; its answer, the number of parameters. Weights are random and kept in
`weights.safetensors`, the tokens in `tokens.safetensors`. A sub-network is {"width": ..., "heads": [...], "hidden":
[...], "layers": ...}. Then:

{"do": "step", "arch": {...}}     set the sub-network, forward and backward: CPU seconds
{"do": "update", "arch": {...}}   the same, with a step of AdamW, the optimiser that its training takes by default
{"do": "extract", "arch": {...}}  set the sub-network and extract it: CPU seconds; one of equal blocks alone
{"do": "outputs", "arch": {...}}  the logits, in eval mode, into `outputs.safetensors`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from litgpt import Config  # type: ignore[import-not-found]
from safetensors.torch import save_file
from torch import nn
from whittle.models.gpt import GPT  # type: ignore[import-not-found]
from whittle.models.gpt.extract import extract_current_sub_network  # type: ignore[import-not-found]


def main() -> None:
    """Answer standard input."""
    torch.set_num_threads(1)
    asked = json.loads(sys.stdin.readline())
    folder, net = Path(asked["folder"]), network(asked)
    tokens = torch.randint(asked["vocabulary"], (asked["batch"], asked["length"] + 1))
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "weights.safetensors")
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    print(json.dumps({"parameters": sum(p.numel() for p in net.parameters())}), flush=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    for line in sys.stdin:
        order = json.loads(line)
        arch = order["arch"]
        if order["do"] == "extract":
            answer: Any = extraction(net, arch)
        elif order["do"] == "outputs":
            answer = outputs(net, arch, tokens, folder)
        else:
            answer = step(net, arch, tokens, optimizer if order["do"] == "update" else None)
        print(json.dumps(answer), flush=True)


def network(asked: dict[str, Any]) -> Any:
    """Return the network, with scales and biases that matter."""
    torch.manual_seed(0)
    heads = asked["width"] // asked["head"]
    net = GPT(
        Config(
            vocab_size=asked["vocabulary"], padded_vocab_size=asked["vocabulary"], block_size=asked["length"],
            n_layer=asked["layers"], n_embd=asked["width"], n_head=heads, n_query_groups=heads,
            head_size=asked["head"], intermediate_size=4 * asked["width"], rotary_percentage=1.0,
            parallel_residual=False, bias=True, lm_head_bias=False,
        )
    )  # fmt: skip
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.8, 1.2)
    return net.train()


def chosen(net: Any, arch: dict[str, Any]) -> None:
    """Put a sub-network in force."""
    net.set_sub_network(
        sub_network_n_embd=arch["width"], sub_network_intermediate_size=arch["hidden"],
        sub_network_num_heads=arch["heads"], sub_network_query_groups=arch["heads"],
        sub_network_n_layers=arch["layers"],
    )  # fmt: skip


def step(net: Any, arch: dict[str, Any], tokens: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> float:
    """Return the CPU seconds of a forward and a backward pass, the gradients forgotten before, and of an update."""
    start = time.process_time()
    net.zero_grad(set_to_none=True)
    chosen(net, arch)
    logits = net(tokens[:, :-1])
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    if optimizer:
        optimizer.step()
    return time.process_time() - start


def extraction(net: Any, arch: dict[str, Any]) -> float:
    """Return the CPU seconds of making the sub-network by itself."""
    start = time.process_time()
    one = {**arch, "heads": arch["heads"][0], "hidden": arch["hidden"][0]}
    chosen(net, one)
    extract_current_sub_network(net)
    return time.process_time() - start


def outputs(net: Any, arch: dict[str, Any], tokens: torch.Tensor, folder: Path) -> bool:
    """Keep the logits of a sub-network."""
    chosen(net, arch)
    with torch.no_grad():
        save_file({"logits": net.eval()(tokens[:, :-1]).contiguous()}, folder / "outputs.safetensors")
    net.train()
    return True


if __name__ == "__main__":
    main()
