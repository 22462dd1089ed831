# SPDX-License-Identifier: Apache-2.0
"""The digits, and a small network that knows them: what exports and bundles are made of."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from toy_networks import SmallNet

CLASSES = tuple("zero one two three four five six seven eight nine".split())


def digit_images() -> tuple[Tensor, Tensor]:
    """Return the digits of scikit-learn: (N, 1, 8, 8) images and (N,) labels."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return (pixels - 0.3) / 0.4, torch.tensor(data.target)


def trained_on(images: Tensor, labels: Tensor) -> nn.Module:
    """A network of 18 thousand weights that knows most digits after a second of training."""
    net = SmallNet(width=40).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(50):
        part = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(net(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.eval()
