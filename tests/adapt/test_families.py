# SPDX-License-Identifier: Apache-2.0
"""The laws of `elastic` for every family of transformers, on tiny networks with random weights."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.families import ALL, GENERATORS, Family
from sartor.adapt import elastic, plain
from sartor.architecture import Architecture
from sartor.nn import Elastic
from sartor.supernet import activated, extract, named_choices, search_space

pytest.importorskip("transformers")
torch.set_num_threads(1)

every_family = pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
every_generator = pytest.mark.parametrize("family", GENERATORS, ids=lambda family: family.name)

# What reads heads, and what reads the hidden units of an MLP: their names in the original networks.
READERS = {
    "bert": (r"attention\.output\.dense", r"layer\.\d+\.output\.dense"),
    "roberta": (r"attention\.output\.dense", r"layer\.\d+\.output\.dense"),
    "distilbert": (r"out_lin", r"ffn\.lin2"),
    "gpt2": (r"attn\.c_proj", r"mlp\.c_proj"),
    "t5": (r"(SelfAttention|EncDecAttention)\.o", r"wo"),
    "whisper": (r"out_proj", r"fc2"),
    **dict.fromkeys(("vit", "deit", "swin"), (r"o_proj", r"mlp\.fc2")),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), (r"o_proj", r"down_proj")),
}


def output(network: nn.Module, family: Family) -> Tensor:
    with torch.no_grad():
        first = network(**family.inputs())[0]
    assert isinstance(first, Tensor)
    return first


def options(family: Family) -> dict[str, Any]:
    hidden = {"hidden": family.hidden} if family.hidden else {}
    return {"heads": [0.5], "mlp": [10, 20], "depth": [family.lists, 2], **hidden}


def supernet(family: Family, attention: str = "sdpa") -> Any:
    return elastic(family.network(attention), **options(family))


def drawn(network: nn.Module, count: int) -> Iterator[Architecture]:
    space, rng = search_space(network), random.Random(0)
    yield space.smallest()
    for _ in range(count):
        yield space.sample(rng)


@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_in_full_it_is_the_original(family: Family, attention: str) -> None:
    network = family.network(attention)
    before, state = output(network, family), network.state_dict()
    parameters = dict(network.named_parameters())
    assert elastic(network, **options(family)) is network
    assert torch.equal(output(network, family), before)
    assert list(network.state_dict()) == list(state)
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    copied = extract(network, search_space(network).largest())
    assert torch.equal(output(copied, family), before)
    assert list(copied.state_dict()) == list(state)


@every_family
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_subnetwork_is_its_extraction(family: Family, attention: str) -> None:
    network = supernet(family, attention)
    for architecture in drawn(network, 2):
        with activated(network, architecture):
            inside = output(network, family)
        small = plain(network, architecture)
        assert torch.equal(output(small, family), inside), architecture
        assert not any(isinstance(module, Elastic) for module in small.modules())
        assert type(small) is type(family.network())


@every_family
def test_dropped_heads_and_units_are_as_good_as_zero(family: Family) -> None:
    network, original = family.network(), family.network()
    elastic(network, heads=[0.5], mlp=[10])
    if hasattr(network, "generate") and network.config.is_encoder_decoder:
        elastic(network, cross_heads=[0.5])
    heads, units = READERS[original.config.model_type]
    with torch.no_grad():
        for path, module in original.named_modules():
            weight = module._parameters.get("weight")
            if weight is None or weight.dim() != 2:
                continue
            inputs = weight if type(module).__name__ == "Conv1D" else weight.T  # (in, out)
            if re.search(rf"(^|\.){heads}$", path):
                inputs[len(inputs) // 2 :] = 0.0
            elif re.search(rf"(^|\.){units}$", path):
                inputs[10:] = 0.0
    with activated(network, search_space(network).smallest()):
        assert torch.allclose(output(network, family), output(original, family), rtol=1e-4, atol=1e-4)


@every_family
def test_a_list_of_blocks_is_the_network_with_these_alone(family: Family) -> None:
    network, original = family.network(), family.network()
    elastic(network, depth=[family.lists])
    for path, module in list(original.named_modules()):
        if isinstance(module, nn.ModuleList) and len(module) == 3 and not re.search(r"block\.\d\.layer$", path):
            parent = original.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], nn.ModuleList([module[i] for i in family.lists]))
    if (kinds := getattr(original.config, "layer_types", None)) is not None:
        original.config.layer_types = [kinds[i] for i in family.lists]
    for module in original.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False  # its places would be those of all blocks
    with activated(network, search_space(network).smallest()):
        assert torch.equal(output(network, family), output(original, family))


@every_family
def test_gradients_reach_the_parameters_of_the_original(family: Family) -> None:
    network = family.network()
    parameters = dict(network.named_parameters())
    elastic(network, **options(family))
    with activated(network, search_space(network).smallest()):
        network(**family.inputs())[0].square().mean().backward()
    reached = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert len(reached) > len(parameters) // 3
    narrow = next(
        name for name in reached if re.search(r"(fc1|lin1|intermediate\.dense|up_proj|c_fc|wi|wi_1)\.w", name)
    )
    gradient = parameters[narrow].grad
    rows = gradient.T if gradient.shape[0] == 24 and "c_fc" in narrow else gradient
    assert rows[:10].abs().sum() > 0 and not rows[10:].any()


@every_family
def test_copies_and_pickles_are_supernets(family: Family) -> None:
    network = supernet(family)
    architecture = search_space(network).sample(random.Random(3))
    with activated(network, architecture):
        expected = output(network, family)
    whole = output(network, family)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert list(named_choices(twin)) == list(named_choices(network))
        with activated(twin, architecture):
            assert torch.equal(output(twin, family), expected)
            assert torch.equal(output(network, family), whole)
    assert repr(network)


@every_family
def test_choices_beyond_the_depth_do_not_matter(family: Family) -> None:
    network = supernet(family)
    space = search_space(network)
    depth = next(option for name, option in space.smallest().items() if name.endswith("depth"))
    left_out = next(i for i in range(3) if str(i) not in str(depth))
    inside = [name for name in space.choices if re.search(rf"(^|\.)(layer|layers|h|block|blocks)\.{left_out}\.", name)]
    assert inside
    small = space.smallest()
    for name in inside:
        other = {**small, name: space.choices[name][-1]}
        assert space.canonical(Architecture(other)) == space.canonical(small)


@pytest.mark.parametrize("name", ["bert", "qwen3", "t5"])
def test_hidden_states_and_attentions_are_those_of_the_blocks_that_run(name: str) -> None:
    family = next(one for one in ALL if one.name == name)
    network = elastic(family.network("eager"), heads=[0.5], depth=[family.lists])
    architecture = search_space(network).smallest()
    start = "encoder_" if name == "t5" else ""

    def counts(net: Any) -> tuple[int, int]:
        with torch.no_grad():
            made = net(**family.inputs(), output_hidden_states=True, output_attentions=True)
        return len(made[f"{start}hidden_states"]), len(made[f"{start}attentions"])

    assert counts(network) == (4, 3)
    with activated(network, architecture):
        assert counts(network) == (3, 2)
    assert counts(extract(network, architecture)) == (3, 2)


@every_generator
def test_it_generates_alike_with_and_without_a_cache(family: Family) -> None:
    network = family.network()
    words = {name: value for name, value in family.inputs().items() if not name.startswith("decoder")}

    def generated(net: Any, cached: bool) -> Tensor:
        made = net.generate(**words, max_new_tokens=8, do_sample=False, use_cache=cached, eos_token_id=None)
        assert isinstance(made, Tensor)
        return made

    whole = generated(network, True)
    assert torch.equal(whole, generated(network, False))
    elastic(network, **options(family))
    assert torch.equal(generated(network, True), whole)
    for architecture in drawn(network, 1):
        with activated(network, architecture):
            inside = generated(network, True)
            assert torch.equal(inside, generated(network, False))
        for cut in (extract(network, architecture), plain(network, architecture)):
            assert torch.equal(generated(cut, True), inside)


@every_family
def test_what_the_configuration_says_makes_the_network_anew(family: Family) -> None:
    """Uniform sizes; heads of six or five features, so that two of them are a hidden size of twelve where it counts."""
    network = family.network()
    roles: dict[str, Any] = {"heads": [2], "mlp": [0.5], "depth": [family.lists], "hidden": [12]}
    if network.config.model_type == "swin":
        roles = {"mlp": [0.5], "depth": [2]}
    if network.config.is_encoder_decoder and hasattr(network, "generate"):
        roles["cross_heads"] = [2]
    elastic(network, **roles)
    small: Any = plain(network, search_space(network).smallest())
    anew = type(small)(type(small.config).from_dict(small.config.to_dict())).eval()
    anew.load_state_dict(small.state_dict())
    assert torch.equal(output(anew, family), output(small, family))


def test_the_configuration_says_what_is_left() -> None:
    family = next(one for one in ALL if one.name == "qwen3")
    network = family.network()
    elastic(network, hidden=[12], heads=[2], mlp=[16], depth=[(0, 2)])
    config: Any = plain(network, search_space(network).smallest()).config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (12, 16, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 6)
    assert config.layer_types == ["full_attention", "full_attention"]
    assert network.config.num_hidden_layers == 3
    assert [*network.config.layer_types] == ["full_attention", "sliding_attention", "full_attention"]


def test_uneven_sizes_leave_the_configuration() -> None:
    family = next(one for one in ALL if one.name == "bert")
    network = elastic(family.network(), mlp=[10], heads=[2])
    names = search_space(network)
    small: Any = plain(network, {**names.smallest(), "bert.encoder.layer.1.mlp": 40})
    assert (small.config.intermediate_size, small.config.num_attention_heads) == (40, 4)
