# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sartor.checkpoint import flatten, load_newest, nan_in, save, unflatten

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def same(a: Any, b: Any) -> bool:
    """Equal in type and value all the way down, NaN equal to itself, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        bits = torch.uint8
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.contiguous().reshape(-1).view(bits), b.contiguous().reshape(-1).view(bits))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def make(seed: int, shape: tuple[int, ...], dtype: torch.dtype, transpose: bool) -> torch.Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
        return (values.mT if transpose and len(shape) > 1 else values).to(dtype)

    shapes = st.sampled_from([(), (0,), (3,), (2, 3), (1, 2, 2)])
    return st.builds(make, st.integers(0, 9), shapes, st.sampled_from(DTYPES), st.booleans())


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text(max_size=2))
states = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(states)
@settings(max_examples=200)
def test_any_state_comes_back_as_it_was(state: Any) -> None:
    packed, tree = flatten(state)
    data = safetensors.torch.save(packed)
    tree = json.loads(json.dumps(tree, allow_nan=False))
    assert same(unflatten(safetensors.torch.load(data), tree), state)


@pytest.mark.parametrize("kind", ["adam", "sgd", "rmsprop", "adagrad"])
def test_optimiser_states_come_back_exactly(kind: str, tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    make = {
        "adam": lambda: torch.optim.AdamW(net.parameters(), betas=(0.8, 0.99), amsgrad=True),
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(net.parameters(), momentum=0.9, centered=True),
        "adagrad": lambda: torch.optim.Adagrad(net.parameters()),
    }[kind]
    optimizer: torch.optim.Optimizer = make()  # type: ignore[no-untyped-call]
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    save(tmp_path, 1, {"optimizer": state})
    found = load_newest(tmp_path)
    assert found is not None and same(found[1], {"optimizer": state})
    optimizer.load_state_dict(found[1]["optimizer"])
    assert same(optimizer.state_dict(), state)


def test_shared_tensors_are_stored_once_and_views_get_memory_of_their_own() -> None:
    base = torch.arange(6.0)
    state = {"a": base, "again": base, "alias": base.view(6), "part": base[2:4], "matrix": base.view(2, 3)}
    packed, tree = flatten(state)
    assert sorted(packed) == ["a", "matrix", "part"]
    back = unflatten(safetensors.torch.load(safetensors.torch.save(packed)), tree)
    assert same(back, state)
    assert back["a"] is back["again"] is back["alias"]


def test_tied_weights_of_a_network_come_back_tied() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    packed, _ = flatten(net.state_dict())
    assert len(packed) == 3


def test_subclasses_come_back_as_the_plain_type() -> None:
    packed, tree = flatten(OrderedDict(w=nn.Parameter(torch.ones(2))))
    back = unflatten(packed, tree)
    assert type(back) is dict and type(back["w"]) is torch.Tensor and not back["w"].requires_grad


def test_names_are_the_paths_of_the_state() -> None:
    one, two, three = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    packed, _ = flatten({"net": {"conv.weight": one}, "net.conv": {"weight": two}, "__metadata__": three})
    assert sorted(packed) == ["__metadata__'", "net.conv.weight", "net.conv.weight'"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j])
def test_what_cannot_be_stored_is_named_with_its_place(value: object) -> None:
    with pytest.raises(TypeError, match=rf"a {type(value).__name__} at 'net\.extra\.1' cannot go into"):
        flatten({"net": {"extra": [0, value]}})


def test_a_node_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of node 'set'"):
        unflatten({}, {"set": []})


def test_the_first_tensor_with_a_nan_is_found() -> None:
    assert nan_in({"net": {"a": torch.ones(2), "n": torch.arange(3), "inf": torch.tensor(torch.inf)}}) is None
    assert nan_in({"net": {"a": torch.ones(2), "b": torch.tensor([0.0, torch.nan])}}) == "net.b"


def test_the_last_two_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for name in (
        "step-2.safetensors",
        "step-3.json.tmp",
        "step-9.json",
        "step-9.safetensors.tmp",
        "note.txt",
    ):
        (tmp_path / name).write_text("left by a kill, or by a run that went back")
    for step in (1, 4, 5, 6):
        save(tmp_path, step, {"w": torch.full((2,), float(step))})
    names = {f"step-{step}.{kind}" for step in (5, 6) for kind in ("json", "safetensors")}
    assert set(os.listdir(tmp_path)) == names | {"note.txt"}


def test_no_folder_or_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") is None
    (tmp_path / "step-3.safetensors").write_bytes(b"the kill came before the JSON file")
    (tmp_path / "step-3.json.tmp").write_bytes(b"{")
    assert load_newest(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    ["no tensors", "cut tensors", "flipped bit", "cut json", "not json", "other json", "wrong name"],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, {"w": torch.ones(4)})
    save(tmp_path, 2, {"w": torch.zeros(4)})
    data, record = tmp_path / "step-2.safetensors", tmp_path / "step-2.json"
    if damage == "no tensors":
        data.unlink()
    elif damage == "cut tensors":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "flipped bit":
        data.write_bytes(data.read_bytes()[:-1] + b"\1")
    elif damage == "cut json":
        record.write_bytes(record.read_bytes()[:-5])
    elif damage == "not json":
        record.write_bytes(b"\xff\x00")
    elif damage == "other json":
        record.write_text("[]")
    else:
        record.write_text(record.read_text().replace('"tensor": "w"', '"tensor": "v"'))
    with pytest.warns(UserWarning, match=r"step-2\.json is damaged.*going back to an earlier one"):
        found = load_newest(tmp_path)
    assert found is not None and found[0] == 1 and torch.equal(found[1]["w"], torch.ones(4))


def test_a_newer_format_is_not_silently_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, {"w": torch.ones(1)})
    record = tmp_path / "step-1.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has format 2, and this version reads 1: upgrade sartor"):
        load_newest(tmp_path)


@pytest.mark.parametrize("call", range(1, 5))
def test_a_full_disk_at_any_moment_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    save(tmp_path, 1, {"w": torch.ones(4)})
    calls = 0

    def failing(real: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError(28, "No space left on device")
            return real(*args)

        return run

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    with pytest.raises(OSError, match=r"cannot write .*step-2.*No space left"):
        save(tmp_path, 2, {"w": torch.zeros(4)})
    found = load_newest(tmp_path)
    assert found is not None and found[0] == 1
    monkeypatch.undo()
    save(tmp_path, 2, {"w": torch.zeros(4)})
    found = load_newest(tmp_path)
    assert found is not None and found[0] == 2
