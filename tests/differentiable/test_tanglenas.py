# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.choice import Choice
from sartor.costs import cost_table
from sartor.differentiable import relaxations
from sartor.differentiable.descent import Recipe, logits_of
from sartor.differentiable.diagnostics import saved_activations
from sartor.differentiable.penalties import add
from sartor.differentiable.tanglenas import SAMPLERS, Sampler, TangleNAS
from sartor.nn import Conv2d
from sartor.spaces.darts import DartsNetwork
from sartor.spaces.entangled_macro import EntangledMacro
from sartor.supernet import activated, extract, search_space
from toy_slots import toy_pair
from toy_supernet import CLASSES

SAMPLED: list[Sampler] = ["drnas", "darts", "gdas", "spos"]
LOGITS = torch.tensor([[0.5, -0.3, 0.1], [0.0, 1.0, -torch.inf]])


def net(depth: bool = False) -> EntangledMacro:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EntangledMacro(CLASSES, 1, (8, 8), depth=depth)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- entanglement -------------------------------------------------------------------------------


def test_a_mixture_of_kernels_is_one_convolution() -> None:
    kernel = Choice((1, 3, 5), name="kernel")
    conv, x = Conv2d(3, 4, kernel, padding="same").double(), drawn(2, 3, 9, 9)
    weights = drawn(3).softmax(0)
    with activated(conv, {"kernel": weights}):
        mixed = conv(x)
    total = sum(weight * at(conv, {"kernel": k}, x) for weight, k in zip(weights, (1, 3, 5), strict=True))
    assert float((mixed - total).detach().abs().max()) < 1e-10


def test_a_product_over_kernels_and_widths_is_one_convolution() -> None:
    kernel, width = Choice((1, 3, 5), name="kernel"), Choice((2, 4, 6), name="width")
    conv, x = Conv2d(width, 4, kernel, padding="same").double(), drawn(2, 6, 9, 9)
    of_kernel, of_width = drawn(2, 3).softmax(1)
    with activated(conv, {"kernel": of_kernel, "width": of_width}):
        mixed = conv(x)
    total = sum(
        of_kernel[i] * of_width[j] * at(conv, {"kernel": k, "width": w}, x[:, :w])
        for (i, k), (j, w) in itertools.product(enumerate((1, 3, 5)), enumerate((2, 4, 6)))
    )
    assert float((mixed - total).detach().abs().max()) < 1e-10


def test_behind_a_norm_it_is_not() -> None:
    kernel = Choice((1, 3), name="kernel")
    conv, x = Conv2d(3, 4, kernel, padding="same").double(), drawn(8, 3, 5, 5)
    norm = nn.BatchNorm2d(4).double()
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with activated(conv, {"kernel": weights}):
        mixed = norm(conv(x))
    total = sum(0.5 * norm(at(conv, {"kernel": k}, x)) for k in (1, 3))
    assert float((mixed - total).detach().abs().max()) > 0.01


def at(conv: nn.Module, arch: dict[str, int], x: Tensor) -> Tensor:
    with activated(conv, arch):
        found: Tensor = conv(x)
    return found


def test_one_hot_weights_are_the_sliced_network_and_inherit_its_logits() -> None:
    supernet, images = net(depth=True).double(), drawn(8, 1, 8, 8)
    space = search_space(supernet)
    search = TangleNAS(supernet, space, steps=1)
    rng = random.Random(0)
    for arch in (space.sample(rng) for _ in range(10)):
        hot = relaxations.one_hot(search.alphas.positions(arch), search.alphas.table.double())
        alone = extract(supernet, arch).train()
        soft = logits_of(supernet, search.alphas.assignment(hot), images)
        torch.testing.assert_close(soft, alone(images), rtol=0, atol=1e-10)


def test_unused_slices_have_no_gradient() -> None:
    supernet, images = net(), torch.randn(4, 1, 8, 8)
    search = TangleNAS(supernet, search_space(supernet), steps=1)
    smallest = relaxations.one_hot(search.alphas.positions(search.space.smallest()), search.alphas.table)
    loss = logits_of(supernet, search.alphas.assignment(smallest), images).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = supernet.first.conv.weight.grad
    assert gradient is not None
    assert float(gradient[:4, :, 1:4, 1:4].abs().min()) > 0
    gradient[:4, :, 1:4, 1:4] = 0.0
    assert float(gradient.abs().max()) == 0.0
    assert float(supernet.classifier.weight.grad[:, 4:].abs().max()) == 0.0  # type: ignore[index]


