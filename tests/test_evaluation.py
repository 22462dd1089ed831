# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from sartor.evaluation import compiled, specialised
from sartor.supernet import search_space
from toy_supernet import ToyNet, toy_batch


def network() -> nn.Module:
    torch.manual_seed(0)
    net = ToyNet()
    return specialised(net, search_space(net).smallest(), [toy_batch(0)[0]])


def test_without_a_compiler_the_network_itself_is_returned_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(network: nn.Module) -> nn.Module:
        class Fails(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("\nNo working C++ compiler found\nmore")

        return Fails()

    monkeypatch.setattr(torch, "compile", failing)
    net = network()
    with pytest.warns(UserWarning, match="ToyNet runs uncompiled, as torch.compile fails: No working C\\+\\+ compiler"):
        assert compiled(net, toy_batch(0)[0]) is net


@pytest.mark.slow
def test_a_compiled_network_computes_the_same() -> None:
    net = network()
    images = torch.randn(4, 1, 6, 6)
    fast = compiled(net, images)
    assert fast is not net
    with torch.no_grad():
        torch.testing.assert_close(fast(images), net(images), rtol=1e-4, atol=1e-5)
