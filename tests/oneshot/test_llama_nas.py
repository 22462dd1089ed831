# SPDX-License-Identifier: Apache-2.0
"""LLaMA-NAS: full and random networks in turns, distillation, and what its sub-networks are good for afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sartor.oneshot import Recipe
from sartor.oneshot.llama_nas import LLaMANAS
from sartor.supernet import activated, extract, search_space

transformers = pytest.importorskip("transformers")
from sartor.adapt import elastic  # noqa: E402
from sartor.adapt.networks import LanguageModel  # noqa: E402

SGD = Recipe(
    optimizer="sgd", lr=0.1, lr_batch=4, momentum=0.0, schedule="constant",
    label_smoothing=0.0, dropout=None, weight_decay=0.0,
)  # fmt: skip
LAYERS, WIDEST, WORDS = 4, 64, 61


def llama(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=WIDEST, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    return LanguageModel(transformers.LlamaForCausalLM(config)).eval()


def supernet() -> Any:
    return elastic(llama(), depth=[2, 3, 4], mlp=[16, 32, 64])


def learner(**given: Any) -> LLaMANAS:
    net = supernet()
    return LLaMANAS(net, search_space(net), steps=20, batch_size=4, **{"recipe": SGD, **given})


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A walk through the words in steps of 1 or 2."""
    rng = torch.Generator().manual_seed(seed)
    ids = (torch.randint(1, 3, (4, 13), generator=rng).cumsum(1)) % WORDS
    return ids[:, :-1], ids[:, 1:]


def architecture(net: Any, depth: int, *widths: int) -> dict[str, Any]:
    names = search_space(net).choices
    mlp = [name for name in names if name.endswith(".mlp")]
    return {next(n for n in names if n.endswith(".depth")): depth, **dict(zip(mlp, widths, strict=True))}


def test_even_steps_train_the_full_network_and_odd_ones_a_random_one() -> None:
    one = learner()
    seen = []
    for step in range(12):
        seen.append(one.sampled())
        one.step(batch(step))
    assert all(arch == one.largest for arch in seen[::2])
    assert len(set(seen[1::2])) > 3


def test_odd_steps_leave_weights_outside_of_the_slice_alone() -> None:
    one = learner()
    depth, widths = 2, (16, 32)
    small = one.space.canonical(architecture(one.net, depth, *widths, 64, 64))
    one.space = one.space.restrict({name: (value,) for name, value in small.items()})
    net: Any = one.net
    layers = net.model.model.layers

    def outside() -> list[Tensor]:
        mlps = [(layer.mlp, width) for layer, width in zip(layers, widths, strict=False)]
        rows = [mlp.up_proj.weight[width:] for mlp, width in mlps]
        columns = [mlp.down_proj.weight[:, width:] for mlp, width in mlps]
        dropped = [p for layer in list(layers._modules.values())[depth:] for p in layer.parameters()]
        return [tensor.detach().clone() for tensor in (*rows, *columns, *dropped)]

    for step in range(4):
        before, kept = outside(), layers[0].mlp.up_proj.weight[:16].detach().clone()
        one.step(batch(step))
        same = [torch.equal(a, b) for a, b in zip(before, outside(), strict=True)]
        assert all(same) if step % 2 else not any(same)
        assert not torch.equal(kept, layers[0].mlp.up_proj.weight[:16])


def test_without_distillation_the_gradient_is_that_of_the_labels() -> None:
    one, other = learner(), supernet()
    one.training.done = 1
    arch, (ids, labels) = one.sampled(), batch()
    with activated(other, arch):
        F.cross_entropy(other(ids).flatten(0, 1), labels.flatten()).backward()  # type: ignore[no-untyped-call]
    one.step((ids, labels))
    for ours, theirs in zip(one.net.parameters(), other.parameters(), strict=True):
        moved = theirs if theirs.grad is None else theirs - 0.1 * theirs.grad
        torch.testing.assert_close(ours, moved)


def test_distillation_alone_learns_nothing_from_the_labels_at_odd_steps() -> None:
    """The full network is its own teacher: with labels of another batch, and so another loss, the step is the same."""
    found = []
    for labels in (batch(0)[1], batch(1)[1]):
        one = learner(distillation=1.0)
        one.training.done = 1
        told = one.step((batch(0)[0], labels))
        assert told["divergence"] > 0.0
        found.append([p.detach().clone() for p in one.net.parameters()])
    assert all(map(torch.equal, *found))
    assert learner(distillation=1.0).step(batch())["divergence"] == 0.0


