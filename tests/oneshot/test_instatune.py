# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.choice import Choice
from sartor.nn import Linear, Repeat
from sartor.oneshot import FINE_TUNING, Means, Recipe, Supervised
from sartor.oneshot.divergences import kl
from sartor.oneshot.instatune import InstaTune
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, search_space

PLAIN = Recipe(
    optimizer="sgd", lr=0.5, lr_batch=16, momentum=0.0, schedule="constant", weight_decay=0.0, label_smoothing=0.0,
    dropout=None,
)  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = Choice([2, 4, 8])
        self.one, self.two = Linear(6, self.hidden), Linear(self.hidden, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.two(torch.tanh(self.one(x)))
        return result


class Net(nn.Module):
    """(N, 6) -> (N, 3): as a transformer is, without its attention."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = Repeat(*[Residual() for _ in range(3)], depth=Choice([1, 2, 3]))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(x))
        return result


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=rng), torch.randint(3, (16,), generator=rng)


def made(net: nn.Module, **given: Any) -> InstaTune:
    given = {"recipe": PLAIN, "steps": 10, **given}
    return InstaTune(net, search_space(net), batch_size=16, **given)


def drawn(learner: InstaTune, policy: Sequence[Architecture]) -> None:
    learner.policy = lambda space, rng, count: list(policy)


def formula(
    net: nn.Module, archs: Sequence[Architecture], teacher: nn.Module, gamma: int, share: float, rho: float
) -> Tensor:
    """The paper's loss, the gradients of targets stopped, as one sum."""
    inputs, labels = batch()
    full, strong = net(inputs), teacher(inputs).detach()
    hard, soft = F.cross_entropy(full, labels), gamma * kl(full, strong, rho)
    for arch in archs:
        with activated(net, arch):
            logits = net(inputs)
        hard = hard + F.cross_entropy(logits, labels)
        soft = soft + (1 - gamma) * kl(logits, full.detach(), rho) + gamma * kl(logits, strong, rho)
    return share * hard + (1 - share) * soft


@pytest.mark.parametrize(("guidance", "gamma"), [("low", 0), ("high", 1), ("mixed", 1)])
def test_a_step_is_that_of_the_papers_loss(guidance: Any, gamma: int) -> None:
    net, teacher = Net(), Net(seed=1)
    learner = made(net, teacher=teacher if gamma else None, guidance=guidance, n_random=3, temperature=2.0)
    archs = learner.policy(learner.space, random.Random(5), 3)
    drawn(learner, archs)
    expected = copy.deepcopy(net)
    formula(expected, archs, teacher, gamma, share=0.3, rho=2.0).backward()  # type: ignore[no-untyped-call]
    learner.step(batch())
    for weight, other in zip(net.parameters(), expected.parameters(), strict=True):
        slope = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(weight, other - 0.5 * slope)


def test_without_sub_networks_and_on_labels_alone_it_is_ordinary_fine_tuning() -> None:
    one, two = Net(), Net()
    learner = made(one, n_random=0, label_share=1.0, recipe=FINE_TUNING)
    plain = Supervised(two, steps=10, batch_size=16, recipe=FINE_TUNING)
    for step in range(4):
        assert learner.step(batch(step))["loss"] == plain.step(batch(step))["loss"]
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    assert learner.effort == plain.effort


def test_the_full_network_gets_no_gradient_through_what_it_teaches() -> None:
    net = Net()
    learner = made(net, label_share=0.0)  # at low cost the full network then has no loss of its own
    drawn(learner, [learner.space.smallest()])
    before = copy.deepcopy(net.state_dict())
    learner.step(batch())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.0.one.weight", "blocks.0.one.bias", "blocks.0.two.weight", "blocks.0.two.bias",
                       "head.weight", "head.bias"}  # fmt: skip
    assert torch.equal(net.state_dict()["blocks.0.one.weight"][2:], before["blocks.0.one.weight"][2:])


def test_the_teacher_is_asked_as_long_as_it_guides_and_stays_as_it_is() -> None:
    looks = {}
    for guidance, share in (("high", 0.5), ("mixed", 0.5), ("mixed", 0.0)):
        teacher = nn.Sequential(nn.Dropout(0.9), Net(seed=1))
        before = copy.deepcopy(teacher.state_dict())
        learner = made(Net(), teacher=teacher, guidance=guidance, mixed=share)
        for step in range(10):
            learner.step(batch(step))
        assert all(p.grad is None for p in teacher.parameters())
        assert teacher.training == (guidance == "mixed" and share == 0.0)
        assert all(map(torch.equal, teacher.state_dict().values(), before.values()))
        looks[guidance, share] = learner.effort.looks
    assert looks == {("high", 0.5): 10, ("mixed", 0.5): 5, ("mixed", 0.0): 0}


