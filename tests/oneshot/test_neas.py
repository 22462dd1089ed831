# SPDX-License-Identifier: Apache-2.0
"""NEAS: ensembles of any sequential supernet, their encoding, what members share, and shrinking."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.evaluation import SharedWeightError, specialised
from sartor.nn import at_resolution
from sartor.nn.gradients import divide_gradient
from sartor.objective import Objective
from sartor.oneshot import Recipe
from sartor.oneshot._ensemble import Ensemble, JoinedNetwork, ensemble
from sartor.oneshot._ensemble_encoding import APART
from sartor.oneshot.neas import NEAS
from sartor.oneshot.neas_retraining import Retraining
from sartor.oneshot.neas_shrinking import diversity, without_lowest
from sartor.oneshot.sampling import fair, sandwich, uniform, weighted
from sartor.recipes.training import reset_parameters
from sartor.search import search
from sartor.space import SearchSpace
from sartor.spaces.fbnet import FBNet
from sartor.spaces.micro import Micro
from sartor.spaces.mobilenet import MobileNet
from sartor.strategies.regularized_evolution import RegularizedEvolution
from sartor.supernet import activated, extract, named_choices, search_space
from sartor.workload import macs, parameters, trace
from toy_supernet import ToyNet, toy_batch

torch.set_num_threads(1)

RECIPE = Recipe(lr=0.3)
NETS: dict[str, Callable[[], nn.Module]] = {
    "micro": Micro,
    "mobilenet": lambda: MobileNet(10, 1, (8, 8)),
    "fbnet": lambda: FBNet(10, 1, (8, 8)),
    "toy": ToyNet,
}
BLOCKS = {"micro": 3, "mobilenet": 4, "fbnet": 5, "toy": 3}
every_net = pytest.mark.parametrize("name", NETS)


def made(name: str, members: int = 2) -> tuple[nn.Module, Ensemble]:
    """Return a supernet without zero scales, and the module of its ensembles."""
    torch.manual_seed(0)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval(), ensemble(net, members).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def micro(first: tuple[str, str, str], second: tuple[str, str, str], apart: int) -> Architecture:
    """Return an ensemble of the micro space."""
    networks = [{f"slot_{i}": operation for i, operation in enumerate(one)} for one in (first, second)]
    return made("micro")[1].encoding.encoded(networks, apart)


def learner(steps: int = 12, **given: object) -> NEAS:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.1)
    return NEAS(net, search_space(net), steps=steps, batch_size=32, recipe=RECIPE, **given)  # type: ignore[arg-type]


# ---- ensembles and their encoding ---------------------------------------------------------------------------


@every_net
def test_the_module_spans_the_space_of_ensembles(name: str) -> None:
    net, both = made(name)
    assert search_space(both) == both.encoding.ensembles
    assert both.encoding.blocks == BLOCKS[name]
    assert set(named_choices(net)) < set(named_choices(both))
    assert SearchSpace.from_json(both.encoding.ensembles.to_json()) == both.encoding.ensembles


@every_net
def test_an_ensemble_is_the_mean_of_its_members(name: str) -> None:
    net, both = made(name, members=3)
    space, rng, x = search_space(both), random.Random(0), images()
    for _ in range(6):
        arch = space.sample(rng)
        with torch.no_grad():
            apart = [at_resolution(extract(net, one), x) for one in both.encoding.networks(arch)]
            with activated(both, arch):
                torch.testing.assert_close(at_resolution(both, x), torch.stack(apart).mean(0), rtol=1e-5, atol=1e-5)
            plain = extract(both, arch)
            torch.testing.assert_close(at_resolution(plain, x), torch.stack(apart).mean(0), rtol=1e-5, atol=1e-5)


@every_net
def test_what_a_split_makes_meaningless_is_inactive(name: str) -> None:
    _, both = made(name)
    space, rng = search_space(both), random.Random(0)
    for _ in range(20):
        arch = space.sample(rng)
        noisy = {n: arch[n] if space.is_active(n, arch) else rng.choice(o) for n, o in space.choices.items()}
        assert space.canonical(noisy) == arch
        assert both.encoding.networks(noisy) == both.encoding.networks(arch)
        assert both.encoding.encoded(both.encoding.networks(arch), int(str(arch[APART]))) == arch
        for child in (space.mutate(arch, rng), space.crossover(arch, space.sample(rng), rng)):
            assert child in space
    alone = space.sample(rng).replace({APART: 0})
    assert not any(space.is_active(n, alone) for n in space.choices if n.startswith("heads."))


def test_networks_that_differ_in_what_they_share_are_refused() -> None:
    with pytest.raises(ValueError, match="networks 0 and 1 share 'slot_0' with apart=2, but differ in it"):
        micro(("skip", "skip", "skip"), ("conv_1x1", "skip", "skip"), 2)


def test_each_member_meets_the_constraint() -> None:
    encoding = made("micro")[1].encoding
    space = SearchSpace(encoding.space.choices, constraint=_has_a_convolution)
    drawn = copy.copy(encoding).__class__(space, encoding.block_of, encoding.blocks).ensembles
    rng = random.Random(0)
    for _ in range(20):
        assert all(map(_has_a_convolution, encoding.networks(drawn.sample(rng))))


def _has_a_convolution(arch: Architecture) -> bool:
    return any(str(option).startswith("conv") for option in arch.values())


@every_net
def test_weights_are_those_of_the_supernet_and_choices_are_not(name: str) -> None:
    net, both = made(name)
    assert {id(p) for p in net.parameters()} == {id(p) for p in both.parameters()}
    before = [choice.state for choice in named_choices(net).values()]
    with activated(both, search_space(both).smallest()):
        assert [choice.state for choice in named_choices(net).values()] == before


def test_a_copy_has_choices_of_its_own() -> None:
    _, both = made("toy")
    twin, x = copy.deepcopy(both), images()
    arch = search_space(both).sample(random.Random(2))
    with torch.no_grad():
        before = at_resolution(both, x)
        with activated(twin, arch):
            assert torch.equal(at_resolution(both, x), before)
            found = at_resolution(twin, x)
        with activated(both, arch):
            assert torch.equal(at_resolution(both, x), found)
    assert search_space(twin) == search_space(both)


class Around(nn.Module):
    """A skip around modules of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Micro().slots

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.slots(x)
        return out