def test_a_mixture_has_the_activations_of_one_convolution() -> None:
    kernels, widths = (1, 3, 5, 7), (8, 16, 32)
    kernel, width = Choice(kernels, name="kernel"), Choice(widths, name="width")
    conv, x = Conv2d(4, width, kernel, padding="same", bias=False), torch.randn(2, 4, 16, 16)
    reader = Conv2d(width, 4, 1)
    both = nn.Sequential(conv, reader)
    separate = [nn.Conv2d(4, w, k, padding="same", bias=False) for k in kernels for w in widths]
    mix = torch.full((12,), 1 / 12, requires_grad=True)

    def apart() -> Tensor:
        padded = [F.pad(one(x), (0, 0, 0, 0, 0, 32 - one.out_channels)) for one in separate]
        total: Tensor = reader(sum(weight * out for weight, out in zip(mix, padded, strict=True)))
        return total

    of_kernel, of_width = (torch.full((n,), 1 / n, requires_grad=True) for n in (4, 3))
    with activated(both, {"kernel": of_kernel, "width": of_width}):
        entangled = saved_activations(lambda: both(x))
    with activated(both, {"width": 32}):
        several = saved_activations(apart)
    assert several / entangled > 6  # 12 outputs to 1, and the input on both sides


# ---- samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_sum_to_one_and_leave_absent_options_out(name: Sampler) -> None:
    weights = SAMPLERS[name](LOGITS, 0.5, relaxations.draws(0, 0))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert float(weights[1, 2]) == 0.0


@pytest.mark.parametrize("name", ["drnas", "darts", "gdas"])
def test_logits_have_a_gradient(name: Sampler) -> None:
    logits = LOGITS.clone().requires_grad_()
    weights = SAMPLERS[name](logits, 0.5, relaxations.draws(0, 0))
    (gradient,) = torch.autograd.grad((weights * torch.tensor([1.0, 2.0, 4.0])).sum(), logits)
    assert bool((gradient[0] != 0).all())
    assert bool(gradient.isfinite().all())


def test_gdas_is_the_drawn_option_in_value() -> None:
    supernet, images = net(), torch.randn(8, 1, 8, 8)
    search = TangleNAS(supernet, search_space(supernet), steps=4, sampler="gdas")
    weights = search.weights(relaxations.draws(0, 0))
    soft = logits_of(supernet, search.alphas.assignment(weights), images)
    hard = logits_of(supernet, search.alphas.hard(weights.argmax(1)), images)
    torch.testing.assert_close(soft, hard, rtol=1e-4, atol=1e-5)


def test_the_regulariser_pulls_to_the_uniform_distribution() -> None:
    search = TangleNAS(net(), search_space(net()), steps=1, regularisation=1.0)
    with torch.no_grad():
        search.alphas.table.zero_()
    assert float(search.divergence().detach()) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        search.alphas.table[0, 0] = 2.0
    value = search.divergence()
    (gradient,) = torch.autograd.grad(value, search.alphas.table)
    assert float(value.detach()) > 0
    assert float(gradient[0, 0]) > 0
    assert float(TangleNAS(net(), search_space(net()), steps=1, sampler="darts").divergence()) == 0.0


# ---- the search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLED)
def test_a_step_trains_weights_and_logits_each_on_its_part(sampler: Sampler) -> None:
    supernet = net(depth=True)
    search = TangleNAS(supernet, search_space(supernet), steps=4, sampler=sampler)
    table, weight = search.alphas.table.detach().clone(), supernet.first.conv.weight.detach().clone()
    search.step(toy_pair(0))
    assert bool((search.alphas.table != table).any()) == (sampler != "spos")
    assert bool((supernet.first.conv.weight != weight).any())


@pytest.mark.parametrize("sampler", SAMPLED[:3])
def test_a_cost_makes_the_network_small(sampler: Sampler) -> None:
    supernet = net()
    space = search_space(supernet)
    cost = cost_table(space, lambda arch: float(sum(value for value in arch.values() if isinstance(value, int))))
    fast = Recipe(alpha_lr=0.1)
    search = TangleNAS(supernet, space, steps=40, sampler=sampler, cost=cost, penalty=add(10.0), recipe=fast)
    for step in range(40):
        search.step(toy_pair(step))
    assert search.architecture() == space.smallest()


def test_cells_are_read_out_by_their_strongest_edges() -> None:
    cells = DartsNetwork(CLASSES, 1, (8, 8), width=2, cells=3)
    search = TangleNAS(cells, search_space(cells), steps=1)
    with torch.no_grad():
        for edge in ("normal_op_13", "normal_op_23"):
            row = list(search.alphas.options).index(edge)
            search.alphas.table[row, list(search.alphas.options[edge]).index("sep_conv_3x3")] = 4.0
    found = search.architecture()
    assert found["normal_inputs_3"] == (1, 2)
    assert found["normal_op_13"] == found["normal_op_23"] == "sep_conv_3x3"


def test_uniform_sampling_prefers_nothing() -> None:
    search = TangleNAS(net(), search_space(net()), steps=1, sampler="spos")
    with pytest.raises(ValueError, match="uniform sampling learns no logits"):
        search.architecture()
    with pytest.raises(ValueError, match="sampler is 'random': give one of drnas, darts, gdas, spos"):
        TangleNAS(net(), search_space(net()), steps=1, sampler="random")  # type: ignore[arg-type]
