# SPDX-License-Identifier: Apache-2.0
"""BossNAS: blocks and paths, both supernets, targets, rating, what is kept, and its state."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.checkpoint import flatten, unflatten
from sartor.oneshot import Recipe
from sartor.oneshot._block_ratings import rate, regression
from sartor.oneshot.bossnas import RECIPE, BossNAS
from sartor.oneshot.bossnas_part import Blocks, Neck, Views
from sartor.space import NothingFound
from sartor.spaces.hytra import Block, HyTra
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import activated, search_space
from toy_blocks import ToyBlocks

torch.set_num_threads(1)

ADAM = Recipe(optimizer="adam", lr=0.01, lr_batch=16, schedule="constant", dropout=None, label_smoothing=0.0)


def batch(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(size, 1, 2, 2, generator=rng)
    return F.interpolate(coarse, (8, 8)), torch.zeros(size, dtype=torch.long)


def learner(net: nn.Module | None = None, *, width: int = 4, **given: Any) -> BossNAS:
    torch.manual_seed(0)
    net = ToyBlocks(width=width) if net is None else net
    settings: dict[str, Any] = {"steps": 6, "batch_size": 16, "hidden": 16, "features": 8, "recipe": ADAM} | given
    return BossNAS(net, search_space(net), **settings)


def trained(boss: BossNAS, steps: int) -> list[Mapping[str, float]]:
    return [boss.step(batch(boss.training.done)) for _ in range(steps)]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def state(boss: BossNAS) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in flatten(boss.state_dict())[0].items()}


# ---- blocks and paths ---------------------------------------------------------------------------------------------


def test_the_papers_settings_are_the_defaults() -> None:
    net = ToyBlocks(width=2)
    boss = BossNAS(net, search_space(net), steps=24, batch_size=4096)
    assert (boss.paths, boss.momentum, boss.hidden, boss.features) == (4, (0.99, 1.0), 4096, 256)
    assert RECIPE.optimizer == "lars" and RECIPE.momentum == 0.9 and RECIPE.weight_decay == 1e-6
    assert [RECIPE.learning_rate(step, 2400, 4096) for step in (100, 2400)] == pytest.approx([4.8, 0.0])


def test_the_legal_paths_of_hytra_are_those_enumerated() -> None:
    """Behind a map of stride s: operations on the smallest two maps come in two kinds, elsewhere in one."""
    with torch.device("meta"):
        net = HyTra()
    blocks = Blocks(net, search_space(net))
    assert blocks.paths == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    first = blocks.legal(0, [])
    assert len(first) == len(set(first)) == 51
    ends: dict[int, Architecture] = {}
    for arch in first:
        with activated(net, arch):
            ends[_handed_over(net)] = blocks.path(0, arch)
    assert {stride: len(blocks.legal(1, [path])) for stride, path in ends.items()} == {4: 35, 8: 99, 16: 80, 32: 16}


@pytest.mark.parametrize("net", [HyTra(10, 1, (8, 8)), MobileNet(10, 1, (8, 8)), ToyBlocks()], ids=type)
def test_the_paths_of_all_blocks_make_the_space(net: nn.Module) -> None:
    space = search_space(net)
    blocks = Blocks(net, space)
    count = sum(len(blocks.legal(1, [blocks.path(0, arch)])) for arch in blocks.legal(0, []))
    fixed = space.restrict({name: [option] for name, option in blocks.outside.items()})
    assert len(blocks) == 2 and count == fixed.size


def test_what_cannot_be_divided_is_refused() -> None:
    net = ToyBlocks()
    space = search_space(net)
    with pytest.raises(ValueError, match="Linear has no Sequential `blocks` or `stages`"):
        Blocks(nn.Linear(1, 1), space)
    with pytest.raises(ValueError, match="no choice is in one of the blocks stem"):
        Blocks(net, space, ["stem"])
    with pytest.raises(ValueError, match="steps is 1, for 2 blocks"):
        learner(steps=1)
    many = ToyBlocks(blocks=1, layers=9)
    with pytest.raises(ValueError, match=r"blocks\.0 has more than 100,000 paths: divide the network"):
        Blocks(many, search_space(many)).legal(0, [])
    parts = nn.ModuleDict({"used": nn.Identity(), "idle": nn.Identity()})
    parts.forward = parts["used"].forward
    with pytest.raises(ValueError, match="does not run its block 'idle'"):
        boss = learner()
        boss.blocks.paths = ("idle",)
        boss.blocks.entrance(parts, torch.zeros(1))


def test_features_of_all_widths_are_projected() -> None:
    neck = Neck([4, 8, 16], hidden=5, features=3)
    assert [*neck.widen] == ["4", "8"]
    for width in (4, 8, 16):
        assert neck(torch.randn(6, width, 3, 3)).shape == (6, 3)


def test_views_follow_from_their_seed() -> None:
    images, views = batch(0)[0], Views()
    one, again, other = views(images, 7), views(images, 7), views(images, 8)
    assert torch.equal(one, again) and not torch.allclose(one, other)
    assert torch.equal(Views(0.0, 0.0, 0.0, 0.0)(images, 3), images)


# ---- training -----------------------------------------------------------------------------------------------------


def test_four_paths_are_drawn_without_replacement_or_each_option_once() -> None:
    boss = learner()
    trained(boss, 1)
    for seed in range(20):
        drawn = boss._draw(random.Random(seed))
        assert len(set(drawn)) == 4 and set(drawn) <= set(boss.legal)
    boss.sampling = "fair"
    for arch in zip(*(each.values() for each in boss._draw(random.Random(0))), strict=True):
        assert len(set(arch)) in (1, 4)
    names = boss.blocks.names[0]
    assert all(len({arch[name] for arch in boss._draw(random.Random(1))}) == 4 for name in names)


@pytest.mark.parametrize("momentum", [(0.99, 1.0), (0.5, 0.5)])
def test_the_target_has_no_gradients_and_follows_by_the_moving_average(momentum: tuple[float, float]) -> None:
    boss = learner(momentum=momentum)
    trained(boss, 1)
    before, buffers = weights(boss.target), dict(boss.net.named_buffers())
    neck = weights(boss._target.tower.neck)
    now = trained(boss, 1)[0]["momentum"]
    assert now == pytest.approx(momentum[1] - (momentum[1] - momentum[0]) * 0.5 * 1.8660254)  # cos(pi / 6)
    for old, online, target in (
        (before, weights(boss.net), boss.target),
        (neck, weights(boss._online.tower.neck), boss._target.tower.neck),
    ):
        for name, value in target.named_parameters():
            assert not value.requires_grad and value.grad is None
            torch.testing.assert_close(value.detach(), now * old[name] + (1 - now) * online[name], rtol=1e-5, atol=1e-7)
    # The average leaves out what batch norms have tracked: the target's is its own.
    assert not all(torch.equal(value, buffers[name]) for name, value in boss.target.named_buffers())


def test_targets_are_the_mean_of_normalised_projections_and_gradients_a_mean_over_paths() -> None:
    """One step of SGD against the formula, written once more with all paths in one graph."""
    recipe = Recipe(optimizer="sgd", lr=1.0, lr_batch=16, momentum=0.0, schedule="constant", weight_decay=0.0)
    boss = learner(recipe=recipe)
    trained(boss, 1)
    images, rng = batch(9)[0], random.Random(f"{boss.seed}/{boss.training.done}")
    twin = copy.deepcopy(boss)
    drawn = twin._draw(rng)
    pairs = [[twin.views(images, rng.getrandbits(48)) for _ in range(2)] for _ in drawn]
    means = []
    for which in range(2):
        goals = [F.normalize(_forward(twin._target, a, p[which]), dim=1) for a, p in zip(drawn, pairs, strict=True)]
        means.append(torch.stack(goals).mean(0).detach())
    losses = [
        regression(_forward(twin._online, a, one), means[1]) + regression(_forward(twin._online, a, two), means[0])
        for a, (one, two) in zip(drawn, pairs, strict=True)
    ]
    loss = torch.stack(losses).mean()
    trainable = twin._online.trained
    gradients = torch.autograd.grad(loss, trainable, allow_unused=True, materialize_grads=True)
    expected = [p - gradient for p, gradient in zip(trainable, gradients, strict=True)]
    assert boss.step((images, torch.zeros(16)))["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(boss._online.trained, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def _forward(side: Any, arch: Architecture, view: Tensor) -> Tensor:
    with activated(side.net, arch):
        return side.tower(view).float()  # type: ignore[no-any-return]


def test_the_regression_is_byols() -> None:
    one, two = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -7.0]])
    assert regression(one, one).item() == 0.0 and regression(one, two).item() == 2.0


def test_labels_are_never_read() -> None:
    one, two = learner(), learner()
    for step in range(6):
        images, _ = batch(step)
        assert one.step((images, torch.arange(16))) == two.step((images, torch.full((16,), float("nan"))))
    assert all(torch.equal(a, b) for a, b in zip(state(one).values(), state(two).values(), strict=True))


def test_only_the_block_in_training_changes_and_the_optimiser_is_made_anew() -> None:
    boss = learner()
    untouched = weights(boss.net)
    trained(boss, 2)
    now = weights(boss.net)
    assert any(not torch.equal(now[n], untouched[n]) for n in now if n.startswith(("stem", "blocks.0")))
    assert all(torch.equal(now[n], untouched[n]) for n in now if n.startswith(("blocks.1", "head")))
    optimizer = boss.training.optimizer
    trained(boss, 1)
    assert boss.block == 1 and boss.training.optimizer is not optimizer and not boss.training.optimizer.state
    both = [(net, {n: v.clone() for n, v in net.state_dict().items()}) for net in (boss.net, boss.target)]
    trained(boss, 2)
    for net, before in both:
        frozen = [n for n in before if n.startswith(("stem", "blocks.0"))]
        assert frozen and all(torch.equal(net.state_dict()[n], before[n]) for n in frozen)
        assert any(not torch.equal(net.state_dict()[n], before[n]) for n in before if n.startswith("blocks.1"))
    ids = {id(p) for p in boss.net.get_submodule("blocks.0").parameters()}
    assert not ids & {id(p) for group in boss.training.optimizer.param_groups for p in group["params"]}


def test_a_step_costs_a_pass_a_view_and_path() -> None:
    boss = learner()
    trained(boss, 2)
    assert boss.effort == (2 * 8, 2 * 8, 2) and boss.passes_per_step == 8
    trained(boss, 1)  # and rates 16 paths and their prefix, on four views, in both supernets
    assert boss.effort == (3 * 8, 3 * 8 + 2 * 4 * 17, 3)


def test_parts_of_a_batch_add_up() -> None:
    from sartor.oneshot import Means

    boss = learner(means=Means(accumulate=2))
    trained(boss, 3)
    assert boss.effort.passes == 3 * 8 and boss.block == 1


# ---- rating -------------------------------------------------------------------------------------------------------


def halfway() -> tuple[BossNAS, list[Tensor]]:
    boss = learner()
    trained(boss, 4)
    images = batch(99)[0]
    return boss, [boss.views(images, seed) for seed in range(4)]


def test_ratings_do_not_depend_on_the_order_of_the_paths() -> None:
    boss, views = halfway()
    losses = rate(boss._online, boss._target, boss.legal, views)
    order = random.Random(0).sample(range(16), 16)
    shuffled = rate(boss._online, boss._target, [boss.legal[i] for i in order], views)
    assert shuffled == pytest.approx([losses[i] for i in order], abs=1e-6)
    assert len(set(losses)) > 8


def test_a_rating_is_the_loss_against_the_population_centre() -> None:
    boss, views = halfway()
    legal = boss.legal[3:5]
    outputs = []
    for side in (boss._online, boss._target):
        of_side = []
        for arch in legal:
            net = copy.deepcopy(side)
            with torch.no_grad(), activated(net.net, arch):
                features = [_normalised_by(net.prefix, views[:2], view) for view in views]
                of_side.append([_normalised_by(net.tower, features[:2], one) for one in features[2:]])
        outputs.append(of_side)
    predictions, projections = outputs
    centre = [torch.stack(each).mean(0) for each in zip(*projections, strict=True)]
    expected = [regression(one, centre[1]) + regression(two, centre[0]) for one, two in predictions]
    found = rate(boss._online, boss._target, legal, views)
    assert found == pytest.approx([float(one) for one in expected], abs=1e-5)


def _normalised_by(module: nn.Module, calibration: list[Tensor], x: Tensor) -> Tensor:
    """Outputs with the mean statistics of the calibration inputs, collected by torch's own running mean."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    for one in calibration:
        module(one)
    result: Tensor = module.eval()(x)
    return result


