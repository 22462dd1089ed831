# SPDX-License-Identifier: Apache-2.0
"""AutoDistil: relations of tokens, sub-spaces with supernets of their own, and the published sub-spaces."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.adapt import Width, elastic
from sartor.adapt.huggingface import FAMILIES
from sartor.adapt.layers import layers_of
from sartor.adapt.networks import TextClassifier
from sartor.oneshot import Recipe
from sartor.oneshot.autodistil import AutoDistil
from sartor.oneshot.autodistil_relations import Projections, relation_loss, relations, scores
from sartor.oneshot.autodistil_spaces import SUB_SPACES
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, search_space

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

DEPTH = "model.bert.encoder.layer.depth"
RECIPE = Recipe(optimizer="adam", lr=3e-3, lr_batch=4, schedule="constant", label_smoothing=0.0, dropout=None)


def bert(seed: int = 0, **given: Any) -> nn.Module:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, **given}
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=60, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return TextClassifier(model, pad=0).eval()


def supernet(seed: int = 0) -> nn.Module:
    return elastic(bert(seed), hidden=[12, 18], heads=[2, 3], mlp=[20], depth=[2], shared=("heads", "mlp"))


def made(**given: Any) -> AutoDistil:
    net = given.pop("net", None) or supernet()
    return AutoDistil(net, search_space(net), **{"steps": 12, "batch_size": 4, "recipe": RECIPE, **given})


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sentences of nine tokens and two of six, and labels that nobody reads."""
    ids = torch.randint(1, 60, (4, 9), generator=torch.Generator().manual_seed(seed))
    ids[2:, 6:] = 0
    return ids, torch.full((4,), 7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- relations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [24, 25, 30])
def test_relations_are_row_stochastic_and_pads_are_related_to_nothing(width: int) -> None:
    mask = batch()[0] != 0
    found = relations(draw(4, 9, width), 4, mask)
    assert found.shape == (4, 4, 9, 9) and (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 4, 9))
    assert (found[2:, :, :, 6:] == 0).all()


def test_both_forms_are_those_of_the_paper_and_of_the_code() -> None:
    mask, heads = batch()[0] != 0, 4
    student, teacher = [draw(4, 9, 12, seed=i) for i in range(3)], [draw(4, 9, 24, seed=9 + i) for i in range(3)]
    divergence, squares, rows = 0.0, 0.0, int(mask.sum())
    for one, other in zip(student, teacher, strict=True):
        for n in range(4):
            real = int(mask[n].sum())
            for a in range(heads):
                s, t = one[n, :, 3 * a : 3 * a + 3], other[n, :, 6 * a : 6 * a + 6]
                raw = s @ s.T / math.sqrt(3), t @ t.T / math.sqrt(6)
                p, q = raw[1][:real, :real].softmax(1), raw[0][:real, :real].softmax(1)
                divergence += float((p * (p / q).log()).sum()) / (heads * rows)
                squares += float(((raw[0] - raw[1])[:, :real] ** 2).sum()) / (4 * heads * 81)
    assert float(relation_loss(student, teacher, heads, mask)) == pytest.approx(divergence, rel=1e-4)
    assert float(relation_loss(student, teacher, heads, mask, "mse")) == pytest.approx(squares, rel=1e-4)


def test_relation_heads_are_ordered_and_free_to_rotate() -> None:
    qkv = [draw(2, 7, 24, seed=i) for i in range(3)]
    assert float(relation_loss(qkv, qkv, 4)) == 0.0 == float(relation_loss(qkv, qkv, 4, form="mse"))
    rotations = torch.block_diag(*[torch.linalg.qr(draw(6, 6, seed=9 + i))[0] for i in range(4)])  # type: ignore[no-untyped-call]
    assert float(relation_loss([qkv[0] @ rotations, *qkv[1:]], qkv, 4)) == pytest.approx(0.0, abs=1e-6)
    shuffled = [x.unflatten(-1, (4, 6))[:, :, [1, 0, 3, 2]].flatten(-2) for x in qkv]  # type: ignore[no-untyped-call]
    assert all(float(relation_loss(shuffled, qkv, 4, form=form)) > 0.01 for form in ("kl", "mse"))


@pytest.mark.parametrize("width", [4, 5, 7, 11, 13, 96])
def test_every_entry_of_any_width_has_a_gradient(width: int) -> None:
    teacher, student = [draw(2, 5, 24, seed=i) for i in range(3)], draw(2, 5, width, seed=4).requires_grad_()
    for form in ("kl", "mse"):
        (slope,) = torch.autograd.grad(relation_loss([student] * 3, teacher, 4, form=form), student)
        assert (slope.abs().sum((0, 1)) > 0).all()


