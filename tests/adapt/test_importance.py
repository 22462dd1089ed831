# SPDX-License-Identifier: Apache-2.0
"""Sorting units by importance: the full network stays, and what is cut off afterwards matters least."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.families import ALL, Family
from sartor.adapt import Depth, Width, elastic, sort_by_importance
from sartor.adapt.importance import taylor
from sartor.adapt.rules import Rule
from sartor.choice import Choice
from sartor.permutation import channel_groups, importance
from sartor.supernet import activated, extract, search_space

torch.set_num_threads(1)

Network = tuple[nn.Module, Tensor]


class First(nn.Module):
    """One tensor in and one out, around a model of transformers."""

    def __init__(self, model: nn.Module, **keywords: bool) -> None:
        super().__init__()
        self.model, self.keywords = model, keywords

    def forward(self, inputs: Tensor) -> Tensor:
        first: Tensor = self.model(inputs, **self.keywords)[0]
        return first


def ids() -> Tensor:
    return torch.randint(2, 60, (3, 7), generator=torch.Generator().manual_seed(1))


def bert() -> Network:
    tf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    net = tf.BertForSequenceClassification(tf.BertConfig(vocab_size=60, max_position_embeddings=12, **sizes))
    elastic(net, heads=[0.5], mlp=[0.5], hidden=[0.5], depth=[1])
    return First(net), ids()


def llama() -> Network:
    """Two query heads to a key-value head: pairs move."""
    tf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tf.LlamaConfig(vocab_size=60, intermediate_size=20, max_position_embeddings=12, **sizes)
    net = tf.LlamaForCausalLM(config)
    elastic(net, heads=[0.5], mlp=[0.5], shared=("heads", "mlp"))
    return First(net, use_cache=False), ids()


def gpt2() -> Network:
    """One layer makes q, k and v, one behind the other."""
    tf = pytest.importorskip("transformers")
    net = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=12))
    rules: tuple[Rule, ...] = (
        Width(
            "heads", "h.*", makes=("attn.c_attn",), reads=("attn.c_proj",), count="attn.num_heads",
            numbers=("attn.split_size", "attn.num_heads"), fused=3,
        ),
        Width("mlp", "h.*", makes=("mlp.c_fc",), reads=("mlp.c_proj",)),
    )  # fmt: skip
    elastic(net, rules, heads=[0.5], mlp=[0.5])
    return First(net, use_cache=False), ids()


def vit() -> Network:
    tf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    net = tf.ViTForImageClassification(tf.ViTConfig(image_size=8, patch_size=4, **sizes))
    return First(elastic(net, heads=[0.5], mlp=[0.5], depth=[1])), torch.randn(3, 3, 8, 8)


class Residual(nn.Module):
    """A block of a residual network, with statistics that differ from channel to channel."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


RESIDUAL: tuple[Rule, ...] = (
    Width("width", "blocks.*", makes=("conv1",), follows=("bn1",), reads=("conv2",)),
    Width(
        "hidden", "", makes=("stem", "conv2"), follows=("bn2",), reads=("conv1", "head"),
    ),
)  # fmt: skip


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 6, 3, padding=1), nn.Sequential(Residual(6, 8), Residual(6, 10))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def resnet() -> Network:
    return elastic(ResNet(), RESIDUAL, width=[0.5], hidden=[0.5]), torch.randn(3, 1, 6, 6)