def test_rating_midway_appends_nothing_and_training_goes_on_as_it_was() -> None:
    one, two = learner(), learner()
    with pytest.raises(ValueError, match="no block is in training yet"):
        one.rate(batch(0)[0], random.Random(0))
    trained(one, 2), trained(two, 2)
    assert len(one.rate(batch(50)[0], random.Random(0))) == 16
    assert one.ratings.best == [] and one.block == 0
    assert all(torch.equal(a, b) for a, b in zip(state(one).values(), state(two).values(), strict=True))
    assert trained(one, 4) == trained(two, 4)
    assert len(one.ratings.best) == 2


def test_paths_are_rated_on_validation_images_where_there_are_any() -> None:
    boss = learner(validation=[batch(70)[0], batch(71)[0]])
    trained(boss, 3)
    assert boss.effort.looks == 3 * 8 + 2 * 6 * 17


# ---- what was found -----------------------------------------------------------------------------------------------


def test_the_score_is_the_sum_of_the_blocks_and_the_best_combination_has_the_best_paths() -> None:
    boss = learner()
    with pytest.raises(ValueError, match="block 1 of 2 is in training"):
        boss.architecture()
    trained(boss, 6)
    ranking = list(boss.ranking())
    scores = [score for score, _ in ranking]
    assert scores == sorted(scores) and len({arch for _, arch in ranking}) == 256
    for score, arch in ranking[:20]:
        parts = [boss.ratings.losses[k][boss.blocks.path(k, arch)] for k in range(2)]
        assert boss.score(arch) == pytest.approx(score) == sum(parts)
    best = boss.architecture()
    assert [boss.blocks.path(k, best) for k in range(2)] == boss.ratings.best
    with pytest.raises(ValueError, match="all 2 blocks are done"):
        boss.step(batch(0))


