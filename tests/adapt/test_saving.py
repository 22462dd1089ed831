# SPDX-License-Identifier: Apache-2.0
"""Folders of stand-alone networks: they load with transformers alone, and compute the same to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import safetensors.torch

from adapt.families import ALL, GENERATORS, Family
from sartor.adapt import elastic, plain
from sartor.adapt.load import load
from sartor.adapt.loading import pretrained
from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier
from sartor.adapt.saving import save
from sartor.architecture import Architecture
from sartor.deploy.scratch import scratch_path
from sartor.supernet import extract, search_space

torch.set_num_threads(1)

BY_NAME = {family.name: family for family in ALL}
every_family = pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
every_generator = pytest.mark.parametrize("family", GENERATORS, ids=lambda family: family.name)

# Families that can say how many heads of which length a network has.
SAY_HEADS = ("vit", "deit", "llama", "mistral", "qwen2", "qwen3", "t5")

ALONE = """
import importlib.util, sys
from pathlib import Path
class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "sartor":
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Missing())
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with torch.no_grad():
        output = script.load()(**load_file(folder.with_suffix(".inputs")))[0]
    save_file({"output": output.contiguous()}, folder.with_suffix(".output"))
assert "sartor" not in sys.modules
"""


def says_heads(family: Family) -> bool:
    return family.name.partition("-")[0] in SAY_HEADS


def supernet(family: Family) -> Any:
    more: Any = {"hidden": family.hidden} if family.hidden else {}
    more |= {"cross_heads": [0.5]} if family.name in ("t5", "t5-gated", "whisper") else {}
    return elastic(family.network(), heads=[0.5], mlp=[0.25, 0.5], depth=[family.lists, 2], **more)


def uneven(network: nn.Module) -> Architecture:
    """Two blocks out of three, the last one smaller than the other, and the smallest residual stream."""
    space = search_space(network)
    small = {name: options[0] for name, options in space.choices.items() if ".2." in name or name == "hidden"}
    lists = {name: options[1] for name, options in space.choices.items() if name.endswith("depth")}
    return Architecture({**space.largest(), **small, **lists})


def uniform(network: nn.Module, *roles: str) -> Architecture:
    """The same for all blocks: the smallest options of some roles."""
    space = search_space(network)
    small = {name: options[0] for name, options in space.choices.items() if name.rpartition(".")[2] in roles}
    return Architecture({**space.largest(), **small})


def output(network: nn.Module, family: Family) -> Tensor:
    with torch.no_grad():
        first = network(**family.inputs())[0]
    assert isinstance(first, Tensor)
    return first


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestAsAPlainModelOfItsFamily:
    @every_family
    def test_it_comes_back_by_from_pretrained_to_the_last_bit(self, family: Family, tmp_path: Path) -> None:
        whole = supernet(family)
        for cut in (extract, plain):
            roles = ("mlp", "depth", "hidden") if says_heads(family) else ("mlp", "depth")
            small = cut(whole, uniform(whole, *roles)).eval()
            assert save(small, tmp_path / cut.__name__), "the configuration can say this"
            assert not (tmp_path / cut.__name__ / "sizes.json").exists()
            back = type(small).from_pretrained(tmp_path / cut.__name__).eval()  # type: ignore[attr-defined]
            assert same_tensors(small, back) and torch.equal(output(small, family), output(back, family))
            assert small.state_dict().keys() == back.state_dict().keys()

    @every_family
    def test_fewer_heads_are_plain_where_the_configuration_says_their_length(
        self, family: Family, tmp_path: Path
    ) -> None:
        whole = supernet(family)
        small = plain(whole, uniform(whole, "heads", "cross_heads"))
        assert save(small, tmp_path) == says_heads(family)
        back = load(tmp_path) if (tmp_path / "load.py").exists() else type(small).from_pretrained(tmp_path)  # type: ignore[attr-defined]
        assert torch.equal(output(small, family), output(back.eval(), family))

    def test_the_models_own_save_pretrained_does_the_same(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["llama"])
        small: Any = plain(whole, uniform(whole, "mlp", "heads", "depth", "hidden"))
        small.save_pretrained(tmp_path)
        assert same_tensors(small, type(small).from_pretrained(tmp_path))


class TestWithItsSizesBeside:
    def test_every_family_loads_where_sartor_is_not(self, tmp_path: Path) -> None:
        expected: dict[Path, Tensor] = {}
        for family in ALL:
            whole = supernet(family)
            small = plain(whole, uneven(whole))
            folder = tmp_path / family.name
            assert not save(small, folder), family.name
            expected[folder] = output(small, family)
            inputs = {name: one.contiguous() for name, one in family.inputs().items()}
            safetensors.torch.save_file(inputs, folder.with_suffix(".inputs"))
        done = subprocess.run(
            [sys.executable, "-c", ALONE, *map(str, expected)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        for folder, reference in expected.items():
            found = safetensors.torch.load_file(folder.with_suffix(".output"))["output"]
            assert torch.equal(found, reference), folder.name

    @every_generator
    def test_it_generates_the_same_with_a_cache(self, family: Family, tmp_path: Path) -> None:
        whole = supernet(family)
        small: Any = plain(whole, uneven(whole))
        save(small, tmp_path)
        ids = family.inputs()["input_ids"]
        first, second = (net.generate(ids, max_new_tokens=6, do_sample=False) for net in (small, load(tmp_path)))
        assert torch.equal(first, second)

    @every_family
    def test_its_modules_say_the_same_of_themselves(self, family: Family, tmp_path: Path) -> None:
        whole = supernet(family)
        small = plain(whole, uneven(whole))
        save(small, tmp_path)
        back = load(tmp_path)
        assert same_tensors(small, back) and type(back) is type(small)
        buffers = dict(small.named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in back.named_buffers())
        for (_, one), (_, other) in zip(small.named_modules(), back.named_modules(), strict=True):
            numbers = {name: value for name, value in vars(one).items() if type(value) is int}
            assert numbers == {name: vars(other)[name] for name in numbers}
        tied = {id(parameter) for parameter in small.parameters()}
        assert len(tied) == len({id(parameter) for parameter in back.parameters()})

    def test_the_script_is_short_and_needs_transformers_alone(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["bert"])
        save(plain(whole, uneven(whole)), tmp_path)
        text = (tmp_path / "load.py").read_text()
        assert len(text.splitlines()) <= 40 and "sartor" not in text
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.json", "load.py", "model.safetensors", "sizes.json",
        ]  # fmt: skip

    def test_pretrained_loads_it_but_runs_nothing_in_the_folder(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["bert"])
        small = plain(whole, uneven(whole))
        save(TextClassifier(small, 0), tmp_path)
        (tmp_path / "load.py").write_text("raise SystemExit('ran')")
        network = pretrained(tmp_path, kind="classification", classes=2)
        assert same_tensors(small, network.model)
        with torch.device("meta"):
            bare = pretrained(tmp_path, kind="classification")
        assert {name: one.shape for name, one in bare.state_dict().items()} == {
            name: one.shape for name, one in network.state_dict().items()
        }

    def test_pretrained_refuses_what_the_cut_network_is_not(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["llama"])
        save(plain(whole, uneven(whole)), tmp_path)
        with pytest.raises(ValueError, match=r"holds a LlamaForCausalLM that was cut, which has no head for"):
            pretrained(tmp_path, kind="classification", classes=2)
        (tmp_path / "sizes.json").write_text("{}")
        with pytest.raises(ValueError, match="transformers cannot load it: 'blocks'"):
            pretrained(tmp_path, kind="language")

    def test_pretrained_keeps_the_head_of_a_cut_network(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["vit"])
        save(plain(whole, uneven(whole)), tmp_path)
        with pytest.raises(ValueError, match="was cut with a head of 2 classes, not of 5: it keeps that head"):
            pretrained(tmp_path, kind="image", classes=5)


class TestFolders:
    def test_wrappers_are_saved_as_what_they_wrap(self, tmp_path: Path) -> None:
        for name, kind, wrapped in (
            ("bert", "classification", lambda model: TextClassifier(model, 0)),
            ("llama", "language", LanguageModel),
            ("vit", "image", ImageClassifier),
        ):
            model = BY_NAME[name].network()
            assert save(wrapped(model), tmp_path / name)
            back = pretrained(tmp_path / name, kind=kind)  # type: ignore[arg-type]
            assert type(back) is type(wrapped(model)) and same_tensors(back.model, model)

    def test_the_tokenizer_comes_along(self, tmp_path: Path) -> None:
        class Words:
            def save_pretrained(self, folder: Path) -> None:
                (folder / "tokenizer.json").write_text("{}")

        save(BY_NAME["bert"].network(), tmp_path, tokenizer=Words())
        assert (tmp_path / "tokenizer.json").read_text() == "{}"

    def test_one_form_takes_the_place_of_the_other_and_leaves_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        whole = supernet(BY_NAME["bert"])
        save(plain(whole, uneven(whole)), tmp_path)
        assert save(plain(whole, uniform(whole, "mlp")), tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["config.json", "model.safetensors", "notes.txt"]

    def test_a_failure_leaves_no_trace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = supernet(BY_NAME["bert"])
        save(plain(whole, uniform(whole, "mlp")), tmp_path / "net")
        before = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            save(plain(whole, uneven(whole)), tmp_path / "net")
        assert {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()} == before
        assert not scratch_path(tmp_path / "net").exists() and os.listdir(tmp_path) == ["net"]

    def test_nothing_is_pickled(self, tmp_path: Path) -> None:
        whole = supernet(BY_NAME["gpt2"])
        for name, architecture in (("cut", uneven(whole)), ("plain", uniform(whole, "mlp"))):
            save(plain(whole, architecture), tmp_path / name)
            files = {path.suffix for path in (tmp_path / name).iterdir()}
            assert files <= {".json", ".safetensors", ".py"}
            json.loads((tmp_path / name / "config.json").read_text())


class TestBadInput:
    def test_a_supernet(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"BertForSequenceClassification is a supernet of \d+ choices: extract"):
            save(supernet(BY_NAME["bert"]), tmp_path)

    def test_what_is_no_model_of_transformers(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="Linear is no model of transformers: save its state dict instead"):
            save(nn.Linear(2, 2), tmp_path)

    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is on the meta device and has no weights to save"):
            save(BY_NAME["bert"].network().to("meta"), tmp_path)

    def test_a_file_where_the_folder_shall_be(self, tmp_path: Path) -> None:
        (tmp_path / "net").write_text("")
        with pytest.raises(ValueError, match="net is a file: choose a folder"):
            save(BY_NAME["bert"].network(), tmp_path / "net")

    def test_modules_that_the_configuration_does_not_make(self, tmp_path: Path) -> None:
        model = BY_NAME["bert"].network()
        model.classifier = nn.Sequential(nn.Linear(24, 2))
        with pytest.raises(ValueError, match="classifier is a Sequential, which the configuration of the network does"):
            save(model, tmp_path)
