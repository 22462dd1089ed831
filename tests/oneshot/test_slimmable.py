# SPDX-License-Identifier: Apache-2.0
"""Slimmable networks: the widths of a step, private norms, and prefixes that know nothing of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sartor.nn as elastic
from sartor.choice import Choice
from sartor.nn import SwitchableBatchNorm, resized, with_private_norms
from sartor.oneshot import Recipe
from sartor.oneshot.sampling import at_width
from sartor.oneshot.slimmable import NORMS, Slimmable
from sartor.space import SearchSpace
from sartor.supernet import activated, extract, named_choices, recalibrate_batchnorm, search_space
from toy_supernet import ToyNet, toy_batch


def learner(**given: Any) -> Slimmable:
    torch.manual_seed(0)
    net = ToyNet(dropout=0.0)
    recipe = Recipe(lr=0.3, dropout=0.0)
    return Slimmable(net, search_space(net), **{"steps": 10, "batch_size": 16, "recipe": recipe, **given})


def norms_of(net: nn.Module, name: str) -> dict[str, Tensor]:
    """Parameters and statistics of the norms of one width."""
    banks = {path: module for path, module in net.named_modules() if isinstance(module, SwitchableBatchNorm)}
    return {f"{path}.{k}": v.clone() for path, bank in banks.items() for k, v in bank[name].state_dict().items()}


def test_a_width_is_every_choice_at_the_nearest_option() -> None:
    space = SearchSpace({"width": (8, 16, 24, 32), "depth": (1, 2, 3), "op": ("none", "pool", "conv")})
    found = [dict(at_width(space, width)) for width in (1.0, 0.75, 0.5, 0.25, 0.01)]
    assert [one["width"] for one in found] == [32, 24, 16, 8, 8]
    assert [one["depth"] for one in found] == [3, 2, 2, 1, 1]  # 1.5 is as near to 1 as to 2
    assert [one["op"] for one in found] == ["conv", "conv", "pool", "pool", "none"]
    assert at_width(space, 1.0) == space.largest()


def test_a_step_runs_all_widths_from_the_widest_to_the_narrowest() -> None:
    slimmable = learner(widths=(0.25, 1.0, 0.5))
    ran: list[int] = []
    slimmable.net.get_submodule("stem").register_forward_hook(lambda m, _, out: ran.append(out.shape[1]))
    slimmable.step(toy_batch(0, 16))
    assert ran == [8, 4, 4] and slimmable.effort == (3, 0, 1) and slimmable.passes_per_step == 3.0


def test_the_norms_of_a_width_are_its_own() -> None:
    """Neither weights nor statistics move in steps at other widths."""
    slimmable = learner()
    slimmable.net.train()
    before = {name: norms_of(slimmable.net, name) for name in slimmable.networks}
    assert [*before] == ["1", "0_75", "0_5", "0_25"]
    images, labels = toy_batch(0, 16)
    slimmable.backward(images, labels, "0_5")
    slimmable.training.update()
    for name, old in before.items():
        same = [torch.equal(value, old[key]) for key, value in norms_of(slimmable.net, name).items()]
        assert all(same) == (name != "0_5")


def test_all_norms_start_as_the_networks() -> None:
    torch.manual_seed(0)
    net = ToyNet().eval()
    arch, images = search_space(net).smallest(), toy_batch(0, 4)[0]
    with activated(net, arch), torch.no_grad():
        expected = net(resized(images, net))
    with_private_norms(net, Choice(("a", "b"), name="norms"))
    sizes = {id(module.num_features) for module in net.modules() if isinstance(module, elastic.BatchNorm2d)}
    assert len(sizes) == 4  # copies hold the network's own choices: the stream's, and those of three blocks
    for name in ("a", "b"):
        with activated(net, {**arch, "norms": name}), torch.no_grad():
            assert torch.equal(net(resized(images, net)), expected)
        assert not [m for m in extract(net, {**arch, "norms": name}).modules() if isinstance(m, elastic.OneOf)]


def test_a_width_is_deployed_with_its_own_statistics() -> None:
    slimmable = learner(recipe=Recipe(lr=0.3, dropout=0.0, label_smoothing=0.0))
    for step in range(10):
        slimmable.step(toy_batch(step, 16))
    images = toy_batch(99, 8)[0]
    for width in slimmable.widths:
        network = extract(slimmable.net, slimmable.at(width)).eval()
        arch = at_width(slimmable.space, width)
        routed = extract(slimmable.network_for(arch), arch).eval()
        with torch.no_grad():
            assert torch.equal(network(resized(images, network)), routed(resized(images, routed)))
    before = named_choices(slimmable.net)[NORMS].value
    slimmable.network_for(slimmable.space.smallest())
    assert named_choices(slimmable.net)[NORMS].value == before


def test_a_width_uses_nothing_outside_of_its_prefix() -> None:
    slimmable = learner()
    small = slimmable.at(0.25)
    net, images = slimmable.net.eval(), toy_batch(0, 4)[0]
    with activated(net, small), torch.no_grad():
        expected = net(resized(images, net))
        used = extract(net, small).state_dict()
    shapes = {name: value.shape for name, value in used.items()}
    with torch.no_grad():
        for name, value in net.state_dict().items():
            plain = name.replace(".0_25.", ".").replace("mix.conv.", "mix.")
            if plain not in shapes:
                value.fill_(7)
            elif value.dim():
                kept = torch.zeros_like(value, dtype=torch.bool)
                window = [
                    _window(full, part, dim)
                    for dim, (full, part) in enumerate(zip(value.shape, shapes[plain], strict=True))
                ]
                kept[tuple(window)] = True
                value[~kept] = float("nan")
    with activated(net, small), torch.no_grad():
        assert torch.equal(net(resized(images, net)), expected)


def _window(full: int, part: int, dim: int) -> slice:
    start = (full - part) // 2 if dim >= 2 else 0  # kernels are centred
    return slice(start, start + part)


def test_the_full_width_is_bit_equal_to_torchs_layers() -> None:
    width = Choice([2, 4, 6])
    for ours, theirs, x in (
        (elastic.Conv2d(3, width, 3), nn.Conv2d(3, 6, 3), torch.randn(2, 3, 5, 5)),
        (elastic.Linear(3, width), nn.Linear(3, 6), torch.randn(2, 3)),
        (elastic.BatchNorm2d(width), nn.BatchNorm2d(6), torch.randn(2, 6, 5, 5)),
    ):
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), theirs(x))


def test_calibration_with_one_batch_gives_its_mean_and_unbiased_variance() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    recalibrate_batchnorm(norm, [x])
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), correction=1))


def test_what_is_refused() -> None:
    for widths in ((), (1.0, 0.0), (1.5,)):
        with pytest.raises(ValueError, match="each above 0 and at most 1"):
            learner(widths=widths)
    with pytest.raises(ValueError, match="are one sub-network of the space"):
        learner(widths=(1.0, 0.99))
    with pytest.raises(ValueError, match=r"width 0\.3 is not among"):
        learner().at(0.3)
    with pytest.raises(ValueError, match="strings without a dot"):
        with_private_norms(ToyNet(), Choice(("0.5", "1")))
    with pytest.raises(ValueError, match="has no batch norm"):
        with_private_norms(nn.Linear(1, 1), Choice(("a", "b")))
