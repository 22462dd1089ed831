# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from sartor.oneshot import Copies, Means, Recipe, Supervised, _memory, check_memory, training_memory
from sartor.oneshot._memory import TrainingMemory, free_memory, kept_activations, state_bytes
from sartor.oneshot.few_shot import FewShot
from sartor.oneshot.gm_nas import GMNAS
from sartor.spaces.mobilenet import MobileNet
from sartor.supernet import extract, search_space
from toy_supernet import ToyNet, toy_batch

EXAMPLE = torch.zeros(1, 1, 8, 8)


def needed(net: nn.Module, batch_size: int, **more: object) -> TrainingMemory:
    given: dict[str, object] = {"recipe": Recipe(), **more}
    largest = search_space(net).largest()
    return training_memory(net, largest, EXAMPLE, batch_size=batch_size, **given)  # type: ignore[arg-type]


def test_the_states_of_7_5_billion_weights_on_64_workers_are_the_papers() -> None:
    found = [state_bytes(7.5e9, workers=64, stage=stage) / 1e9 for stage in range(4)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


@pytest.mark.parametrize("stage", range(4))
def test_states_fall_with_the_workers_and_one_worker_has_all(stage: int) -> None:
    found = [state_bytes(1e6, workers=workers, stage=stage) for workers in (1, 2, 4, 64)]
    assert found[0] == state_bytes(1e6) == 16e6
    assert found == sorted(found, reverse=True) and (len({*found}) == 1) == (stage == 0)
    if stage == 3:
        assert [workers * part for workers, part in zip((1, 2, 4, 64), found, strict=True)] == [16e6] * 4


def test_more_is_divided_at_each_stage_and_there_are_four() -> None:
    found = [state_bytes(1e6, workers=8, stage=stage) for stage in range(4)]
    assert found == sorted(found, reverse=True) and len({*found}) == 4
    with pytest.raises(ValueError, match="stage 4 is unknown"):
        state_bytes(1e6, stage=4)


def test_what_autograd_keeps_is_counted_once_and_without_weights() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    assert kept_activations(net, torch.randn(7, 10)) == 7 * 4 * (10 + 20)  # the input, and what ReLU gave
    assert kept_activations(net, torch.randn(7, 10, device="cpu").requires_grad_()) == 7 * 4 * (10 + 20)


class Layer(nn.Module):
    """A transformer layer as it is counted in the literature: no fused attention, dropout masks of a byte."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (
            one.view(b, s, self.heads, -1).transpose(1, 2).contiguous()
            for one in self.qkv(self.norms[0](x)).chunk(3, 2)
        )
        chances = torch.native_dropout((q @ k.transpose(2, 3)).softmax(3), 0.1, True)[0]
        mixed = (chances @ v).transpose(1, 2).reshape(b, s, h)
        x = x + torch.native_dropout(self.out(mixed), 0.1, True)[0]
        hidden = self.down(F.gelu(self.up(self.norms[1](x))))
        return x + torch.native_dropout(hidden, 0.1, True)[0]


def test_a_transformer_layer_keeps_what_the_formula_says() -> None:
    batch, tokens, width, heads = 4, 65, 96, 3
    layer = Layer(width, heads).bfloat16()
    images = torch.randn(batch, tokens, width, dtype=torch.bfloat16)
    formula = tokens * batch * width * (34 + 5 * heads * tokens / width)
    assert kept_activations(layer, images) == pytest.approx(formula, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_estimate_is_the_peak_of_a_step(precision: str) -> None:
    torch.manual_seed(0)
    supernet = MobileNet(10, 1, (16, 16))
    net = extract(supernet, search_space(supernet).largest())
    means = Means(precision=precision)  # type: ignore[arg-type]
    example = torch.zeros(1, 1, 16, 16)
    need = training_memory(net, {}, example, batch_size=24, recipe=Recipe(), means=means)
    learner = Supervised(net, steps=2, batch_size=24, means=means)
    batch = torch.randn(24, 1, 16, 16), torch.randint(10, (24,))
    learner.step(batch)
    tracker = MemTracker()
    tracker.track_external(net, learner.training.optimizer, *batch)
    with tracker:
        learner.step(batch)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    parts = {str(kind).rpartition(".")[2]: size for kind, size in peak.items()}
    assert need.activations == pytest.approx(parts["ACT"] + parts["TEMP"], rel=0.1)
    assert need.weights == parts["PARAM"] and need.moments == parts["OPT"]
    assert 0.9 * parts["Total"] < need.total < 1.2 * parts["Total"]  # gradients come when activations go


def test_activations_are_those_of_the_samples_that_pass_at_once() -> None:
    net = ToyNet()
    whole = needed(net, 64)
    assert needed(net, 64, means=Means(accumulate=4)).activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert needed(net, 64, workers=2).activations == pytest.approx(whole.activations / 2, rel=0.01)
    halved = needed(net, 64, means=Means(precision="bfloat16")).activations
    assert 0.4 * whole.activations < halved < 0.75 * whole.activations
    assert "MB of activations" in str(whole)


def test_moments_are_the_optimisers_and_divided_weights_those_of_a_worker() -> None:
    net = ToyNet()
    sizes = {name: needed(net, 8, recipe=Recipe(optimizer=name)) for name in ("rmsprop", "adam", "sgd")}
    weights = sum(p.nbytes for p in net.parameters())
    assert {name: one.moments for name, one in sizes.items()} == {
        "rmsprop": 2 * weights,
        "adam": 2 * weights,
        "sgd": weights,
    }
    divided = needed(net, 8, workers=4, sharded=True)
    assert divided.weights == weights / 4 and divided.moments == weights / 2
    assert weights / 4 < divided.gradients < weights / 4 + 2 * weights


@pytest.mark.parametrize(
    "made",
    [partial(FewShot, choices=["mix.choice"]), partial(GMNAS, stages=(1, 1), matching=2, choices=["mix.choice"])],
)
def test_the_parts_after_a_split_are_counted(made: Any) -> None:
    net, steps = ToyNet(), 24
    learner = made(net, search_space(net), steps=steps, batch_size=8, recipe=Recipe(optimizer="adam"))
    need = needed(net, 8, recipe=Recipe(optimizer="adam"), copies=learner.copies)
    assert needed(net, 8).copies == 0 and "of copies" in str(need) and "copies" not in str(needed(net, 8))
    for step in range(steps):
        learner.step(toy_batch(step, 8))
    trainings = [learner.branches.root.training, *(leaf.training for leaf in learner.branches.leaves)]
    assert len(trainings) == 3
    held = [p for one in trainings for p in one.net.parameters()]
    held += [m for one in trainings for state in one.optimizer.state.values() for m in state.values() if m.dim()]
    found = sum(tensor.nbytes for tensor in held)
    assert 0.9 * found <= need.weights + need.moments + need.copies <= 1.2 * found
    assert need.total == pytest.approx(needed(net, 8).total + need.copies)


def test_a_copy_that_stands_still_has_no_moments() -> None:
    net = ToyNet()
    need = needed(net, 8, copies=Copies(still=2))
    assert need.copies == 2 * need.weights and need.coming == needed(net, 8).coming + need.copies


def test_frozen_weights_need_no_gradients() -> None:
    net = ToyNet()
    net.head.requires_grad_(False)
    need = needed(net, 8)
    assert need.gradients == need.weights - sum(p.nbytes for p in net.head.parameters())


def test_a_network_is_as_before_its_estimate_and_needs_no_memory() -> None:
    net = ToyNet().eval()
    net.head.train()
    buffers = [buffer.clone() for buffer in net.buffers()]
    state = torch.get_rng_state()
    found = needed(net, 64)
    assert all(map(torch.equal, net.buffers(), buffers)) and torch.equal(torch.get_rng_state(), state)
    assert net.head.training and not net.training
    assert all(p.grad is None for p in net.parameters())
    with torch.device("meta"):
        ghost = ToyNet()
    assert needed(ghost, 64).total == pytest.approx(found.total, rel=0.02)


def test_what_does_not_fit_is_refused_and_what_hardly_fits_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    need = TrainingMemory(weights=1e9, gradients=1e9, moments=2e9, activations=5e9)
    for free, said in ((4e9, ValueError), (9e9, "should it run out"), (100e9, None), (None, None)):
        monkeypatch.setattr(_memory, "free_memory", lambda device, free=free: free)
        if said is ValueError:
            with pytest.raises(ValueError, match=r"needs 9 GB: 1 GB of weights.* 4 GB of main memory.*smaller batch"):
                check_memory(need, "cpu")
        else:
            text = check_memory(need, "cpu")
            assert (text is None) == (said is None) and str(said or "") in (text or "")


def test_free_memory_is_the_least_of_system_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert _memory._available(tmp_path / "meminfo") == 50 * 1024
    assert _memory._available(tmp_path / "nothing") is None and _memory._allowed(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert _memory._allowed(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _memory._allowed(tmp_path) == 500
    free = free_memory("cpu")
    assert free is None or free > 0
