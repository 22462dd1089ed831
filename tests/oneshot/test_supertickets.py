# SPDX-License-Identifier: Apache-2.0
"""SuperTickets: the penalty, channels that go for good, global masks that come and go, and the ticket."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.learner_contract import LAWS, LAWS_OF_EFFORT, steps
from sartor.evaluation import specialised
from sartor.nn.channels import Channels, channels_of, shrink
from sartor.nn.parametrized import parametrizations
from sartor.nn.pruning import magnitude, masked, masked_as_is, prune, reset, sparsity
from sartor.nn.sparsify import Masked
from sartor.oneshot import Recipe, Supervised
from sartor.oneshot.supertickets import RECIPE, SuperTickets, transferred
from sartor.spaces.micro import Micro
from sartor.spaces.mixed_kernels import MixedResidual
from sartor.supernet import extract, search_space
from toy_supernet import CLASSES, toy_batch

torch.set_num_threads(1)


class Mixed(nn.Module):
    """Two mixed-kernel blocks: (N, 1, H, W) -> (N, classes)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.Sequential(MixedResidual(8, 8, 1, "first"), MixedResidual(8, 12, 2, "second"))
        self.classifier = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def learner(steps: int = 28, **given: Any) -> SuperTickets:
    torch.manual_seed(0)
    net = Mixed()
    recipe = given.pop("recipe", Recipe(lr=0.3))
    return SuperTickets(net, search_space(net), steps=steps, batch_size=32, recipe=recipe, **given)


def shrinking(steps: int = 28) -> SuperTickets:
    """Return a learner that loses channels all the time."""
    return learner(steps, rho=0.02, ema=0.5, threshold=0.999, least_macs=0.0)


