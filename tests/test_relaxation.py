# SPDX-License-Identifier: Apache-2.0
"""Soft codes: one-hot they are the hard code, in between they are its expectation."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from sartor.choice import Kept
from sartor.encodings import architectures, enumerated, onehot
from sartor.relaxation import Relaxation, strongest
from sartor.space import SearchSpace

SPACE = SearchSpace(
    {"depth": (1, 2, 3), "kernel2": (3, 5), "kernel3": (3, 5, 7), "op": ("conv", "skip"), "groups": (True, 1)},
    {
        "kernel2": ((("depth", (2, 3)),),),
        "kernel3": ((("depth", (3,)), ("op", ("conv",))),),
        "groups": ((("kernel3", (5, 7)),), (("op", ("skip",)),)),  # a gate on a gated choice, and two ways in
    },
)


def soft(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.softmax(torch.randn(len(options), generator=generator, dtype=torch.float64), 0)
        for name, options in SPACE.choices.items()
    }


def test_hard_assignments_have_the_hard_code() -> None:
    archs = architectures(SPACE, enumerated(SPACE))
    codes = torch.stack([Relaxation(SPACE).code(arch) for arch in archs])
    np.testing.assert_array_equal(codes.numpy(), onehot(SPACE, archs))


def test_one_hot_weights_have_the_hard_code_too() -> None:
    arch = SPACE.sample(random.Random(3))
    hot = {
        name: torch.tensor([option is arch[name] or option == arch[name] for option in options]).double()
        for name, options in SPACE.choices.items()
        if name != "groups"
    }
    code = Relaxation(SPACE).code({**hot, "groups": arch["groups"]})
    np.testing.assert_array_equal(code.numpy(), onehot(SPACE, [arch])[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_soft_code_is_the_mean_of_hard_ones(seed: int) -> None:
    weights = soft(seed)
    mean = np.zeros(sum(map(len, SPACE.choices.values())))
    for places in itertools.product(*(range(len(options)) for options in SPACE.choices.values())):
        chance = float(np.prod([weights[name][place] for name, place in zip(weights, places, strict=True)]))
        values = {name: SPACE.choices[name][place] for name, place in zip(weights, places, strict=True)}
        mean += chance * onehot(SPACE, [SPACE.canonical(values)])[0]
    np.testing.assert_allclose(Relaxation(SPACE).code(weights).numpy(), mean, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    weights = [value.requires_grad_() for value in soft(0).values()]
    relaxation, names = Relaxation(SPACE), list(SPACE.choices)
    assert torch.autograd.gradcheck(lambda *w: relaxation.code(dict(zip(names, w, strict=True))), weights)


def test_the_strongest_are_kept_and_all_have_gradients() -> None:
    weights = torch.tensor([0.5, 0.1, 0.3, 0.1], requires_grad=True)
    kept = strongest(weights, 2)
    torch.testing.assert_close(kept.detach(), torch.tensor([0.625, 0.0, 0.375, 0.0]))
    (kept * torch.arange(4.0)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weights.grad, torch.arange(4.0))
    assert strongest(weights, 1).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert strongest(weights, 4) is weights
    with pytest.raises(ValueError, match="at least 1"):
        strongest(weights, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": torch.ones(2)}, r"needs weights of shape \(3,\)"),
        ({"depth": 7}, "is no option of 'depth'"),
        ({"groups": 1.0}, "is no option of 'groups'"),
    ],
)
def test_assignments_that_do_not_fit(change: dict[str, Tensor | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxation(SPACE).code({**SPACE.largest(), **change})
    with pytest.raises(ValueError, match="'depth' is missing"):
        Relaxation(SPACE).code({})


def test_a_gate_on_too_many_choices() -> None:
    names = [f"c{i}" for i in range(17)]
    space = SearchSpace(
        {**{name: (0, 1) for name in names}, "last": (0, 1)}, {"last": (tuple((name, (1,)) for name in names),)}
    )
    with pytest.raises(ValueError, match="too many to relax"):
        Relaxation(space).code(space.largest())


PAIRS = SearchSpace({"inputs": ((0, 1), (0, 2), (1, 2)), "op": ("a", "b")}, {"op": ((("inputs", ((0, 2), (1, 2))),),)})


def test_weights_of_indices_become_weights_of_options() -> None:
    op = torch.tensor([0.25, 0.75])
    code = Relaxation(PAIRS).code({"inputs": Kept(torch.ones(3)), "op": op})
    torch.testing.assert_close(code, torch.tensor([1 / 3, 1 / 3, 1 / 3, 2 / 3 * 0.25, 2 / 3 * 0.75]))
    beta = torch.tensor([0.5, 0.2, 0.0], requires_grad=True)
    torch.testing.assert_close(Relaxation(PAIRS).code({"inputs": Kept(beta), "op": op})[:3], torch.tensor([1.0, 0, 0]))
    beta = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    products = torch.tensor([0.10, 0.15, 0.06], dtype=torch.float64)
    weights = Relaxation(PAIRS).weights({"inputs": Kept(beta), "op": "a"})
    torch.testing.assert_close(weights["inputs"].detach(), products / products.sum())
    assert torch.autograd.gradcheck(lambda b: Relaxation(PAIRS).code({"inputs": Kept(b), "op": "a"}), [beta])


def test_weights_of_indices_that_do_not_fit() -> None:
    relaxation = Relaxation(PAIRS)
    with pytest.raises(ValueError, match="no option of 'inputs' has weights above 0"):
        relaxation.code({"inputs": Kept(torch.tensor([1.0, 0.0, 0.0])), "op": "a"})
    with pytest.raises(ValueError, match="'op' cannot be under Kept weights"):
        relaxation.code({"inputs": (0, 1), "op": Kept(torch.ones(2))})
    with pytest.raises(ValueError, match=r"of shape \(2,\)"):
        relaxation.code({"inputs": Kept(torch.ones(2)), "op": "a"})
