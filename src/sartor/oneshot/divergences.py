# SPDX-License-Identifier: Apache-2.0
"""How far a student's predictions are from its teacher's: means over a batch, whose gradient is the student's alone.

All take (N, K) logits of the student and of the teacher, and return a scalar in nats.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["adaptive_alpha_divergence", "alpha_divergence", "kl", "soft_cross_entropy"]


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of the softened predictions, times the square of the temperature.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """
    student, teacher = student / temperature, teacher.detach() / temperature
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
    return divergence * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy with the teacher's probabilities: `kl` plus the teacher's entropy, a constant."""
    return F.cross_entropy(student, teacher.detach().softmax(1))


def alpha_divergence(student: Tensor, teacher: Tensor, alpha: float, clip: float = math.inf) -> Tensor:
    """Return D_alpha(p || q) = sum of q ((p / q)^alpha - 1) / (alpha (alpha - 1)), p the teacher's predictions.

    It is KL(p || q) at alpha 1, and KL(q || p) at alpha 0. The gradient is that of AlphaNet's surrogate, whose only
    part with a gradient is log q; without a clip it equals that of the value. Wang et al., "AlphaNet", ICML 2021,
    arXiv:2102.07954.

    clip: the largest (p / q)^alpha that counts, at alpha 0 the largest p / q; at alpha 1 nothing is clipped.
    """
    return _alpha(student, teacher, alpha, clip).mean()


def adaptive_alpha_divergence(
    student: Tensor, teacher: Tensor, least: float = -1.0, most: float = 1.0, clip: float = 5.0
) -> Tensor:
    """Return the larger of the divergences at two alphas, for each sample: AlphaNet's loss, and its defaults.

    The first punishes a student that is less certain than its teacher, the second one that is more certain.
    Clip the gradients' values, too: with a negative alpha they are large where the teacher is certain.
    """
    return torch.maximum(_alpha(student, teacher, least, clip), _alpha(student, teacher, most, clip)).mean()


def _alpha(student: Tensor, teacher: Tensor, alpha: float, clip: float) -> Tensor:
    """Return (N,) divergences, with the gradient of the surrogate: - sum of stopped q rho_f(p / q) times log q."""
    log_q, log_p = student.log_softmax(1), teacher.detach().log_softmax(1)
    log_ratio = log_p - log_q.detach()
    q = log_q.detach().exp()
    if alpha == 0.0:  # f(t) = -log t, rho_f(t) = log t - 1
        log_ratio = log_ratio.clamp_max(math.log(clip))
        value, weights = -q * log_ratio, q * (log_ratio - 1.0)
    elif alpha == 1.0:  # f(t) = t log t, rho_f(t) = t
        weights = log_p.exp()
        value = weights * log_ratio
    else:  # f(t) = (t^a - 1) / (a (a - 1)), rho_f(t) = t^a / a + 1 / (a (a - 1))
        scale = 1.0 / (alpha * (alpha - 1.0))
        power = (alpha * log_ratio + log_q.detach()).exp()  # q times the ratio's power: neither may overflow alone
        power = power if math.isinf(clip) else torch.minimum(power, clip * q)
        value, weights = scale * (power - q), power / alpha + scale * q
    surrogate = -(weights * log_q).sum(1)
    return value.sum(1) + (surrogate - surrogate.detach())