def uneven(net: nn.Module) -> nn.Module:
    """Weights and statistics that differ from unit to unit."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.2)
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("build", [bert, llama, gpt2, vit, resnet])
@pytest.mark.parametrize("data", [False, True], ids=["weights", "data"])
def test_the_full_network_keeps_its_function(build: Callable[[], Network], data: bool) -> None:
    net, inputs = build()
    before, keys = uneven(net)(inputs).detach(), [*net.state_dict()]
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    rows = before.flatten(0, -2) if before.dim() > 2 else before
    labels = torch.arange(len(rows)) % rows.shape[1]
    groups = sort_by_importance(net, [(inputs, labels)] if data else None)
    assert len(groups) == len(channel_groups(net)) and not any(group.fault for group in groups)
    torch.testing.assert_close(net(inputs), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
    assert [*net.state_dict()] == keys
    moved = [name for name, value in net.state_dict().items() if not torch.equal(value, weights[name])]
    assert any("heads" in str(group.size.roots) for group in groups) == (build is not resnet) and moved
    if not data:
        values = [importance(group) for group in groups]
        assert all((one.diff() <= 1e-5 * one.max()).all() for one in values)


HEADLESS = ("ViTModel", "T5EncoderModel", "WhisperForAudioClassification")  # the last is not known to have a head


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
@pytest.mark.parametrize("shared", [(), ("heads",)], ids=["each", "shared"])
def test_every_family_can_be_sorted(family: Family, shared: tuple[str, ...]) -> None:
    pytest.importorskip("transformers")
    net = family.network().double()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in family.inputs().items()}
    before = net(**inputs)[0].detach()
    hidden: dict[str, Any] = {"hidden": [0.5]} if family.hidden else {}
    elastic(net, shared=() if family.name == "swin" else shared, heads=[0.5], mlp=[0.5], **hidden)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    sorted_ = [one.name for one in sort_by_importance(net)]
    left = [one.name for one in channel_groups(net) if one.name not in sorted_]
    assert len(left) == ((family.kind in HEADLESS) and bool(hidden)), left
    torch.testing.assert_close(net(**inputs)[0], before, rtol=0, atol=1e-5 * before.abs().max().item())
    assert not all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("build", [bert, llama, gpt2, vit, resnet])
def test_a_sub_network_is_its_extraction_after_sorting(build: Callable[[], Network]) -> None:
    net, inputs = build()
    sort_by_importance(uneven(net))
    smallest = search_space(net).smallest()
    with activated(net, smallest):
        cut = net(inputs)
    torch.testing.assert_close(extract(net, smallest)(inputs), cut, rtol=1e-5, atol=1e-6)


def test_heads_move_whole_and_with_all_that_holds_them() -> None:
    net, _ = gpt2()
    heads = next(one for one in channel_groups(net) if "heads" in repr(one.size.roots))
    assert heads.extent == 4
    assert {(place.tensor, place.start, place.block) for place in heads.places if place.role == "makes"} == {
        (tensor, start, 6) for tensor in ("weight", "bias") for start in (0, 24, 48)
    }


def test_blocks_that_share_a_choice_are_sorted_one_by_one() -> None:
    net, _ = llama()
    groups = channel_groups(net)
    assert len(search_space(net).choices) == 2 and len(groups) == 4
    assert sorted(one.extent for one in groups) == [2, 2, 20, 20]


class Planted(nn.Module):
    """Two layers of which every second unit is noise: it hears the inputs, and is heard, but says nothing of labels."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.outer = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(16, 8, generator=generator))
            self.inner.weight[::2] *= 0.02  # hardly heard, though what reads it may be loud
            self.outer.weight.copy_(torch.randn(4, 16, generator=generator))
            self.outer.weight[:, ::2] *= loud

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.inner(x)))
        return out


MLP: tuple[Rule, ...] = (Width("mlp", "", makes=("inner",), reads=("outer",)),)


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Inputs, labelled by the network as it is."""
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(64, 8, generator=generator) for _ in range(count)]
    return [(one, Planted(1.0)(one).argmax(1)) for one in inputs]


def loss_of_half(net: nn.Module) -> float:
    inputs, labels = batches(1)[0]
    with activated(net, search_space(net).smallest()), torch.no_grad():
        return F.cross_entropy(net(inputs), labels).item()


@pytest.mark.parametrize(("loud", "data"), [(0.1, False), (0.1, True), (3.0, True)])
def test_half_of_a_sorted_network_loses_less(loud: float, data: bool) -> None:
    """Readers are loud where units are not: then the weights mislead, and data does not."""
    plain, sorted_ = (elastic(Planted(loud), MLP, mlp=[0.5]) for _ in range(2))
    sort_by_importance(sorted_, batches() if data else None)
    assert loss_of_half(sorted_) < loss_of_half(plain) - 0.3
    assert (sorted_.get_parameter("inner.weight")[:8].abs().sum(1) > 1.0).sum() >= 7


def test_the_score_is_the_slope_of_the_loss_by_a_factor_on_the_unit() -> None:
    """Michel et al., equation 2: I_h = E |dL / d xi_h|, xi_h a factor on the unit's output."""
    net = elastic(Planted(1.0), MLP, mlp=[0.5])
    (values,) = taylor(net, channel_groups(net), batches(2))
    wanted = torch.zeros(16)
    for inputs, labels in batches(2):
        factor = torch.ones(16, requires_grad=True)
        hidden = torch.tanh(inputs @ net.get_parameter("inner.weight").T)
        out = (hidden * factor) @ net.get_parameter("outer.weight").T
        wanted += torch.autograd.grad(F.cross_entropy(out, labels), factor)[0].abs() / 2
    torch.testing.assert_close(values, wanted)