def test_a_teacher_of_its_own_stays_as_it_is_and_teaches_the_full_network_too() -> None:
    teacher = llama(seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    one = learner(distillation=1.0, teacher=teacher)
    ids, labels = batch()
    other = supernet()
    with activated(other, one.largest):
        predicted, wanted = (net(ids).flatten(0, 1).log_softmax(1) for net in (other, teacher))
    F.kl_div(predicted, wanted.detach(), log_target=True, reduction="batchmean").backward()  # type: ignore[no-untyped-call]
    assert one.step((ids, labels))["divergence"] > 0.0
    for ours, theirs in zip(one.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs if theirs.grad is None else theirs - 0.1 * theirs.grad)
    one.step(batch(1))
    assert one.effort.looks == 2
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with pytest.raises(ValueError, match="distillation is 0"):
        learner(teacher=teacher)


def test_tokens_that_no_loss_counts_are_not_distilled() -> None:
    ids, labels = batch()
    padded = ids.clone(), labels.clone()
    padded[1][:, 6:] = -100
    found = []
    for words in (3, 5):
        padded[0][:, 7:] = words  # a causal network sees nothing of it before
        one = learner(distillation=0.5)
        one.training.done = 1
        found.append(one.step(padded))
    assert found[0] == pytest.approx(found[1])


def test_effort_counts_a_look_at_the_teacher_for_each_odd_step() -> None:
    one = learner(distillation=0.5)
    for step in range(6):
        one.step(batch(step))
    assert one.effort.passes == 6
    assert one.effort.looks == 3
    assert one.passes_per_step == 1.0


def test_sub_networks_learn() -> None:
    """They end far below what the same weights, trained in full alone, give the same sub-networks."""
    recipe = Recipe(
        optimizer="adam", lr=0.01, lr_batch=4, schedule="cosine", label_smoothing=0.0, dropout=None, weight_decay=0.0
    )
    ends = {}
    for restricted in (False, True):
        one = learner(recipe=recipe)
        one.training.steps = 60
        small = one.space.smallest()
        if restricted:
            one.space = one.space.restrict({name: (value,) for name, value in one.largest.items()})
        for step in range(60):
            one.step(batch(step))
        losses = []
        for arch in (small, one.largest):
            with activated(one.net, arch), torch.no_grad():
                losses.append(float(F.cross_entropy(one.net(batch(99)[0]).flatten(0, 1), batch(99)[1].flatten())))
        ends[restricted] = losses
    assert ends[False][0] < ends[True][0] - 0.1
    assert ends[False][1] < 1.2 * ends[True][1]


@pytest.mark.parametrize("widths", [(64, 16, 32), (16, 16, 16)])
def test_greedy_decoding_with_a_cache_is_that_without(widths: tuple[int, ...]) -> None:
    net = supernet()
    arch = architecture(net, 3, *widths, 64)
    prompt = batch()[0][:2, :5]
    with activated(net, arch):
        inside = written(net.model, prompt, True)
        assert torch.equal(inside, written(net.model, prompt, False))
    small = extract(net, arch)
    assert torch.equal(written(small.model, prompt, True), inside)


def written(model: Any, prompt: Tensor, cached: bool) -> Tensor:
    mask = torch.ones_like(prompt)
    tokens: Tensor = model.generate(
        prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=cached, pad_token_id=0
    )
    return tokens


@pytest.mark.parametrize("widths", [(32, 32, 32), (64, 16, 32)])
def test_an_extracted_checkpoint_reloads(widths: tuple[int, ...], tmp_path: Path) -> None:
    """As a plain model of its family where the widths are equal, and by the side-car where they are not."""
    from sartor.adapt.load import load
    from sartor.adapt.saving import save

    net = supernet()
    small = extract(net, architecture(net, 3, *widths, 64)).eval()
    ids = batch()[0]
    is_plain = save(small, tmp_path / "small")
    assert is_plain == (len(set(widths)) == 1)
    read = transformers.LlamaForCausalLM.from_pretrained if is_plain else load
    assert torch.equal(read(tmp_path / "small").eval()(ids).logits, small(ids))


@pytest.mark.parametrize(("given", "told"), [({"distillation": 1.5}, "share"), ({"temperature": 0.0}, "positive")])
def test_what_makes_no_sense_is_refused(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        learner(**given)
