"""Max-W beside softmax: does an operation that learns slowly win against a shortcut that is good at once?

Two operations in parallel on x in R^8, the identity and a linear map W that starts at 0.1 N; the answer is A x and
noise of 0.3, A = shortcut * I + N / sqrt(8). Logits and W descend in turns, each on fresh batches of 64, 1,200 steps.
The map is what A is: `wins` counts the seeds in which it has more than half of the weight, `share` is its mean weight.
The first two settings were found by looking for a difference, and are repeated here on other seeds; the others are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sartor.differentiable.relaxations import max_w, softmax

Row = Mapping[str, str | float | int | None]

# shortcut, learning rate of the map, of the logits
SETTINGS = ((2.0, 0.003, 0.2), (2.0, 0.01, 0.3), (1.0, 0.003, 0.2), (1.0, 0.05, 0.02), (0.5, 0.05, 0.02))
RULES = ("softmax", "Max-W", "Max-W, detached")
FIRST_SEED = 1000


def rows(quick: bool) -> Iterator[Row]:
    """A row per setting and rule."""
    seeds, steps = (4, 200) if quick else (20, 1200)
    for setting in SETTINGS:
        for rule in RULES:
            share = race(rule, *setting, seeds=seeds, steps=steps)
            yield {
                "shortcut": setting[0],
                "rate of the map": setting[1],
                "rate of the logits": setting[2],
                "weights": rule,
                "wins": int((share > 0.5).sum()),
                "seeds": seeds,
                "share": round(float(share.mean()), 3),
                "least": round(float(share.min()), 3),
                "most": round(float(share.max()), 3),
            }


def race(rule: str, shortcut: float, map_rate: float, logits_rate: float, *, seeds: int, steps: int) -> Tensor:
    """Return the (seeds,) weights of the map at the end; seeds run side by side."""
    generator = torch.Generator().manual_seed(FIRST_SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(seeds, *shape, generator=generator)

    truth = shortcut * torch.eye(8) + normal(8, 8) / 8**0.5
    learned = (0.1 * normal(8, 8)).requires_grad_()
    logits = torch.zeros(seeds, 2, requires_grad=True)

    def loss() -> Tensor:
        x = normal(64, 8)
        y = x @ truth.mT + 0.3 * normal(64, 8)
        weights = softmax(logits)
        if rule != "softmax":
            weights = max_w(weights, detach=rule == "Max-W, detached")
        out = weights[:, 0, None, None] * x + weights[:, 1, None, None] * (x @ learned.mT)
        return (out - y).square().sum(2).mean(1).sum()

    for _ in range(steps):
        for parameter, rate in ((logits, logits_rate), (learned, map_rate)):
            (gradient,) = torch.autograd.grad(loss(), parameter)
            with torch.no_grad():
                parameter -= rate * gradient
    return softmax(logits.detach())[:, 1]
