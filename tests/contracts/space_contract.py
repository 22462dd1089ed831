# SPDX-License-Identifier: Apache-2.0
"""What every network of `sartor.spaces` keeps to. A space joins by one `SpaceCase` in a list.

Golden files hold the names, options and gates (they are the format of saved runs) and the costs of the extremes.
After a change that is meant, write them anew:

    .venv/bin/python -c "import sys; sys.path.insert(0, 'tests'); import test_spaces; test_spaces.write_golden()"
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.layer_contract import TOLERANCE, assert_nothing_shared, assert_plain, distance, one_hot, tensors
from sartor.nn import at_resolution
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import macs, parameters, trace

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class SpaceCase:
    """A network of a space, for inputs of one shape (N, C, H, W)."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def ghost(self) -> nn.Module:
        """The network on the meta device."""
        with torch.device("meta"):
            return self.build()

    def network(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        """The network with no zero among its scales, which would hide what a block computes."""
        torch.manual_seed(seed)
        network = self.build().to(dtype)
        for name, tensor in tensors(network).items():
            if tensor.is_floating_point() and tensor.dim() == 1:
                low, high = (-0.1, 0.1) if name.endswith(("bias", "mean")) else (0.5, 1.5)
                nn.init.uniform_(tensor, low, high)
        return network

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def of_sizes(name: str, space: Callable[..., nn.Module]) -> tuple[SpaceCase, SpaceCase, SpaceCase]:
    """A space of images of 8 to 224 pixels: as published, of 28 pixels, and of 8, which run in milliseconds."""
    return (
        SpaceCase(f"{name}-224-colour", space, (1, 3, 224, 224)),
        SpaceCase(f"{name}-28-grey", partial(space, 10, 1, (28, 28)), (2, 1, 28, 28)),
        SpaceCase(f"{name}-8-grey", partial(space, 10, 1, (8, 8)), (2, 1, 8, 8)),
    )


def golden(case: SpaceCase) -> dict[str, Any]:
    """What the golden file of a case holds."""
    ghost = case.ghost()
    space = search_space(ghost)
    costs = {}
    for extreme, arch in (("largest", space.largest()), ("smallest", space.smallest())):
        workload = trace(extract(ghost, arch), torch.empty(1, *case.shape[1:]))
        costs[extreme] = {"parameters": int(parameters(workload)), "macs": int(macs(workload))}
    named = {name: list(choice.options) for name, choice in named_choices(ghost).items()}
    return {**costs, "size": space.size, "choices": named, "gates": json.loads(space.to_json())["gates"]}


def write(case: SpaceCase) -> None:
    text = json.dumps(golden(case), indent=1)
    (GOLDEN / f"{case.name}.json").write_text(text + "\n")


# ---- the laws -----------------------------------------------------------------------------------------------


def names_are_golden(case: SpaceCase) -> None:
    found, kept = json.loads(json.dumps(golden(case))), json.loads((GOLDEN / f"{case.name}.json").read_text())
    assert list(found["choices"]) == list(kept["choices"]), "names changed: saved runs can no longer be read"
    assert found == kept


def searching_stays_in_the_space(case: SpaceCase) -> None:
    space, rng = search_space(case.ghost()), random.Random(0)
    assert space.largest() in space and space.smallest() in space
    for _ in range(30):
        a, b = space.sample(rng), space.sample(rng)
        children = [a, b, space.mutate(a, rng), space.mutate(a, rng, 0.2), space.crossover(a, b, rng)]
        for child in children:
            assert child in space and space.canonical(child) == child
        assert children[2] != a
    assert SearchSpace.from_json(space.to_json()) == space


def equal_networks_are_equal_keys(case: SpaceCase) -> None:
    """Choices that are inactive change nothing, and are taken back to their first option."""
    ghost, rng, x = case.ghost(), random.Random(0), torch.empty(case.shape)
    space = search_space(ghost)
    for _ in range(10):
        arch = space.sample(rng)
        idle = {name: rng.choice(space.choices[name]) for name in arch if not space.is_active(name, arch)}
        noisy = {**arch, **idle}
        assert space.canonical(noisy) == arch
        assert trace(extract(ghost, noisy), x) == trace(extract(ghost, arch), x)
        for name in arch:
            if space.is_active(name, arch) and len(space.choices[name]) > 1:
                other = space.restrict({name: [o for o in space.choices[name] if o != arch[name]]})
                changed = arch.replace({name: other.choices[name][0]})
                assert space.canonical(changed) != arch, name


def extraction_equals_activation(case: SpaceCase, dtype: torch.dtype, count: int = 30) -> None:
    network, x, rng = case.network(dtype).eval(), case.inputs(dtype), random.Random(0)
    space = search_space(network)
    for _ in range(count):
        arch = space.sample(rng)
        small = extract(network, arch)
        assert_plain(small)
        assert sum(p.numel() for p in small.parameters()) == parameters(trace(small, x))
        with activated(network, arch), torch.no_grad():
            assert distance(at_resolution(network, x), at_resolution(small, x)) <= TOLERANCE[dtype], arch
    assert_nothing_shared(network, small)


def extraction_is_exact(case: SpaceCase) -> None:
    extraction_equals_activation(case, torch.float64, count=5)


def one_hot_equals_hard(case: SpaceCase) -> None:
    network, x = case.network(torch.float64).eval(), case.inputs(torch.float64)
    arch = search_space(network).sample(random.Random(3))
    with torch.no_grad():
        with activated(network, arch):
            hard = at_resolution(network, x)
        with activated(network, one_hot(network, arch)):
            assert distance(at_resolution(network, x), hard) <= 1e-12


def gradients_reach_every_choice(case: SpaceCase) -> None:
    network, x = case.network(torch.float64).eval(), case.inputs(torch.float64)
    logits = {
        name: torch.zeros(len(choice.options), dtype=torch.float64, requires_grad=True)
        for name, choice in named_choices(network).items()
    }
    with activated(network, {name: value.softmax(0) for name, value in logits.items()}):
        at_resolution(network, x).square().sum().backward()  # type: ignore[no-untyped-call]
    for name, value in logits.items():
        assert value.grad is not None and (len(value) == 1 or value.grad.abs().max() > 0), name


def meta_build_takes_no_memory(case: SpaceCase) -> None:
    ghost = case.ghost()
    small = extract(ghost, search_space(ghost).smallest())
    assert all(tensor.is_meta for network in (ghost, small) for tensor in tensors(network).values())
    small.to_empty(device="cpu")
    reset: Any = small
    torch.manual_seed(0)
    reset.reset_parameters()
    loss = at_resolution(small.train(), case.inputs()).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert all(tensor.isfinite().all() for tensor in tensors(small).values())
    twin: Any = extract(case.network(), search_space(ghost).smallest())
    torch.manual_seed(0)
    twin.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), twin.parameters(), strict=True))


