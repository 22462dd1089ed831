# SPDX-License-Identifier: Apache-2.0
"""Memory: adopting a network adds next to nothing to it, and extraction never holds a second copy of it."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("transformers")

from sartor.adapt import elastic
from sartor.supernet import activated, extract, search_space

torch.set_num_threads(1)

WEAK: Any = StorageWeakRef
IDS = torch.arange(3, 19).view(2, 8)


def bert() -> Any:
    """24 MB, of which 4 are embeddings."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=3000, hidden_size=320, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1280
    )
    network: Any = BertForSequenceClassification(config)
    return network.eval()


def gpt2() -> Any:
    """Of 17 MB, half of which is one table, which reads tokens and writes them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    network: Any = GPT2LMHeadModel(
        GPT2Config(vocab_size=10000, n_embd=192, n_layer=4, n_head=6, n_positions=64, bos_token_id=1, eos_token_id=2)
    )
    return network.eval()


def tensor_bytes(network: nn.Module) -> int:
    """Of all storages that a network holds, in its modules or anywhere in their attributes."""
    held: dict[int, int] = {}
    for module in network.modules():
        for one in _reachable([module._parameters, module._buffers, vars(module)], 4):
            held[one.untyped_storage()._cdata] = one.untyped_storage().nbytes()
    return sum(held.values())


def _reachable(value: object, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inside: list[object] = []
    if isinstance(value, dict):
        inside = [*value.values()]
    elif isinstance(value, list | tuple):
        inside = [*value]
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        inside = [*vars(value).values()]
    return [tensor for one in inside for tensor in _reachable(one, depth - 1)] if depth else []


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made inside held at once."""

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {one.untyped_storage()._cdata for net in known for one in net.parameters()}
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in self.known:
                storage = one.untyped_storage()
                self.live[storage._cdata] = WEAK(storage), storage.nbytes()
        self.live = {key: pair for key, pair in self.live.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return made


def peak_of_extraction(network: nn.Module, architecture: Any) -> int:
    made = Peak(network)
    with made:
        extract(network, architecture)
    return made.peak


@pytest.mark.parametrize("build", [bert, gpt2])
def test_adopting_adds_less_than_a_hundredth(build: Any) -> None:
    elastic(build())(IDS)  # classes of layers and their first use are no part of a network
    network = build()
    before = tensor_bytes(network)
    made = Peak(network)
    gc.collect()
    tracemalloc.start()
    try:
        with Peak(network) as made:
            elastic(network)
        space = search_space(network)
        with torch.no_grad(), activated(network, space.smallest()):
            network(IDS)
        gc.collect()
        added = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert tensor_bytes(network) == before and made.peak == 0
    assert added < 0.01 * before, f"{added} bytes beside {before}"


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_smallest_network_is_extracted_within_its_own_size(build: Any) -> None:
    network = build()
    hidden = network.config.hidden_size // 2
    elastic(network, heads=[2], mlp=[0.125], depth=[1], hidden=[hidden])
    whole = tensor_bytes(network)
    smallest = search_space(network).smallest()
    own = tensor_bytes(extract(network, smallest))
    assert own < 0.35 * whole
    assert own <= peak_of_extraction(network, smallest) < own + 1.05 * tied_bytes(network)


def test_every_extraction_is_at_most_one_copy_and_one_of_a_tied_table() -> None:
    network = gpt2()
    whole = tensor_bytes(network)
    elastic(network)
    assert peak_of_extraction(network, search_space(network).largest()) < 1.05 * whole + tied_bytes(network)


def tied_bytes(network: Any) -> int:
    """Of the table that the first and the last layer share; its slice is made once for each of them."""
    table = network.get_input_embeddings().weight
    return int(table.numel()) * (4 if network.config.tie_word_embeddings else 1)
