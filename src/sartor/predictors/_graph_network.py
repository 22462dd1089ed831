# SPDX-License-Identifier: Apache-2.0
"""The graph network of BRP-NAS: dense products, as architectures have few nodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GraphNetwork(nn.Module):
    """From node features (N, V, F) to the embedding (N, units) of the last node, which hears all others.

    A layer is H <- dropout(ReLU(LN(A H W + b))). Weights are drawn and units dropped by torch's generator.
    """

    heard: Tensor

    def __init__(self, heard: Tensor, features: int, *, units: int, layers: int, dropout: float) -> None:
        """Take the (V, V) adjacency `heard`, with the node that hears in the rows."""
        super().__init__()
        self.register_buffer("heard", heard)
        linear = [nn.Linear(features if layer == 0 else units, units, bias=False) for layer in range(layers)]
        for one in linear:  # "thomas": uniform within the inverse root of the inputs
            nn.init.uniform_(one.weight, -(one.in_features**-0.5), one.in_features**-0.5)
        self.linear = nn.ModuleList(linear)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(units)) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(units) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor) -> Tensor:
        """Embed."""
        for linear, bias, norm in zip(self.linear, self.biases, self.norms, strict=True):
            nodes = self.dropout(torch.relu(norm(self.heard @ linear(nodes) + bias)))
        return nodes[:, -1]
