# SPDX-License-Identifier: Apache-2.0
"""How fast language models write: tokens per second in PyTorch, with transformers' cache of keys and values.

A latency of one pass over a sequence says little about writing, in which a prompt is read at once and then each token
is a pass of its own over all weights. Both are timed here, of all networks in the same shuffled rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sartor.targets.artefacts import check_threads
from sartor.targets.machine import processor
from sartor.targets.timing import Timing, interval, rounds

__all__ = ["Decoding", "decoded", "decoding_speed"]


@dataclass(frozen=True)
class Decoding:
    """Tokens per second of one network, medians over all rounds; `low` and `high` are 95 % intervals of the median.

    prompt_per_s: of a prompt of `prompt` tokens, read at once. per_s: of the `tokens` that follow it, one by one.
    Both count all sequences of a batch.
    """

    prompt_per_s: float
    prompt_low: float
    prompt_high: float
    per_s: float
    low: float
    high: float
    prompt: int
    tokens: int
    batch: int
    threads: int
    rounds: int
    processor: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def decoding_speed(
    networks: Sequence[nn.Module],
    prompt: Tensor,
    *,
    tokens: int = 32,
    threads: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
) -> list[Decoding]:
    """Time the reading of a prompt and the greedy decoding of what follows; one Decoding per network, in order.

    Args:
        networks: causal models of transformers, or `adapt.networks.LanguageModel`, without choices.
        prompt: token ids (N, T), int64.
        tokens: how many follow. threads: of PyTorch. seconds: of timing for each network, or 6 rounds if these take
            longer. seed: of the order in the rounds.

    Raises ValueError for a prompt that holds no ids and for numbers that are not positive.
    """
    _check(prompt, tokens, threads)
    models = [_model(network) for network in networks]
    with _settings(models, threads):
        calls = [call for model in models for call in _calls(model, prompt, tokens)]
        timings = rounds(calls, budget_s=seconds * max(1, len(models)), seed=seed, runs=1)
    batch, length = prompt.shape
    return [
        Decoding(
            *_per_second(reading, batch * length, seed), *_per_second(writing, batch * tokens, seed),
            length, tokens, batch, threads, len(writing.seconds), processor()["processor"],
        )
        for reading, writing in zip(timings[::2], timings[1::2], strict=True)
    ]  # fmt: skip


def decoded(network: nn.Module, prompt: Tensor, tokens: int) -> Tensor:
    """The `tokens` ids (N, tokens) that a model writes greedily after the prompt (N, T), with its cache."""
    _check(prompt, tokens, 1)
    model = _model(network)
    with _settings([model], torch.get_num_threads()):
        first, cache = _read(model, prompt)
        return _written(model, first, cache, tokens)


def _calls(model: Any, prompt: Tensor, tokens: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """What reads the prompt, and what writes the tokens after it, from a cache that is put back to the prompt."""
    first, cache = _read(model, prompt)
    cache.activate_past_recording()  # a sliding window forgets what it is to be put back to

    def write() -> None:
        _written(model, first, cache, tokens)
        cache.crop(-tokens)

    return lambda: _read(model, prompt), write


def _read(model: Any, prompt: Tensor) -> tuple[Tensor, Any]:
    """The first new token (N, 1), and the cache of the prompt."""
    out = model(input_ids=prompt, use_cache=True)
    return out.logits[:, -1:].argmax(-1), out.past_key_values


def _written(model: Any, token: Tensor, cache: Any, tokens: int) -> Tensor:
    found = [token]
    for _ in range(tokens):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        found.append(token)
    return torch.cat(found[:-1], 1)


def _per_second(timing: Timing, tokens: int, seed: int) -> tuple[float, float, float]:
    low, high = interval(timing.seconds, seed=seed)
    return tokens / float(np.median(timing.seconds)), tokens / high, tokens / low


def _model(network: nn.Module) -> nn.Module:
    inner = getattr(network, "model", None)
    return inner if type(network).__name__ == "LanguageModel" and isinstance(inner, nn.Module) else network


def _check(prompt: Tensor, tokens: int, threads: int) -> None:
    if prompt.dim() != 2 or prompt.is_floating_point() or not prompt.numel():
        raise ValueError(f"a prompt of {prompt.dtype} {tuple(prompt.shape)} cannot be read: give token ids (N, T)")
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: a model writes 1 or more")
    check_threads(threads)


@contextmanager
def _settings(models: Sequence[nn.Module], threads: int) -> Iterator[None]:
    """Let PyTorch use `threads` threads and no gradients, in evaluation mode; modes and threads are put back."""
    before = torch.get_num_threads()
    modes = [(module, module.training) for model in models for module in model.modules()]
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for model in models:
                model.eval()
            yield
    finally:
        torch.set_num_threads(before)
        for module, training in modes:
            module.training = training