def test_heads_that_do_not_divide_are_scaled_each_by_its_own_size() -> None:
    x = draw(1, 3, 5)
    expected = torch.stack([x[0, :, :3] @ x[0, :, :3].T / math.sqrt(3), x[0, :, 3:] @ x[0, :, 3:].T / math.sqrt(2)])
    torch.testing.assert_close(scores(x, 2)[0], expected)
    with pytest.raises(ValueError, match="3 entries cannot be split into 4 relation heads"):
        scores(draw(1, 2, 3), 4)


# ---- queries, keys and values ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
def test_they_are_those_of_the_last_block_that_runs(depth: int) -> None:
    net, ids = supernet(), batch()[0][:2]
    arch = search_space(net).canonical({"hidden": 18, "heads": 3, "mlp": 20, DEPTH: depth})
    projections = Projections(net)
    with activated(net, arch), torch.no_grad(), projections.recorded() as found:
        net(ids)
    small: Any = extract(net, arch)
    last = small.model.bert.encoder.layer[depth - 1].attention.self
    with torch.no_grad():
        x = small.model(ids, output_hidden_states=True).hidden_states[depth - 1]
        expected = [last.query(x), last.key(x), last.value(x)]
    assert [one.shape[-1] for one in found] == [18, 18, 18]  # three heads of six
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_fused_projection_is_taken_apart() -> None:
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=20, bos_token_id=1, eos_token_id=2
    )
    net = elastic(transformers.GPT2LMHeadModel(config), heads=[2], shared=("heads",)).eval()
    projections, ids = Projections(net), batch()[0][:2]
    with activated(net, {"heads": 2}), projections.recorded() as found:
        net(ids)
    assert projections.heads == 4 and [one.shape for one in found] == [(2, 9, 12)] * 3


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is of no known family of transformers"):
        Projections(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="Linear has no queries, keys and values that a rule finds"):
        Projections(nn.Linear(3, 3), rules=())


def test_layers_of_a_role() -> None:
    found = layers_of(supernet(), "mlp")
    assert [one.makes for one in found] == [(f"model.bert.encoder.layer.{i}.intermediate.dense",) for i in range(3)]
    assert [one.reads for one in found] == [(f"model.bert.encoder.layer.{i}.output.dense",) for i in range(3)]
    assert [one.count for one in layers_of(bert(), "heads")] == [4, 4, 4] and found[0].count is None


# ---- the learner -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kl", "mse"])
def test_a_network_is_no_distance_from_itself_and_smaller_ones_are(form: Any) -> None:
    learner = made(form=form)
    largest = learner.space.largest()
    assert learner.relation_loss(largest, [batch()]) == pytest.approx(0.0, abs=1e-6)
    assert learner.relation_loss(learner.space.smallest(), [batch()]) > 0.01


def test_a_step_is_a_sandwich_of_the_supernet_whose_turn_it_is() -> None:
    learner = made(parts=3, steps=6)
    before = copy.deepcopy(learner.net.state_dict())
    learner.step(batch())
    trained = [any(not torch.equal(v, before[k]) for k, v in leaf.training.net.state_dict().items())
               for leaf in learner.branches.leaves]  # fmt: skip
    assert trained == [True, False, False]
    assert learner.effort == (4, 1, 1) and learner.passes_per_step == 4.0
    assert [dict(part) for part in learner.parts] == [{"hidden": (12,)}, {"hidden": (18,)}, {"hidden": (24,)}]
    learner.step(batch()), learner.step(batch())
    nets = [learner.network_for(learner.space.largest().replace({"hidden": hidden})) for hidden in (12, 18, 24)]
    assert nets == [leaf.training.net for leaf in learner.branches.leaves] and learner.net not in nets
    assert all(torch.equal(value, before[name]) for name, value in learner.net.state_dict().items())


def test_random_sub_networks_are_neither_of_the_extremes() -> None:
    learner = made(parts=1, n_random=2)
    space = learner.space.restrict(heads=[2, 4], mlp=40, hidden=24)
    ends = [space.largest(), space.smallest()]
    for step in range(20):
        archs = learner.sandwich(space, random.Random(step))
        assert archs[:2] == ends and len(archs) == 4 and not any(arch in ends for arch in archs[2:])
    assert len(learner.sandwich(space.restrict({DEPTH: 3}), random.Random(0))) == 2


def test_labels_are_ignored_and_a_teacher_has_no_gradient() -> None:
    teacher = bert(seed=5, hidden_size=36, num_attention_heads=6, num_hidden_layers=2)
    one, two = made(teacher=teacher), made(teacher=teacher)
    ids, _ = batch()
    assert one.relation_heads == 6
    found = []
    for learner, labels in ((one, torch.zeros(4)), (two, torch.full((4,), -100))):
        torch.manual_seed(0)  # of dropout
        found.append(learner.step((ids, labels)))
    assert found[0] == found[1]
    assert all(weight.grad is None for weight in teacher.parameters()) and not teacher.training
    assert one.step(batch())["smallest"] > 0