def copies_are_independent(case: SpaceCase) -> None:
    network = case.network().eval()
    twin = copy.deepcopy(network)
    x, smallest = case.inputs(), search_space(network).smallest()
    with torch.no_grad():
        expected = at_resolution(network, x)
        with activated(twin, smallest):
            assert torch.equal(at_resolution(network, x), expected)
    assert_nothing_shared(network, twin)
    twin.load_state_dict(network.state_dict())


def exports(case: SpaceCase) -> None:
    network = case.network().eval()
    small: Any = extract(network, search_space(network).smallest())
    resolution = getattr(small, "resolution", None)
    x = torch.randn(1, case.shape[1], *((resolution,) * 2 if resolution else case.shape[2:]))
    assert distance(torch.export.export(small, (x,)).module()(x), small(x)) <= 1e-5


LAWS: tuple[Callable[[SpaceCase], None], ...] = (
    searching_stays_in_the_space,
    equal_networks_are_equal_keys,
    extraction_is_exact,
    one_hot_equals_hard,
    gradients_reach_every_choice,
    meta_build_takes_no_memory,
    copies_are_independent,
    exports,
)
"""Of networks that run in milliseconds; names are golden of all."""


# ---- spaces of images of 8 to 224 pixels ----------------------------------------------------------------------

SIDES = ((8, 4), (11, 6), (16, 4), (28, 4), (57, 4), (64, 4), (120, 4), (224, 7))
"""Of images, and of the map that a chain ends with."""


def other_sizes_are_refused(space: Any) -> None:
    with pytest.raises(ValueError, match=f"images of 7x9 do not fit {space.__name__}: give 8 to 224 pixels a side"):
        space(10, 1, (7, 9))


def maps_end_at_four_pixels_or_seven(space: Callable[..., nn.Module], size: int, side: int) -> None:
    with torch.device("meta"):
        ghost = space(10, 1, (size, size))
    workload = trace(extract(ghost, search_space(ghost).largest()), torch.empty(1, 1, size, size))
    averaged = [op.inputs[0][2:] for op in workload if op.kind == "mean"]  # (1, 1): once more before features are mixed
    assert (side, side) in averaged and averaged[-1] in ((side, side), (1, 1))
