# SPDX-License-Identifier: Apache-2.0
"""Every elastic layer and container against the layer contract; the layers are in `layer_cases.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from contracts import layer_contract as law
from contracts.layer_contract import LayerCase
from layer_cases import BATCH_NORMS, CASES, ITERATED, Node, Resized, Width, first, linear, listed
from sartor.choice import Choice, Derived, Kept, Size, indices
from sartor.supernet import activated, extract, named_choices, search_space

torch.set_num_threads(1)

every_layer = pytest.mark.parametrize("case", [*CASES, ITERATED], ids=lambda case: case.name)
every_mixed_layer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_extraction_equals_activation(case: LayerCase, dtype: torch.dtype) -> None:
    law.extraction_equals_activation(case, dtype)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_largest_is_exact(case: LayerCase, dtype: torch.dtype) -> None:
    law.largest_is_exact(case, dtype)


@every_layer
def test_extraction_trains_like_activation(case: LayerCase) -> None:
    law.extraction_trains_like_activation(case)


@every_mixed_layer
def test_one_hot_equals_hard(case: LayerCase) -> None:
    law.one_hot_equals_hard(case)


@every_mixed_layer
def test_gradients_reach_every_choice(case: LayerCase) -> None:
    law.gradients_reach_every_choice(case, training=False)


@pytest.mark.parametrize("case", BATCH_NORMS, ids=lambda case: case.name)
def test_gradients_through_batch_statistics(case: LayerCase) -> None:
    law.gradients_reach_every_choice(case, training=True)


@every_layer
def test_meta_build_takes_no_memory(case: LayerCase) -> None:
    law.meta_build_takes_no_memory(case)


@every_layer
def test_copies_are_independent(case: LayerCase) -> None:
    law.copies_are_independent(case)


@every_layer
def test_extraction_shares_nothing(case: LayerCase) -> None:
    law.extraction_shares_nothing(case)


@every_layer
def test_state_dict_round_trip(case: LayerCase) -> None:
    law.state_dict_round_trip(case)


@every_layer
def test_prints(case: LayerCase) -> None:
    law.prints(case)


@every_layer
def test_exports(case: LayerCase) -> None:
    law.exports(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["depthwise-first", "attention-grouped", "nested"])
@pytest.mark.filterwarnings("ignore")
def test_compiles(name: str) -> None:
    law.compiles(next(case for case in CASES if case.name == name))


# ---- what a single layer produces under soft widths ----------------------------------------------------------


@pytest.mark.parametrize("width", [first, listed])
@pytest.mark.parametrize(
    ("layer", "channels"),
    [
        (lambda w: elastic.Conv2d(2, w, 3), 2),
        (lambda w: elastic.ConvTranspose2d(2, w, 3), 2),
        (lambda w: elastic.Conv2d(w, w, 3, groups=w), 6),
        (lambda w: elastic.BatchNorm2d(w), 6),
        (lambda w: elastic.GroupNorm(w, w), 6),
    ],
    ids=["conv", "transposed", "depthwise", "batchnorm", "instancenorm"],
)
def test_one_hot_keeps_what_hard_keeps(layer: Callable[[Size], nn.Module], channels: int, width: Width) -> None:
    """Soft, a producer gives everything; among it the entries of the hard layer, as they are."""
    choice = width()
    module = layer(choice).double().eval()
    x = torch.randn(2, channels, 5, 5, dtype=torch.float64)
    (name,) = named_choices(module)
    for option, weights in zip(choice.options, torch.eye(3, dtype=torch.float64), strict=True):
        kept = torch.tensor(indices(option))
        with activated(module, {name: option}):
            hard = module(x if channels == 2 else x.index_select(1, kept))
        with activated(module, {name: weights}):
            soft = module(x)
        assert soft.shape[1] == 6
        assert law.distance(soft.index_select(1, kept), hard) <= 1e-12


# ---- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: elastic.Conv2d(4, 6, 3, groups=4), "out_channels=6 does not divide into 4 groups"),
        (lambda: elastic.Conv2d(Choice([4, 6]), 8, 3, groups=2), r"use per_group\(width, 2\)"),
        (lambda: elastic.Conv2d(8, Choice([3, 8]), 3, groups=4), r"use per_group\(width, 4\)"),
        (lambda: elastic.Conv2d(8, 8, 3, groups=Choice([2, 4])), "give in_channels=groups \\* width"),
        (lambda: elastic.Conv2d(Choice([4, 8]), 8, 3, groups=Choice([2, 4])), "in_channels holds"),
        (lambda: elastic.Conv2d(4, 4, Choice([2, 3])), "kernel 2 cannot be centred in kernel 3"),
        (lambda: elastic.Conv2d(4, 4, Choice([3, 5]), padding=0), "give padding='same'"),
        (
            lambda: elastic.Conv2d(4, 4, Choice([3, 5]), padding="same", padding_mode="circular"),
            "padding_mode",
        ),
        (lambda: elastic.Conv2d(4, 4, 4, padding="same"), "padding='same' needs an odd kernel"),
        (lambda: elastic.Conv2d(4, 4, 3, padding="full"), "padding='full' is unknown"),
        (lambda: elastic.GroupNorm(4, Choice([4, 6])), "6 channels do not divide into 4 groups"),
        (lambda: elastic.GroupNorm(Choice([2, 4]), 8), "num_channels holds 8 for 2 groups"),
        (lambda: elastic.Embedding(4, 4, max_norm=1.0), "max_norm=1.0 would rescale"),
        (lambda: elastic.Repeat(nn.Identity(), depth=Choice([1, 2])), "needs 2 blocks, got 1"),
        (lambda: elastic.OneOf({}), "at least one option"),
        (lambda: elastic.Linear(4, Choice(["wide", "narrow"])), "'wide' is no size"),
        (lambda: elastic.Linear(4, Choice([0, 4])), "size 0 keeps nothing"),
        (lambda: elastic.Linear(4, Choice([(1, 0)])), "strictly increasing"),
    ],
)
def test_impossible_sizes_raise_when_the_layer_is_made(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_zero_weights_of_all_options_raise() -> None:
    block = elastic.OneOf({"a": nn.Identity(), "b": nn.Identity()})
    with (
        pytest.raises(ValueError, match="at least one operation must run"),
        activated(block, {"choice": torch.zeros(2)}),
    ):
        block(torch.ones(1))
    stack = elastic.Repeat(nn.Identity(), nn.Identity(), depth=Choice([1, 2]))
    with (
        pytest.raises(ValueError, match="at least one depth must run"),
        activated(stack, {"depth": torch.zeros(2)}),
    ):
        stack(torch.ones(1))


def test_one_of_does_not_run_what_has_no_weight() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    block = elastic.OneOf({"ran": nn.Identity(), "refusing": Refusing()})
    with activated(block, {"choice": torch.tensor([1.0, 0.0])}):
        assert block(torch.ones(1)) == 1


def test_stages_are_refused_where_they_do_not_fit() -> None:
    blocks = [nn.Identity() for _ in range(4)]
    stages = elastic.Stages(*blocks, stages=[(0, 2, Choice([1, 2]))])
    assert len(stages) == 4 and list(stages) == blocks
    with pytest.raises(ValueError, match="is no depth of the blocks 2 to 4 of 4"):
        stages.add_stage(2, 4, Choice([1, 3]))
    with pytest.raises(ValueError, match="a block between 1 and 3 is in a stage already"):
        stages.add_stage(1, 3, Choice([1, 2]))


def test_repeat_stands_in_for_a_list() -> None:
    blocks = [nn.Identity() for _ in range(4)]
    stack = elastic.Repeat(*blocks, depth=Choice([2, (0, 3), 4]))
    with activated(stack, {"depth": (0, 3)}):
        assert list(stack) == [blocks[0], blocks[3]] and len(stack) == 2
        assert stack[-1] is blocks[3] and stack[:1] == [blocks[0]]
    with activated(stack, {"depth": torch.ones(3) / 3}):
        assert len(stack) == 4
        with pytest.raises(ValueError, match="is soft"):
            list(stack)


def test_per_sample_gradients_of_an_active_architecture() -> None:
    """torch.func transforms see through the slices."""
    network = linear(first).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(network, parameters, (row[None],)).square().sum()  # type: ignore[no-any-return]

    with activated(network, {"0.out_features": 4}):
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
        whole = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    for (name, gradient), total in zip(each.items(), whole, strict=True):
        assert torch.allclose(gradient.sum(0), total), name


def test_fixed_sizes_are_torch_layers() -> None:
    layer = elastic.Conv2d((2, 2), 4, 3, padding="valid", groups=2)
    stack = elastic.Repeat(layer, nn.ReLU(), depth=1)
    assert stack.gates() == [] and not named_choices(stack)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(stack(x), nn.functional.conv2d(x, layer.weight, layer.bias, groups=2))
    assert type(extract(stack, {})) is nn.Sequential


def test_transposed_output_size() -> None:
    layer = elastic.ConvTranspose2d(2, Choice([2, 4]), 3, stride=2, padding=1)
    assert layer(torch.randn(1, 2, 5, 5), [10, 10]).shape == (1, 4, 10, 10)


def test_resized_follows_the_model() -> None:
    model = Resized()
    images = torch.randn(2, 2, 9, 12)
    assert elastic.resized(images, nn.Identity()) is images
    assert elastic.resized(images, model).shape == (2, 2, 9, 9)
    with activated(model, {"resolution": torch.ones(3) / 3}), pytest.raises(ValueError, match="is soft"):
        elastic.resized(images, model)


def test_frozen_parameters_stay_frozen() -> None:
    network = linear(first)
    next(network.parameters()).requires_grad_(False)
    assert [p.requires_grad for p in extract(network, {}).parameters()] == [False, True, True, True, True]


def test_sizes_of_a_user_function() -> None:
    half = Derived(elastic.round_channels, Choice([16, 32]))
    assert half.options == (16, 32)


# ---- a node of a graph ---------------------------------------------------------------------------------------


def test_a_node_sums_the_edges_by_their_weights() -> None:
    net, x = Node().eval(), torch.randn(4, 5)
    a, b, c = (edge(y) for edge, y in zip(net.node.values(), (x, torch.tanh(x), x * x), strict=True))
    with activated(net, {"node.kept": Kept(torch.ones(3))}):
        torch.testing.assert_close(net(x), a + b + c)
    beta = torch.tensor([0.2, 0.0, -3.0], requires_grad=True)
    with activated(net, {"node.kept": Kept(beta)}):
        out = net(x)
    torch.testing.assert_close(out, 0.2 * a - 3 * c)
    out.sum().backward()
    torch.testing.assert_close(beta.grad, torch.stack([a.sum(), torch.tensor(0.0), c.sum()]))


def test_an_edge_without_weight_is_not_run() -> None:
    net, calls = Node(), []
    net.node["b"].register_forward_hook(lambda *_: calls.append("b"))
    for weights in (Kept(torch.tensor([1.0, 0.0, 1.0])), torch.tensor([0.5, 0.0, 0.5, 0.0]), (0, 2)):
        with activated(net, {"node.kept": weights}):
            net(torch.randn(4, 5))
    assert not calls
    with activated(net, {"node.kept": Kept(torch.zeros(3))}), pytest.raises(ValueError, match="at least one edge"):
        net(torch.randn(4, 5))


def test_an_edges_choices_matter_where_it_is_kept() -> None:
    net = Node()
    space = search_space(net)
    assert space.gates["node.b.1.choice"] == ((("node.kept", ((0, 1), (1, 2))),),)
    assert list(extract(net, {"node.kept": (0, 2)}).node) == ["a", "c"]  # type: ignore[arg-type]


def test_a_node_needs_its_edges_and_an_input_for_each() -> None:
    with pytest.raises(ValueError, match="needs 3 edges, got 2"):
        elastic.Inputs({"a": nn.Identity(), "b": nn.Identity()}, Choice([(0, 1), (0, 2)]))
    with pytest.raises(ValueError, match="got 1 inputs for 3 edges"):
        Node().node(torch.ones(4, 5))
