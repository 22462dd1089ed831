# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.nn import resized
from sartor.oneshot import BigNAS, Means, Recipe
from sartor.spaces.mobilenet import InvertedResidual, MobileNet
from sartor.supernet import activated, extract, search_space
from toy_supernet import ToyNet, toy_batch


def learner(dropout: float = 0.0, weight_decay: float = 0.0, seed: int = 0, parts: int = 1) -> BigNAS:
    """Make a learner of a network whose residual branches are not at their zero start."""
    torch.manual_seed(0)
    net = ToyNet()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    recipe = Recipe(lr=1.0, dropout=dropout, weight_decay=weight_decay)
    means = Means(accumulate=parts)
    return BigNAS(net, search_space(net), steps=10, batch_size=16, recipe=recipe, means=means, seed=seed)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def alone(net: nn.Module, arch: Architecture, images: Tensor, labels: Tensor, teacher: Tensor | None) -> nn.Module:
    """Return a copy of the network with the gradient of one sub-network's loss, written out."""
    net = copy.deepcopy(net).train()
    with activated(net, arch):
        logits = net(resized(images, net))
        if teacher is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        else:
            p, log_q = teacher.softmax(1), logits.log_softmax(1)
            loss = (p * (p.log() - log_q)).sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
    return net


def test_the_gradient_of_a_sandwich_is_the_sum_of_its_four() -> None:
    bignas = learner()
    images, labels = toy_batch(0, 16)
    others = bignas.others()
    with torch.no_grad(), activated(copy.deepcopy(bignas.net).train(), bignas.largest) as net:
        teacher = net(resized(images, net))
    parts = [alone(bignas.net, bignas.largest, images, labels, None)]
    parts += [alone(bignas.net, arch, images, labels, teacher) for arch in others]
    assert len(parts) == 4
    bignas.backward((images, labels), others)
    for name, gradient in gradients(bignas.net).items():
        expected = torch.stack([gradients(part)[name] for part in parts]).sum(0)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_labels_have_their_share_of_what_the_others_learn(share: float) -> None:
    bignas = learner()
    images, labels = toy_batch(0, 16)
    with torch.no_grad(), activated(copy.deepcopy(bignas.net).train(), bignas.largest) as net:
        teacher = net(resized(images, net))
    largest = gradients(alone(bignas.net, bignas.largest, images, labels, None))
    distilled = gradients(alone(bignas.net, bignas.space.smallest(), images, labels, teacher))
    hard = copy.deepcopy(bignas.net).train()
    with activated(hard, bignas.space.smallest()):
        torch.autograd.backward([F.cross_entropy(hard(resized(images, hard)), labels)])
    bignas.label_share = share
    bignas.backward((images, labels), [bignas.space.smallest()])
    for name, found in gradients(bignas.net).items():
        expected = largest[name] + (1 - share) * distilled[name] + share * gradients(hard)[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_teacher_gives_the_largest_no_gradient() -> None:
    bignas = learner()
    images, labels = toy_batch(0, 16)
    labelled = gradients(alone(bignas.net, bignas.largest, images, labels, None))
    bignas.backward((images, labels), [bignas.space.smallest()])
    found = gradients(bignas.net)
    only_largest = [name for name in found if name.startswith(("blocks.1.", "blocks.2."))]
    assert only_largest and all(labelled[name].any() for name in only_largest)
    for name in only_largest:
        torch.testing.assert_close(found[name], labelled[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["stem.weight"][6:], labelled["stem.weight"][6:], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["stem.weight"][:4], labelled["stem.weight"][:4])


def test_the_smallest_is_a_strict_prefix_of_the_largest() -> None:
    bignas = learner()
    small = extract(bignas.net, bignas.space.smallest()).state_dict()
    large = bignas.net.state_dict()
    for name, value in small.items():
        whole = large[name if name in large else name.replace("mix.", "mix.conv.")]
        for dim, size in enumerate(value.shape):  # channels from the front, kernels from the centre
            whole = whole.narrow(dim, (whole.shape[dim] - size) // 2 if dim >= 2 else 0, size)
        assert torch.equal(value, whole), name
    assert sum(v.numel() for v in small.values()) < sum(v.numel() for v in large.values())


def test_residual_blocks_start_as_the_identity() -> None:
    net = ToyNet().train()
    space = search_space(net)
    for arch in (space.largest(), space.smallest()):
        with activated(net, arch):
            x = torch.randn(4, int(net.width), 8, 8)
            assert all(torch.equal(block(x), x) for block in net.blocks.active())


def test_blocks_of_the_mobile_net_start_as_their_skip() -> None:
    net = MobileNet(10, 1, (8, 8)).train()
    blocks = [module for module in net.modules() if isinstance(module, InvertedResidual)]
    assert blocks
    found: list[bool] = []
    for block in blocks:
        block.register_forward_hook(lambda m, inputs, output: found.append(torch.equal(output, m.skip(inputs[0]))))
    with activated(net, search_space(net).largest()):
        net(torch.randn(4, 1, 8, 8))
    assert len(found) == len(blocks) and all(found)


def test_only_the_largest_has_dropout_and_each_child_its_resolution() -> None:
    bignas = learner(dropout=0.5)
    dropped: list[bool] = []
    sizes: list[int] = []
    bignas.net.get_submodule("dropout").register_forward_hook(lambda m, *_: dropped.append(m.training))
    bignas.net.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    for _ in range(2):
        expected = [arch["resolution"] for arch in (bignas.largest, *bignas.others())]
        bignas.step(toy_batch(0, 16))
        assert dropped == [True, False, False, False] and sizes == expected
        dropped.clear()
        sizes.clear()


@pytest.mark.parametrize("parts", [1, 2])
def test_weight_decay_is_the_gradient_of_the_largests_l2_term(parts: int) -> None:
    plain, decayed = learner(parts=parts), learner(weight_decay=0.1, parts=parts)
    found: list[dict[str, Tensor]] = []
    for bignas in (plain, decayed):
        bignas.training.scaler.step = lambda _, net=bignas.net: found.append(gradients(net))  # type: ignore[method-assign, misc]
        bignas.step(toy_batch(0, 16))
    before, after = found
    for name, parameter in plain.net.named_parameters():
        used_by_largest = not name.startswith("mix.conv")
        factor = 0.1 if parameter.dim() > 1 and used_by_largest else 0.0
        torch.testing.assert_close(after[name] - before[name], factor * parameter.detach(), rtol=1e-4, atol=1e-5)


def test_the_sub_networks_of_a_step_depend_on_seed_and_step_alone() -> None:
    one, two, other = learner(), learner(), learner(seed=1)
    drawn = []
    for step in range(8):
        one.training.done = two.training.done = other.training.done = step
        assert one.others() == two.others()
        drawn.append(one.others() != other.others())
        assert one.others()[0] == one.space.smallest() and len(one.others()) == 3
    assert any(drawn)


def test_the_scalars_are_the_losses_written_out() -> None:
    bignas = learner()
    images, labels = toy_batch(0, 16)
    with torch.no_grad(), activated(copy.deepcopy(bignas.net).train(), bignas.largest) as net:
        loss = F.cross_entropy(net(resized(images, net)), labels, label_smoothing=0.1)
    scalars = bignas.step((images, labels))
    assert scalars["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert scalars["distillation"] > 0
    assert scalars["learning_rate"] == bignas.training.optimizer.param_groups[0]["lr"] == 1 / 16


def test_a_sandwich_of_the_largest_alone_is_supervised_training() -> None:
    bignas = learner()
    bignas.others = lambda: [bignas.largest]  # type: ignore[method-assign]
    assert bignas.step(toy_batch(0, 16))["distillation"] == pytest.approx(0.0, abs=1e-6)