def test_a_limit_is_met_by_the_best_that_meets_it() -> None:
    boss = learner()
    trained(boss, 6)

    def cost(arch: Architecture) -> int:
        return sum(option == "conv3" for option in arch.values())

    found = boss.architecture(lambda arch: cost(arch) <= 1)
    space = search_space(boss.net)
    every = [Architecture(dict(zip(space.choices, o, strict=True))) for o in itertools.product(*space.choices.values())]
    assert boss.score(found) == min(boss.score(arch) for arch in every if cost(arch) <= 1)
    with pytest.raises(NothingFound, match="within the limit: widen it"):
        boss.architecture(lambda arch: False)


def test_hytra_is_combined_from_paths_that_follow_upon_each_other() -> None:
    net = HyTra(10, 1, (8, 8))
    space = search_space(net)
    boss = learner(net, steps=4)
    trained(boss, 4)
    between = _stride(net, boss.architecture())
    assert boss.widths == ([64] if between == 2 else [32, 64]) and len(boss.ratings.losses[0]) == 12
    ranking = [arch for _, arch in boss.ranking()]
    assert all(arch in space for arch in ranking) and boss.architecture() == ranking[0]
    same = {stride: sum(_stride(net, arch) == stride for arch in boss.blocks.legal(0, [])) for stride in (1, 2)}
    assert len(set(ranking)) == len(ranking) == same[between] * len(boss.ratings.losses[1])
    other = next(arch for arch in boss.blocks.legal(0, []) if _stride(net, arch) != between)
    with pytest.raises(ValueError, match=r"blocks\.1 was never rated with .*: only paths behind the best"):
        boss.score(other)


