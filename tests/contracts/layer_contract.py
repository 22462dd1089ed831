# SPDX-License-Identifier: Apache-2.0
"""What every elastic layer and container keeps to. A layer joins by one `LayerCase` in a list."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.choice import Choice, Size
from sartor.nn import Elastic, at_resolution, resized
from sartor.supernet import activated, extract, named_choices, search_space

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class LayerCase:
    """A small network that holds the layer with searched sizes, each of them read again, and its input."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]

    def network(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network = self.build().to(dtype)
        for tensor in (
            *network.parameters(),
            *network.buffers(),
        ):  # no zeros and ones that hide a wrong slice
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(0.0, 0.5)
        return network

    def inputs(self, dtype: torch.dtype = torch.float64) -> Tensor:
        torch.manual_seed(1)
        example = self.example()
        return example.to(dtype) if example.is_floating_point() else example


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def sampled(network: nn.Module, count: int = 30) -> Iterator[Architecture]:
    """Random architectures; all of them where there are no more than `count`."""
    space, rng = search_space(network), random.Random(0)
    drawn = {space.largest(), space.smallest()}
    for _ in range(20 * count):
        if len(drawn) < min(count, space.size):
            drawn.add(space.sample(rng))
    assert len(drawn) >= min(count, space.size)
    return iter(sorted(drawn, key=Architecture.to_json))


def relaxed(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random logits for each choice."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(len(choice.options), generator=generator, dtype=torch.float64, requires_grad=True)
        for name, choice in named_choices(network).items()
    }


def one_hot(network: nn.Module, arch: Architecture) -> dict[str, Tensor]:
    weights = {}
    for name, choice in named_choices(network).items():
        weights[name] = torch.zeros(len(choice.options), dtype=torch.float64)
        weights[name][choice.options.index(arch[name])] = 1.0
    return weights


def assert_plain(network: nn.Module) -> None:
    """No elastic layer, container or size anywhere, in attributes and in what they hold."""
    for path, module in network.named_modules():
        assert not isinstance(module, Elastic), path
        for attribute, value in vars(module).items():
            assert not list(_sizes(value)), (path, attribute)
            assert not attribute.startswith("_elastic"), (path, attribute)


def _sizes(value: object) -> Iterator[Size]:
    if isinstance(value, Size):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _sizes(item)
    elif isinstance(value, dict):
        yield from _sizes(list(value.values()))


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


# ---- the laws -----------------------------------------------------------------------------------------------


def extraction_equals_activation(case: LayerCase, dtype: torch.dtype) -> None:
    network, x = case.network(dtype).eval(), case.inputs(dtype)
    for arch in sampled(network):
        small = extract(network, arch)
        assert_plain(small)
        with activated(network, arch):
            assert distance(at_resolution(network, x), at_resolution(small, x)) <= TOLERANCE[dtype], arch


def largest_is_exact(case: LayerCase, dtype: torch.dtype) -> None:
    """Where nothing is cut away, the same kernels run on the same shapes, and no bit differs."""
    network, x = case.network(dtype).eval(), case.inputs(dtype)
    largest = search_space(network).largest()
    with activated(network, largest):
        assert torch.equal(at_resolution(network, x), at_resolution(extract(network, largest), x))


def extraction_trains_like_activation(case: LayerCase) -> None:
    network, x = case.network().train(), case.inputs()
    for arch in list(sampled(network, 6)):
        small = extract(network, arch)
        with activated(network, arch):
            assert distance(at_resolution(network, x), at_resolution(small, x)) <= 1e-12
        after = tensors(extract(network, arch))  # the batch moved the statistics of both
        for name, tensor in tensors(small).items():
            assert torch.allclose(tensor.double(), after[name].double(), rtol=1e-12, atol=1e-12), name


def one_hot_equals_hard(case: LayerCase) -> None:
    network, x = case.network().eval(), case.inputs()
    for arch in sampled(network):
        with activated(network, arch):
            hard = at_resolution(network, x)
        with activated(network, one_hot(network, arch)):
            assert distance(at_resolution(network, x), hard) <= 1e-12, arch


def gradients_reach_every_choice(case: LayerCase, *, training: bool) -> None:
    """And they are those of finite differences."""
    network, x, logits = case.network().train(training), case.inputs(), relaxed(case.network())
    direction: Tensor | None = None

    def loss() -> Tensor:
        nonlocal direction
        with activated(network, {name: value.softmax(0) for name, value in logits.items()}):
            out = at_resolution(network, x)
        if direction is None:
            direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return (out * direction).sum()

    gradients = torch.autograd.grad(loss(), list(logits.values()))
    step = 1e-5
    for (name, value), gradient in zip(logits.items(), gradients, strict=True):
        assert len(value) == 1 or gradient.abs().max() > 1e-9, f"no gradient reaches {name}"
        numeric = torch.zeros_like(value)
        with torch.no_grad():
            for i in range(len(value)):
                value[i] += step
                above = loss()
                value[i] -= 2 * step
                numeric[i] = (above - loss()) / (2 * step)
                value[i] += step
        assert torch.allclose(gradient, numeric, rtol=1e-5, atol=1e-6 * (1 + float(gradient.abs().max()))), name


def meta_build_takes_no_memory(case: LayerCase) -> None:
    with torch.device("meta"):
        network = case.build()
    assert all(tensor.is_meta for tensor in tensors(network).values())
    arch = search_space(network).sample(random.Random(1))
    small = extract(network, arch)
    assert all(tensor.is_meta for tensor in tensors(small).values())
    small.to_empty(device="cpu")
    for module in small.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    x = case.inputs(torch.float32)
    before = copy.deepcopy(small.state_dict())
    loss = at_resolution(small.train(), x).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(before[name], p) for name, p in small.named_parameters())