def test_parts_of_a_batch_give_the_step_of_the_whole() -> None:
    one, two = Net(), Net()
    whole, parts = made(one), made(two, means=Means(accumulate=4))
    for step in range(3):
        found, other = whole.step(batch(step)), parts.step(batch(step))
        assert found == pytest.approx(other, rel=1e-4)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert whole.effort == parts.effort


def test_sub_networks_are_uniform_by_default_and_those_of_a_policy_otherwise() -> None:
    seen: list[int] = []

    def smallest(space: SearchSpace, rng: random.Random, count: int) -> list[Architecture]:
        seen.append(count)
        return [space.smallest()] * count

    made(Net(), policy=smallest, n_random=2).step(batch())
    assert seen == [2]


def test_sub_networks_follow_the_full_one_better_than_those_of_plain_fine_tuning() -> None:
    """The paper's claim in small: what is trained elastically can be cut."""
    recipe = Recipe(optimizer="adamw", lr=0.02, lr_batch=16, schedule="linear", label_smoothing=0.0, dropout=None)
    elastic, plain = Net(), Net()
    one = made(elastic, steps=80, n_random=2, recipe=recipe)
    two = Supervised(plain, steps=80, batch_size=16, recipe=recipe)
    truth = Net(seed=9)
    for step in range(80):
        inputs, _ = batch(step)
        labels = truth(3 * inputs).argmax(1)
        one.step((inputs, labels))
        two.step((inputs, labels))
    inputs = torch.cat([batch(1000 + i)[0] for i in range(8)])
    labels = truth(3 * inputs).argmax(1)
    archs = [one.space.sample(random.Random(i)) for i in range(12)]

    def error(net: nn.Module) -> float:
        total = 0.0
        for arch in archs:
            with activated(net, arch), torch.no_grad():
                total += float(F.cross_entropy(net(inputs), labels))
        return total / len(archs)

    assert error(elastic) < error(plain)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"guidance": "high"}, "give teacher="),
        ({"guidance": "low", "teacher": nn.Identity()}, "leave it out"),
        ({"guidance": "medium"}, "'low', 'high' or 'mixed'"),
        ({"label_share": 1.5}, "label_share is 1.5"),
        ({"mixed": -0.1}, "mixed is -0.1"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"n_random": -1}, "n_random -1"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made(Net(), **given)


def test_a_bert_becomes_a_supernet_while_it_is_tuned() -> None:
    """In full it is the model of transformers to the last bit, and a sub-network its extraction."""
    transformers = pytest.importorskip("transformers")
    from sartor.adapt import elastic
    from sartor.adapt.networks import TextClassifier

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    net = elastic(TextClassifier(transformers.BertForSequenceClassification(config), pad=0), depth=[2], heads=[2])
    learner = InstaTune(net, search_space(net), steps=4, batch_size=8)
    ids, labels = torch.randint(1, 50, (8, 10)), torch.randint(3, (8,))
    ids[:4, 7:] = 0
    losses = [learner.step((ids, labels))["loss"] for _ in range(4)]
    assert all(map(math.isfinite, losses)) and learner.effort.passes == 8
    assert {layer.p for layer in learner.training.dropouts if isinstance(layer, nn.Dropout)} == {0.1}  # its own
    plain: Any = transformers.BertForSequenceClassification(config)
    plain.load_state_dict({name.removeprefix("model."): value for name, value in net.state_dict().items()})
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(ids[4:]), plain.eval()(input_ids=ids[4:]).logits)
        for seed in range(3):
            arch = learner.space.sample(random.Random(seed))
            with activated(net, arch):
                expected = net(ids)
            torch.testing.assert_close(extract(net, arch)(ids), expected, rtol=0.0, atol=1e-5)


def test_adamw_decays_apart_from_the_gradient_as_torchs_does() -> None:
    one, two = Net(), Net()
    recipe = Recipe(optimizer="adamw", lr=0.01, lr_batch=16, schedule="constant", weight_decay=0.1, eps=1e-8,
                    label_smoothing=0.0, dropout=None)  # fmt: skip
    plain = Supervised(one, steps=10, batch_size=16, recipe=recipe)
    decayed = [p for p in two.parameters() if p.dim() > 1]
    others = [p for p in two.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.01
    )
    for step in range(3):
        plain.step(batch(step))
        inputs, labels = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(two(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)