def test_a_network_that_is_no_chain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Around is not sequential: .* put modules with a skip around them in one"):
        ensemble(Around())
    with pytest.raises(ValueError, match="members is 1: an ensemble has 2 or more"):
        ensemble(Micro(), 1)


# ---- what is shared ---------------------------------------------------------------------------------------------


@every_net
def test_with_all_shared_the_ensemble_is_one_network(name: str) -> None:
    net, both = made(name)
    arch, x = search_space(both).sample(random.Random(4)).replace({APART: 0}), images()
    arch = search_space(both).canonical(arch)
    one = extract(net, both.encoding.networks(arch)[0])
    with torch.no_grad():
        torch.testing.assert_close(at_resolution(extract(both, arch), x), at_resolution(one, x))
    assert macs(trace(extract(both, arch), x)) == macs(trace(one, x))


def test_shared_layers_are_counted_once() -> None:
    net, both = made("micro")
    convolution, x = ("conv_3x3",) * 3, images()
    one = trace(extract(net, dict.fromkeys(("slot_0", "slot_1", "slot_2"), "conv_3x3")), x)
    slot = 2 * 64 * 8 * 8 * 9
    last = 2 * 8 * 10
    for apart in range(4):
        arch = micro(convolution, convolution, apart)
        found = extract(both, arch)
        assert macs(trace(found, x)) == macs(one) + (apart * slot + last if apart else 0)
        assert sum(p.numel() for p in found.parameters()) == parameters(trace(found, x))
        with activated(both, arch):
            assert macs(trace(both, x)) == macs(trace(found, x))


def test_the_gradient_of_what_is_shared_is_the_mean_of_its_members() -> None:
    net, both = made("micro")
    x, labels = images(16), torch.arange(16) % 10
    arch = micro(("conv_3x3", "conv_1x1", "conv_3x3"), ("conv_3x3", "skip", "conv_1x1"), 2)
    taught = NEAS(both, search_space(net), steps=4, batch_size=16, recipe=Recipe(label_smoothing=0.0))
    both.train()
    taught.backward(arch, x, labels)
    found = {name: p.grad for name, p in both.net.named_parameters() if p.grad is not None}
    parts = [_gradients(net, one, x, labels) for one in both.encoding.networks(arch)]
    for name, gradient in found.items():
        each = [part[name] for part in parts if name in part]
        share = 0.5 if name.startswith(("stem", "slots.0")) else 1.0
        torch.testing.assert_close(gradient, share * torch.stack(each).sum(0), rtol=1e-4, atol=1e-6)