def test_what_the_relations_do_not_depend_on_has_no_gradient() -> None:
    learner = made(parts=1)
    net: Any = learner.branches.leaves[0].training.net
    before = copy.deepcopy(net.state_dict())
    learner.step(batch())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert "model.bert.encoder.layer.2.attention.self.value.weight" in changed
    assert not any("classifier" in name or "pooler" in name or "layer.2.output" in name for name in changed)


def test_training_lowers_the_relation_loss() -> None:
    learner = made(parts=2, steps=24)
    held, arch = [batch(seed=1)], learner.space.smallest()
    before = learner.relation_loss(arch, held)
    for _ in range(24):
        learner.step(batch(seed=1))
    assert learner.relation_loss(arch, held) < 0.8 * before


def test_all_sub_networks_are_ranked_under_a_cost() -> None:
    learner = made(parts=3)
    everything = learner.ranked([batch(), batch(1)])
    assert len(everything) == learner.space.size == len({arch for arch, _ in everything})
    assert [loss for _, loss in everything] == sorted(loss for _, loss in everything)
    assert everything[0][0] == learner.space.largest()  # nothing was trained, and it is the teacher
    small = learner.ranked([batch(), batch(1)], cost=lambda arch: arch["hidden"], at_most=18)  # type: ignore[arg-type, return-value]
    assert {arch["hidden"] for arch, _ in small} == {12, 18}
    assert small[0][1] == pytest.approx(learner.relation_loss(small[0][0], [batch(), batch(1)]))


def test_named_sub_spaces_narrow_the_space() -> None:
    parts = [{"hidden": [12], "heads": [2, 3], DEPTH: [2]}, {"hidden": [18, 24], "heads": [3, 4]}]
    learner = made(parts=parts)
    assert learner.space.sample(random.Random(0)) in learner.space
    mixed = learner.branches.root.space.largest().replace({"hidden": 12})
    assert mixed not in learner.space
    with pytest.raises(ValueError, match="in none of the 2 sub-spaces"):
        learner.network_for(mixed)
    assert len(learner.ranked([batch()])) == 2 * 2 * 1 * 1 + 2 * 2 * 2 * 2
    with pytest.raises(ValueError, match="sub-spaces 0 and 1 overlap"):
        made(parts=[{"hidden": [12, 18]}, {"hidden": [18, 24]}])


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="form is 'l1'"):
        made(form="l1")
    with pytest.raises(ValueError, match="parts is 0"):
        made(parts=0)
    net = elastic(bert(), heads=[2], shared=("heads",))
    with pytest.raises(ValueError, match="no hidden size and no depth to cut it by; name parts of heads"):
        made(net=net)
    assert len(made(net=elastic(bert(), depth=[1, 2])).branches) == 3


# ---- the published sub-spaces ----------------------------------------------------------------------

PUBLISHED = {"tiny": (4.4, 10.6), "small": (12.3, 27.8), "base": (38.5, 79.3)}  # millions of parameters


def published(depth: int, heads: int, hidden: int, mlp: float) -> int:
    """Parameters of a BERT whose heads are a twelfth of the hidden size, by hand."""
    inner, wide = int(mlp * hidden), heads * (hidden // 12)
    block = 4 * hidden * wide + 3 * wide + hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
    return (30522 + 512 + 2) * hidden + 2 * hidden + depth * block + hidden * hidden + hidden


def shape(**sizes: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = transformers.BertModel(transformers.BertConfig())
    return elastic(model, **sizes)


@pytest.mark.parametrize("name", SUB_SPACES)
def test_published_sub_spaces_have_256_networks_of_the_published_sizes(name: str) -> None:
    part = SUB_SPACES[name]
    widths = [int(ratio * max(part["hidden"])) for ratio in part["mlp"]]
    options: dict[str, Any] = {**part, "mlp": widths}
    space = search_space(shape(shared=("heads", "mlp"), **options))
    names = {"depth": "encoder.layer.depth"}
    assert space.restrict({names.get(role, role): them for role, them in options.items()}).size == 256
    # A head of any size, which the rules of BERT do not have: its entries are counted one by one.
    rules = [replace(one, count=None) if isinstance(one, Width) and one.role == "heads" else one
             for one in FAMILIES["bert"]]  # fmt: skip
    for end, millions in zip((min, max), PUBLISHED[name], strict=True):
        depth, heads, hidden, ratio = (end(part[role]) for role in ("depth", "heads", "hidden", "mlp"))
        arch = {"hidden": hidden, "mlp": int(ratio * hidden), "heads": int(heads) * (int(hidden) // 12)}
        given: dict[str, Any] = {role: [value] for role, value in arch.items()}
        model = shape(rules=rules, shared=("heads", "mlp"), depth=[depth], **given)
        whole: SearchSpace = search_space(model)
        small = extract(model, whole.canonical({**arch, names["depth"]: depth}))
        found = sum(weight.numel() for weight in small.parameters())
        assert found == published(int(depth), int(heads), int(hidden), ratio)
        assert found / 1e6 == pytest.approx(millions, abs=0.1)
