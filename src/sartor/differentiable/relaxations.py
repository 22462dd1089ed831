# SPDX-License-Identifier: Apache-2.0
"""From logits to weights: the ways in which published methods relax, or sample, one option of each choice.

All functions work on the (C, K) logits of C choices at once; an option that a choice does not have, or that is
excluded, has the logit -inf and gets the weight 0, exactly. Random draws come from a `torch.Generator` that is handed
in, so that a step can be repeated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = [
    "concrete",
    "dirichlet",
    "draws",
    "entropy",
    "indicator",
    "linear_between",
    "log_probability",
    "max_w",
    "nested",
    "one_hot",
    "sample",
    "sample_pairs",
    "softmax",
    "straight_through",
]

LEAST_CONCENTRATION = 1e-3  # below it the gradient of a Dirichlet draw is not a number


def draws(seed: int, step: int, purpose: str = "", device: torch.device | str = "cpu") -> Generator:
    """Return the generator of one step: equal for equal arguments, so that a resumed search draws the same."""
    generator = Generator(device)
    mixed = (seed * 1_000_003 + step) * 1_000_003 + sum(ord(one) * 131**i for i, one in enumerate(purpose))
    return generator.manual_seed(mixed % (1 << 63))


def softmax(logits: Tensor) -> Tensor:
    """Return exp(a_o) / sum over o' of exp(a_o'): (C, K) rows of sum 1 (Liu et al., "DARTS", equation 2)."""
    return logits.softmax(1)


def concrete(logits: Tensor, temperature: float, generator: Generator) -> Tensor:
    """Return one draw of the concrete distribution: (C, K) rows of sum 1, one-hot as the temperature goes to 0.

    softmax((log p + G) / temperature) with G from Gumbel(0, 1) (Jang et al., ICLR 2017; Maddison et al., ICLR 2017).
    Raises ValueError for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: give one above 0")
    return ((logits.log_softmax(1) + _gumbel(logits, generator)) / temperature).softmax(1)


def straight_through(logits: Tensor, temperature: float, generator: Generator) -> Tensor:
    """Return a one-hot draw with the gradient of the concrete one: (C, K), in value exactly 0 and 1.

    The option is drawn with its softmax probability, whatever the temperature (the Gumbel-max trick).
    """
    soft = concrete(logits, temperature, generator)
    return one_hot(soft.argmax(1), soft) + (soft - soft.detach())


def dirichlet(logits: Tensor, generator: Generator) -> Tensor:
    """Return a draw from Dirichlet(elu(logits) + 1), reparameterised: (C, K) rows of sum 1.

    Chen et al., "DrNAS", ICLR 2021. A concentration stays above 1e-3, as the gradient of the draw fails at 0.
    """
    there = logits.isfinite()
    concentration = (F.elu(logits.masked_fill(~there, 0.0)) + 1.0).clamp_min(LEAST_CONCENTRATION)
    gammas: Tensor = torch._standard_gamma(concentration.to(generator.device), generator).to(logits.device)
    # a tiny concentration draws a gamma that rounds to 0; a row of zeros would have no direction
    gammas = gammas.clamp_min(torch.finfo(gammas.dtype).tiny).masked_fill(~there, 0.0)
    found: Tensor = gammas / gammas.sum(1, keepdim=True)
    return found


def max_w(weights: Tensor, detach: bool = False) -> Tensor:
    """Return 1 - max + w for each weight: the largest gets 1, and growing lowers the others (sharpDARTS, section 5).

    Rows no longer sum to 1. Weights of exactly 0 stay 0. With `detach` no gradient goes through the maximum.
    """
    largest = weights.max(1, keepdim=True).values
    scaled = 1.0 - (largest.detach() if detach else largest) + weights
    return scaled.masked_fill(weights.detach() == 0.0, 0.0)


def indicator(margin: Tensor) -> Tensor:
    """Return 1 where the margin is at least 0, else 0, with the gradient of the sigmoid (Single-Path NAS)."""
    soft = margin.sigmoid()
    return (margin.detach() >= 0.0).to(margin) + (soft - soft.detach())


def nested(indicators: Tensor) -> Tensor:
    """Return the (n + 1,) weights of nested options, smallest first, from (n,) indicators that a part is in force.

    Of one indicator: (1 - d, d). A larger option is in force only if all smaller parts are.
    """
    one = indicators.new_ones(1)
    reached = torch.cat([one, indicators.cumprod(0), 0.0 * one])
    return reached[:-1] - reached[1:]


def one_hot(positions: Tensor, like: Tensor) -> Tensor:
    """Return (C, K) rows that are 1 at the (C,) positions and 0 elsewhere, in the dtype and on the device of `like`."""
    return torch.zeros_like(like).scatter_(1, positions.unsqueeze(1), 1.0)


def sample(logits: Tensor, generator: Generator) -> Tensor:
    """Return (C,) positions, each drawn with its softmax probability."""
    chances = logits.detach().softmax(1).to(generator.device)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)


def sample_pairs(logits: Tensor, generator: Generator) -> Tensor:
    """Return (C, 2) positions of two different options, drawn without replacement with their softmax probabilities.

    A row with one option has it, and one of weight 0. Raises RuntimeError where no choice has a second option.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64, device=generator.device)
    waits = -torch.log1p(-uniform).to(logits.device) / logits.detach().double().softmax(1)  # exponential races
    return waits.topk(2, 1, largest=False).indices


def log_probability(logits: Tensor, positions: Tensor) -> Tensor:
    """Return the log-probability of the (C,) positions together: a scalar with the gradient one-hot - softmax."""
    return logits.log_softmax(1).gather(1, positions.unsqueeze(1)).sum()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of all choices together in nats: a scalar, the sum over the C rows."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum()  # entr has no finite gradient at 0


def linear_between(first: float, last: float, part: float) -> float:
    """Return what lies `part` (0 to 1) of the way from the first value to the last: a schedule of temperatures."""
    share = min(max(part, 0.0), 1.0)
    return (1.0 - share) * first + share * last


def _gumbel(like: Tensor, generator: Generator) -> Tensor:
    """Return (C, K) draws of Gumbel(0, 1), finite."""
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=generator.device)
    draw = -torch.log(-torch.log(uniform.clamp(math.ulp(0.5), 1.0 - math.ulp(0.5))))
    return draw.to(like)