def _gradients(net: nn.Module, arch: Architecture, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    net = copy.deepcopy(net).train()
    with activated(net, arch):
        F.cross_entropy(net(x), labels).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_divide_gradient_leaves_values_alone() -> None:
    x = torch.randn(3, requires_grad=True)
    out = divide_gradient(x, 4)
    out.backward(torch.ones(3))  # type: ignore[no-untyped-call]
    assert torch.equal(out, x) and x.grad is not None and torch.equal(x.grad, torch.full((3,), 0.25))


def test_heads_of_an_extracted_ensemble_are_their_own_and_export() -> None:
    _, both = made("mobilenet")
    arch = search_space(both).sample(random.Random(1)).replace({APART: 2})
    found = extract(both, search_space(both).canonical(arch)).eval()
    assert isinstance(found, JoinedNetwork) and len(found.heads) == 2
    ids = [id(p) for p in found.parameters()]
    assert len(ids) == len(set(ids)) and not {id(p) for p in both.parameters()} & set(ids)
    x = images(1)
    exported = torch.export.export(found, (x,)).module()
    torch.testing.assert_close(exported(x), found(x), rtol=1e-5, atol=1e-5)


def test_an_ensemble_is_retrained_by_itself() -> None:
    both = ensemble(Micro(4), 2)
    found = extract(both, micro(("conv_3x3",) * 3, ("conv_3x3", "conv_1x1", "conv_3x3"), 2))
    assert isinstance(found, JoinedNetwork)
    torch.manual_seed(0)
    reset_parameters(found)
    training = Retraining(found, steps=30, batch_size=32, recipe=Recipe(lr=0.5, label_smoothing=0.0))
    losses = [training.step(toy_batch(step))["loss"] for step in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert training.effort.passes == 60 and found(images()).shape == (2, 4)


# ---- statistics and shrinking ---------------------------------------------------------------------------------------


def test_equal_paths_have_no_diversity() -> None:
    logits = torch.randn(8, 1, 5)
    assert float(diversity(logits)) == 0.0
    assert float(diversity(logits.expand(8, 3, 5))) == pytest.approx(0.0, abs=1e-6)
    two = torch.randn(8, 2, 5)
    p, q = two.log_softmax(2).unbind(1)
    symmetric = ((p.exp() - q.exp()) * (p - q)).sum(1).mean() / 2
    torch.testing.assert_close(diversity(two), symmetric)


def test_diversity_of_close_members_is_what_averaging_gains() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 1, 5) + 0.1 * torch.randn(64, 2, 5)
    labels = torch.randint(5, (64,))
    members = torch.stack([F.cross_entropy(one, labels) for one in logits.unbind(1)]).mean()
    gain = members - F.cross_entropy(logits.mean(1), labels)
    assert float(gain) == pytest.approx(0.25 * float(diversity(logits)), rel=0.05)


def test_statistics_are_means_over_the_members_that_contain_an_option() -> None:
    taught = learner(shrinks=0)
    seen: list[tuple[Architecture, float, float]] = []
    for step in range(12):
        arch = uniform(taught.space, random.Random(f"{0}/{step}"))[0]
        found = taught.step(toy_batch(step))
        seen.append((arch, found["loss"], found["diversity"]))
    sums = taught.statistics.sums["mix.choice"]
    assert float(sums[:, 0].sum()) == sum(1 if arch[APART] == 0 else 2 for arch, _, _ in seen)
    networks = [(taught.encoding.networks(arch), divergence, arch[APART]) for arch, _, divergence in seen]
    for place, option in enumerate(taught.encoding.space.choices["mix.choice"]):
        expected = sum(d * sum(one["mix.choice"] == option for one in both) for both, d, apart in networks if apart)
        assert float(sums[place, 3]) == pytest.approx(expected, rel=1e-5)


def test_the_lowest_go_and_each_choice_keeps_its_best() -> None:
    choices = {"a": (1, 2, 3), "b": ("x", "y")}
    scores = {"a": [-0.3, 0.1, 0.2], "b": [0.5, -0.5]}
    assert without_lowest(choices, scores, 2) == {"a": [2, 3], "b": ["x"]}
    assert without_lowest(choices, scores, 99) == {"a": [3], "b": ["x"]}
    assert without_lowest(choices, scores, 0) == {"a": [1, 2, 3], "b": ["x", "y"]}


def test_no_sampler_returns_what_was_dropped() -> None:
    taught = learner(dropped=0.5)
    for step in range(12):
        left = taught.step(toy_batch(step))["options"]
    whole = sum(len(taught.whole.space.choices[name]) for name in taught.whole.own)
    assert left == whole - round(0.5 * whole) and taught.shrink_steps() == [4, 8]
    kept, rng = taught.encoding.space.choices, random.Random(0)
    assert all(len(kept[name]) >= 1 for name in kept)
    arch = taught.space.sample(rng)
    drawn = [*uniform(taught.space, rng, 30), *sandwich(taught.space, rng), *fair(taught.space, rng)]
    drawn += [weighted(taught.space, rng, {}), taught.space.mutate(arch, rng), taught.space.crossover(arch, arch, rng)]
    for one in drawn:
        for name, option in one.items():
            assert option in (taught.space if name == APART else taught.encoding.space).choices[_of_net(name)]


def _of_net(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("heads.") else name


def test_a_resumed_learner_has_the_space_in_force() -> None:
    one, two = learner(), learner()
    for step in range(6):
        one.step(toy_batch(step))
    two.load_state_dict(one.state_dict())
    assert two.space == one.space and two.space != learner().space


def test_one_network_has_the_weights_of_a_member_and_an_ensemble_those_of_all() -> None:
    taught = learner(steps=2)
    taught.step(toy_batch(0))
    both, x = taught.whole.ensembles.sample(random.Random(0)), images()
    single = search_space(ToyNet()).sample(random.Random(1))
    assert taught.network_for(both) is taught.net
    alone = extract(taught.network_for(single), single).eval()
    twice = extract(taught.net, taught.whole.encoded([single, single], taught.whole.blocks)).eval()
    with torch.no_grad():
        torch.testing.assert_close(at_resolution(alone, x), at_resolution(twice, x))
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in twice.parameters())


def test_what_is_dropped_follows_from_the_mean_over_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def average(scalars: Mapping[str, float]) -> dict[str, float]:
        return dict.fromkeys(scalars, 2.5)

    monkeypatch.setattr("sartor.oneshot.neas.distributed.average", average)
    taught = learner()
    scalars = taught.step(toy_batch(0))
    assert scalars["loss"] == scalars["diversity"] == 2.5
    rows = torch.cat([*taught.statistics.sums.values()])
    torch.testing.assert_close(rows[:, 1], 2.5 * rows[:, 0])
    torch.testing.assert_close(rows[:, 3], 2.5 * rows[:, 2])


def test_every_member_counts_as_a_pass() -> None:
    taught = learner()
    for step in range(3):
        taught.step(toy_batch(step))
    assert taught.effort == (6, 0, 3) and taught.passes_per_step == 2.0


# ---- search ---------------------------------------------------------------------------------------------------------


def test_evolution_finds_ensembles_under_a_cap() -> None:
    torch.manual_seed(0)
    net = Micro(4)
    taught = NEAS(net, search_space(net), steps=4, batch_size=32, recipe=RECIPE)
    for step in range(4):
        taught.step(toy_batch(step))
    x, cap = images(1), 60_000
    calibration = [toy_batch(9)[0]]
    accuracy = SharedWeightError(taught.net, _accuracy, [toy_batch(5)], calibration)
    cost = Objective("macs", lambda arch: macs(trace(extract(taught.net, arch), x)), at_most=cap, cheap=True)
    objectives = (Objective("error", accuracy), cost)
    strategy = RegularizedEvolution(taught.space, objectives, population=6, tournament=2)
    log = search(taught.space, strategy, objectives, trials=15)
    feasible = [trial for trial in log if trial.state == "done"]
    assert feasible and all(trial.values["macs"] <= cap for trial in feasible)
    assert len({trial.arch[APART] for trial in log}) > 1
    network = specialised(taught.net, feasible[0].arch, calibration)
    assert isinstance(network, JoinedNetwork) and not network.training


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).float().mean())