def copies_are_independent(case: LayerCase) -> None:
    network, x = case.network().eval(), case.inputs()
    smallest = search_space(network).smallest()
    expected = at_resolution(network, x)
    with activated(network, smallest):
        small = at_resolution(network, x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        ours, theirs = named_choices(network), named_choices(twin)
        assert list(ours) == list(theirs)
        assert not {id(choice) for choice in ours.values()} & {id(choice) for choice in theirs.values()}
        with activated(twin, smallest):
            assert torch.equal(at_resolution(twin, x), small)
            assert torch.equal(at_resolution(network, x), expected)
        assert_nothing_shared(network, twin)


def assert_nothing_shared(a: nn.Module, b: nn.Module) -> None:
    storages = [{t.untyped_storage().data_ptr() for t in tensors(net).values() if t.numel()} for net in (a, b)]
    assert not storages[0] & storages[1]
    owned = [
        {id(value) for module in net.modules() for value in vars(module).values() if type(value) in (dict, list, set)}
        | set(map(id, net.modules()))
        for net in (a, b)
    ]
    assert not owned[0] & owned[1]


def extraction_shares_nothing(case: LayerCase) -> None:
    network = case.network()
    assert_nothing_shared(network, extract(network, search_space(network).largest()))
    before = copy.deepcopy(network.state_dict())
    small = extract(network, search_space(network).largest())
    with torch.no_grad():
        for tensor in tensors(small).values():
            tensor.zero_()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


def state_dict_round_trip(case: LayerCase) -> None:
    network, other, x = case.network().eval(), case.network(seed=5).eval(), case.inputs()
    other.load_state_dict(network.state_dict())
    for arch in sampled(network, 3):
        with activated(network, arch), activated(other, arch):
            assert torch.equal(at_resolution(network, x), at_resolution(other, x))
        small, twin = extract(network, arch), extract(case.network(seed=6).eval(), arch)
        twin.load_state_dict(small.state_dict())
        assert torch.equal(at_resolution(small, x), at_resolution(twin, x))


def exports(case: LayerCase) -> None:
    small, x = _drawn(case)
    program = torch.export.export(small, (x,))
    assert distance(program.module()(x), small(x)) <= 1e-5


def compiles(case: LayerCase) -> None:
    small, x = _drawn(case)
    assert distance(torch.compile(small)(x), small(x)) <= 1e-4


def _drawn(case: LayerCase) -> tuple[nn.Module, Tensor]:
    network = case.network(torch.float32).eval()
    small = extract(network, search_space(network).sample(random.Random(2)))
    return small, resized(case.inputs(torch.float32), small)


def prints(case: LayerCase) -> None:
    network = case.network()
    assert repr(network) and repr(extract(network, search_space(network).smallest()))
    assert all(isinstance(choice, Choice) for choice in named_choices(network).values())