def test_scoring_leaves_no_trace() -> None:
    net = elastic(Planted(1.0), MLP, mlp=[0.5]).train()
    net.requires_grad_(False)
    net.get_parameter("outer.weight").grad = torch.ones(4, 16)
    taylor(net, channel_groups(net), batches(1))
    assert net.training and not any(parameter.requires_grad for parameter in net.parameters())
    assert net.get_parameter("outer.weight").grad.eq(1).all()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no batch to score units by"):
        taylor(net, channel_groups(net), [])


def test_what_was_trained_stays_as_it_is() -> None:
    net = elastic(Planted(0.1), MLP, mlp=[4, 8])
    space = search_space(net)
    trained = space.restrict({"mlp": (8, 16)})
    inputs = batches(1)[0][0]

    def outputs(width: int) -> Tensor:
        with activated(net, {"mlp": width}), torch.no_grad():
            out: Tensor = net(inputs)
            return out

    before = {width: outputs(width) for width in (4, 8, 16)}
    sort_by_importance(net, trained=trained)
    torch.testing.assert_close(outputs(8), before[8])
    torch.testing.assert_close(outputs(16), before[16])
    assert not torch.allclose(outputs(4), before[4])


class Shuffled(Planted):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        out: Tensor = self.outer(hidden * torch.arange(hidden.shape[-1]))
        return out


def test_units_that_are_told_apart_by_place_go_back() -> None:
    net = elastic(Shuffled(0.1), MLP, mlp=[0.5])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="sorting changed what the network computes"):
        sort_by_importance(net, batches(1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_outputs_that_are_no_tensor_are_refused() -> None:
    class Tuple(Planted):
        def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (super().forward(x),)

    with pytest.raises(ValueError, match="returns a tuple, not a tensor: wrap it"):
        sort_by_importance(elastic(Tuple(0.1), MLP, mlp=[0.5]), batches(1))


def test_a_table_of_biases_follows_the_heads() -> None:
    """As in T5, Swin and Whisper: a table (places, heads) beside blocks of heads."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 3
            self.value, self.out = nn.Linear(6, 12), nn.Linear(12, 6)
            self.table, self.scale = nn.Embedding(5, 3), nn.Parameter(torch.rand(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            value = self.value(x).unflatten(-1, (self.heads, 4))
            value = value * (self.table.weight.sum(0) + self.scale.sum(0))[:, None]
            out: Tensor = self.out(value.flatten(-2))
            return out

    torch.manual_seed(0)
    net, x = nn.Sequential(Attention()), torch.randn(2, 6)
    before = net(x)
    rule = Width(
        "heads", "", makes=("value", "table", "0.scale"), reads=("out",), count="0.heads", numbers=("0.heads",)
    )
    elastic(net, [rule], heads=[1, 2])
    (group,) = sort_by_importance(net)
    assert isinstance(group.size, Choice) and {place.block for place in group.places} == {1, 4}
    torch.testing.assert_close(net(x), before)


def test_depth_alone_has_nothing_to_sort() -> None:
    net = elastic(nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))), [Depth("depth", "0")], depth=[1])
    assert sort_by_importance(net) == []