@pytest.mark.parametrize("law", [*LAWS, *LAWS_OF_EFFORT], ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", [learner, shrinking], ids=["plain", "shrinking"])
def test_law(make: Callable[[], SuperTickets], law: Callable[..., None]) -> None:
    law(make, toy_batch)


def originals(net: nn.Module) -> list[Tensor]:
    return [weight for _, _, weight in parametrizations(net, Masked)]


def original(layer: nn.Module) -> Tensor:
    chains: Any = layer.parametrizations
    found: Tensor = chains.weight.original
    return found


# ---- the penalty ------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_penalty_is_rho_c_sign_gamma() -> None:
    taught = learner(rho=0.3, warmup=0.0)
    taught.step(toy_batch(0))
    with torch.no_grad():
        taught.channels["blocks.0.groups.k5"].scale.weight[:3] = torch.tensor([-0.5, 0.0, 0.5])
    taught.penalty().backward()  # type: ignore[no-untyped-call]
    for path, cost in taught.costs().items():
        gamma = taught.channels[path].scale.weight
        assert gamma.grad is not None
        torch.testing.assert_close(gamma.grad, 0.3 * cost * gamma.detach().sign())


def test_a_channel_costs_its_share_of_the_operations() -> None:
    taught = learner()
    taught.step(toy_batch(0))
    # 8 inputs on 8x8 pixels, 9 taps and 8 outputs; the second block halves the map behind its expansion.
    assert taught.macs["blocks.0.groups.k3"] == 64 * (8 + 9 + 8)
    assert taught.macs["blocks.1.groups.k7"] == 64 * 8 + 16 * (49 + 12)
    costs = taught.costs()
    assert sum(costs.values()) / len(costs) == pytest.approx(1.0)  # all groups are equally wide here


def test_the_penalty_warms_up() -> None:
    taught = learner(steps=28, rho=1.0, warmup=0.25)
    found = [scalars["penalty"] for scalars in steps(taught, toy_batch, 0, 9)]
    assert found[0] == 0.0 and found[1] > 0.0 and found[8] > 0.9 * found[7] > found[3]


# ---- channels that go -----------------------------------------------------------------------------------------------


def test_a_shrunk_network_equals_the_one_whose_channels_are_masked() -> None:
    taught = learner()
    steps(taught, toy_batch, 0, 3)
    net, x = taught.net.eval(), toy_batch(7)[0]
    with torch.no_grad():
        masked_out = copy.deepcopy(net)
        for path, one in channels_of(masked_out).items():
            gone = [i for i in range(len(one)) if i not in _left(path, one)]
            for reader in one.read_by:
                original(reader)[:, gone] = 0.0
        expected = masked_out(x)
        taught.keep({path: _left(path, one) for path, one in taught.channels.items()})
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def _left(path: str, one: Channels) -> list[int]:
    return [] if path == "blocks.0.groups.k7" else [i for i in range(len(one)) if i % 3]


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd", "adam"])
def test_moments_go_with_their_channels(optimizer: Any) -> None:
    taught = learner(recipe=Recipe(lr=0.01, optimizer=optimizer))
    steps(taught, toy_batch, 0, 3)
    one = taught.channels["blocks.1.groups.k3"]
    weight = original(one.read_by[0])
    state = taught.training.optimizer.state[weight]
    before = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    kept = [1, 4, 5]
    taught.keep({"blocks.1.groups.k3": kept})
    assert before and weight.shape == (12, 3, 1, 1)
    for name, value in before.items():
        assert torch.equal(taught.training.optimizer.state[weight][name], value[:, kept])
    for parameter, moments in taught.training.optimizer.state.items():
        assert all(m.shape == parameter.shape for m in moments.values() if isinstance(m, Tensor) and m.dim())
    assert torch.isfinite(torch.tensor(taught.step(toy_batch(4))["loss"]))
    assert all(a.shape == mask.mask.shape for _, mask, a in parametrizations(taught.net, Masked))


def test_channels_go_at_checks_once_they_are_worth_it() -> None:
    cheap = learner(rho=0.02, ema=0.5, threshold=0.999, checks=7, least_macs=1e12)
    found = [scalars["channels"] for scalars in steps(cheap, toy_batch, 0, 28)]
    assert set(found[:-1]) == {96.0} and found[-1] < 96.0  # too few to bother, until the end
    eager = learner(rho=0.02, ema=0.5, threshold=0.999, checks=7, least_macs=0.0)
    found = [96.0, *(scalars["channels"] for scalars in steps(eager, toy_batch, 0, 28))]
    changes = [step for step in range(1, 29) if found[step] != found[step - 1]]
    assert changes and all(step % 4 == 0 for step in changes)
    assert found == sorted(found, reverse=True)


def test_a_network_may_lose_all_groups_and_still_works() -> None:
    taught = learner()
    steps(taught, toy_batch, 0, 2)
    taught.keep({path: [] for path in taught.channels})
    found = [scalars["loss"] for scalars in steps(taught, toy_batch, 2, 28)]
    ticket = taught.ticket()
    assert all(torch.isfinite(torch.tensor(found))) and not channels_of(ticket)
    assert ticket(toy_batch(0)[0]).shape == (32, CLASSES)


def test_a_state_with_channels_that_were_lost_is_refused() -> None:
    taught, state = learner(), learner().state_dict()
    taught.keep({"blocks.0.groups.k3": [2]})
    with pytest.raises(ValueError, match=r"blocks\.0\.groups\.k3 has lost channel 0 of the state: load it into a new"):
        taught.load_state_dict(state)


def test_only_channels_that_are_there_can_be_kept() -> None:
    net = extract(Mixed(), search_space(Mixed()).largest())
    one = channels_of(net)["blocks.0.groups.k3"]
    for wrong in ([16], [-1], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="of 16 cannot be kept: give increasing numbers below it"):
            shrink(one, wrong)


# ---- weights that are masked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.8, 0.9, 1.0])
def test_sparsity_is_what_was_asked_for(share: float) -> None:
    torch.manual_seed(0)
    net = masked(extract(Mixed(), search_space(Mixed()).largest()))
    prune(net, share)
    total = sum(weight.numel() for weight in originals(net))
    assert sparsity(net) * total == pytest.approx(round(share * total), abs=1e-6)
    smallest = [
        weight.abs()[mask.mask == 1].min() for _, mask, weight in parametrizations(net, Masked) if mask.mask.any()
    ]
    largest = [w.abs()[m.mask == 0].max() for _, m, w in parametrizations(net, Masked) if not m.mask.all()]
    assert not smallest or not largest or max(largest) <= min(smallest)  # one ranking over all layers


def test_masked_weights_contribute_nothing_and_come_back() -> None:
    torch.manual_seed(0)
    net = masked(extract(Mixed(), search_space(Mixed()).largest())).eval()
    x = toy_batch(0)[0]
    whole = net(x)
    prune(net, 0.7)
    before = net(x)
    loss = before.square().mean()
    loss.backward()
    for _, mask, weight in parametrizations(net, Masked):
        assert weight.grad is not None and not weight.grad[mask.mask == 0].any()
    kept = [weight.detach().clone() for weight in originals(net)]
    with torch.no_grad():
        for _, mask, weight in parametrizations(net, Masked):
            weight += 100.0 * (1 - mask.mask)
        assert torch.equal(net(x), before)
        for weight, value in zip(originals(net), kept, strict=True):
            weight.copy_(value)
    reset(net)
    torch.testing.assert_close(net(x), whole)


def test_other_scores_rank_otherwise() -> None:
    net = masked(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    prune(
        net,
        0.5,
        lambda name, weight: torch.full_like(weight, float(name.startswith("1"))) + 0 * magnitude(name, weight),
    )
    first, second = (mask.mask for _, mask, _ in parametrizations(net, Masked))
    assert first.flatten().tolist() == [0, 0, 0, 0, 1, 1] and bool(second.all())  # of equal scores the first go


def test_a_network_without_masks_is_not_pruned() -> None:
    with pytest.raises(ValueError, match="the network has no mask: apply `masked` to it first"):
        prune(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"sparsity is 1\.5: it is a share of the weights, from 0 to 1"):
        prune(masked(nn.Linear(2, 2)), 1.5)


def test_every_interval_masks_a_tenth_more_and_weights_return() -> None:
    tickets: list[tuple[float, float]] = []
    taught = learner(steps=28, target=0.8, save=lambda share, net: tickets.append((share, _zeros(net))))
    found = [scalars["sparsity"] for scalars in steps(taught, toy_batch, 0, 28)]
    assert [share for share, _ in tickets] == pytest.approx([min(i / 10, 0.8) for i in range(1, 15)])
    assert all(zeros == pytest.approx(share, abs=2e-3) for share, zeros in tickets)
    assert found[:-1] == [0.0] * 27 and found[-1] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(("hold", "under"), [(0.0, 0), (0.5, 13), (1.0, 26)])
def test_masks_hold_for_a_share_of_the_interval(hold: float, under: int) -> None:
    found = [scalars["sparsity"] for scalars in steps(learner(steps=28, hold=hold), toy_batch, 0, 28)]
    assert sum(value > 0 for value in found[:-1]) == under  # of the 26 steps behind the first pruning


def _zeros(net: nn.Module) -> float:
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return float(sum((w == 0).sum() for w in weights)) / sum(w.numel() for w in weights)


# ---- the ticket -----------------------------------------------------------------------------------------------------


def test_a_ticket_is_a_plain_network_that_computes_the_same() -> None:
    taught = shrinking()
    steps(taught, toy_batch, 0, 28)
    x = toy_batch(3)[0]
    ticket = taught.ticket()
    assert not list(parametrizations(ticket, nn.Module)) and _zeros(ticket) == pytest.approx(0.8, abs=1e-3)
    torch.testing.assert_close(ticket(x), taught.net.eval()(x))
    assert sum(map(len, channels_of(ticket).values())) < 96
    exported = torch.export.export(ticket, (x,)).module()
    torch.testing.assert_close(exported(x), ticket(x), rtol=1e-5, atol=1e-5)
    ready = specialised(ticket, {}, [toy_batch(4)[0]])  # type: ignore[arg-type]
    assert _zeros(ready) == _zeros(ticket)


def test_a_ticket_of_another_sparsity_leaves_the_learner_alone() -> None:
    taught = learner()
    steps(taught, toy_batch, 0, 3)
    assert _zeros(taught.ticket(0.9)) == pytest.approx(0.9, abs=1e-3)
    assert sparsity(taught.net) == 0.0 and _zeros(taught.ticket()) == 0.0


def test_a_ticket_moves_to_another_task_with_its_zeros() -> None:
    taught = learner()
    steps(taught, toy_batch, 0, 28)
    ticket = taught.ticket()
    network = transferred(ticket, nn.Linear(12, 3))
    masks = [mask.mask.clone() for _, mask, _ in parametrizations(network, Masked)]
    tuning = Supervised(network, steps=5, batch_size=32, recipe=Recipe(lr=0.3))
    for step in range(5):
        images, labels = toy_batch(step)
        tuning.step((images, labels % 3))
    assert network(toy_batch(0)[0]).shape == (32, 3) and isinstance(network.classifier, nn.Linear)
    for (_, mask, _), before in zip(parametrizations(network, Masked), masks, strict=True):
        assert torch.equal(mask.mask, before)
    convolution = ticket.stem[0].weight  # type: ignore[index,union-attr]
    tuned = network.stem[0].weight  # type: ignore[index,union-attr]
    assert torch.equal(tuned == 0, convolution == 0) and not torch.equal(tuned, convolution)
    assert sparsity(masked_as_is(copy.deepcopy(ticket))) == pytest.approx(_zeros(ticket))
    with pytest.raises(ValueError, match="the ticket has no module 'head': give the name of its head"):
        transferred(ticket, nn.Linear(12, 3), "head")


def test_what_cannot_be_trained_is_refused() -> None:
    net = Micro()
    with pytest.raises(ValueError, match="no module of Micro has a method channels: give a net such as MixedKernels"):
        SuperTickets(net, search_space(net), steps=1, batch_size=1)
    with pytest.raises(ValueError, match=r"target=1\.2, .*: give shares, from 0 to 1"):
        learner(target=1.2)


def test_the_recipe_is_the_papers() -> None:
    assert (RECIPE.lr, RECIPE.lr_batch, RECIPE.momentum, RECIPE.rho, RECIPE.eps) == (0.016, 256, 0.9, 0.9, 1e-3)
    assert (RECIPE.decay, RECIPE.weight_decay, RECIPE.label_smoothing) == (0.97, 1e-5, 0.1)
    assert RECIPE.decays == pytest.approx(350 / 2.4)