def _stride(net: HyTra, arch: Architecture) -> int:
    with activated(net, arch):
        return _handed_over(net)


def _handed_over(net: HyTra) -> int:
    """The stride of the first block's map, under the choices in force."""
    block = net.blocks[0]
    assert isinstance(block, Block)
    return block.stride


def test_it_runs_on_the_elastic_mobilenet() -> None:
    net = MobileNet(10, 1, (8, 8))
    space = search_space(net)
    boss = learner(net, steps=2)
    boss.blocks = Blocks(net, space.restrict({name: [2] for name in space.choices if name.endswith("expand")}))
    assert trained(boss, 1)[0]["block"] == 0.0
    assert len(boss.ratings.losses[0]) == 3 * (1 + 2 + 4) and boss.widths == [8, 16, 32]
    assert boss.blocks.outside == {"head_width": 128}


# ---- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [0, 2, 3, 6])
def test_a_resumed_search_is_the_same_across_blocks(saved: int) -> None:
    one = learner()
    trained(one, saved)
    packed, tree = flatten(one.state_dict())
    two = learner()
    two.load_state_dict(unflatten(safetensors.torch.load(safetensors.torch.save(packed)), tree))
    assert two.block == one.block and two.ratings.best == one.ratings.best
    assert trained(one, 6 - saved) == trained(two, 6 - saved)
    assert all(torch.equal(a, b) for a, b in zip(state(one).values(), state(two).values(), strict=True))
    assert list(one.ranking()) == list(two.ranking())


def test_without_average_and_predictor_projections_collapse() -> None:
    kept = trained(learner(steps=60), 30)
    fallen = trained(learner(steps=60, momentum=(0.0, 0.0), predictor=False), 30)
    assert kept[-1]["spread"] > 0.1
    assert fallen[-1]["spread"] < 0.5 * kept[-1]["spread"]
