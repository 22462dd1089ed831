# SPDX-License-Identifier: Apache-2.0
"""Pretrained networks from folders: what loads, what new heads hold, and one clear line for all that cannot load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import safetensors.torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from sartor.adapt.loading import pretrained, tokenizer_of
from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
BERT: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12, "pad_token_id": 0,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12,
}  # fmt: skip


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A trained classifier of three classes."""
    BertForSequenceClassification(BertConfig(**{**BERT, "num_labels": 3})).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A network without a head."""
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def edited(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(content | changes))
    return folder


def words(folder: Path) -> Path:
    """Put a small tokenizer beside a model."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    return folder


class TestWhatLoads:
    def test_a_classifier_with_its_own_head_computes_what_it_was_saved_to_compute(self, bert: Path) -> None:
        network = pretrained(bert, kind="classification")
        assert isinstance(network, TextClassifier) and not network.training
        original = BertForSequenceClassification.from_pretrained(bert)
        expected = original(input_ids=IDS, attention_mask=(IDS != 0).long()).logits
        assert torch.equal(network(IDS), expected) and expected.shape == (2, 3)

    def test_a_language_model_and_a_classifier_of_images(self, llama: Path, tmp_path: Path) -> None:
        network = pretrained(str(llama), kind="language")
        assert isinstance(network, LanguageModel) and network(IDS).shape == (2, 5, 20)
        config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
        ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        images = pretrained(tmp_path / "vit", kind="image", classes=2)
        assert isinstance(images, ImageClassifier) and images(torch.zeros(2, 3, 8, 8)).shape == (2, 2)

    def test_weights_of_half_precision_become_float32(self, tmp_path: Path) -> None:
        model: Any = LlamaForCausalLM(LlamaConfig(**LLAMA))
        model.to(torch.bfloat16).save_pretrained(tmp_path)
        network = pretrained(tmp_path, kind="language")
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}

    def test_on_the_meta_device_weights_are_not_read(self, bert: Path) -> None:
        (bert / "model.safetensors").write_bytes(b"no weights")
        with torch.device("meta"):
            network = pretrained(bert, kind="classification", classes=4)
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert network(IDS.to("meta")).shape == (2, 4)

    def test_transformers_says_nothing(self, encoder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        pretrained(encoder, kind="classification", classes=2)
        assert capfd.readouterr() == ("", "")


class TestNewHeads:
    def test_they_follow_from_the_seed_and_leave_the_generator_as_it_was(self, encoder: Path) -> None:
        before = torch.random.get_rng_state()
        first, again, other = (
            pretrained(encoder, kind="classification", classes=5, seed=seed).get_parameter("model.classifier.weight")
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == (5, 16)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_head_for_other_classes_is_replaced_only_on_demand(self, bert: Path) -> None:
        with pytest.raises(ValueError, match=r"has a head of 3 classes, not of 7: ask for a new head"):
            pretrained(bert, kind="classification", classes=7)
        network = pretrained(bert, kind="classification", classes=7, replace_head=True)
        assert network(IDS).shape == (2, 7)

    def test_a_network_that_lacks_its_pooler_gets_a_new_one(self, tmp_path: Path) -> None:
        BertForMaskedLM(BertConfig(**BERT)).save_pretrained(tmp_path)
        assert pretrained(tmp_path, kind="classification", classes=2)(IDS).shape == (2, 2)


class TestTokenizers:
    def test_it_pads_with_the_token_that_the_network_masks(self, bert: Path) -> None:
        tokenizer = tokenizer_of(words(bert))
        rows = tokenizer(["good", "bad bad"], padding=True)["input_ids"]
        assert rows == [[2, 0], [3, 3]] and pretrained(bert, kind="classification").pad == tokenizer.pad_token_id

    def test_where_no_token_pads_it_is_the_end_of_the_text(self, llama: Path) -> None:
        tokenizer = tokenizer_of(words(edited(llama, eos_token_id=3, pad_token_id=None)))
        assert tokenizer.pad_token_id == 3

    def test_a_model_without_one(self, bert: Path) -> None:
        with pytest.raises(
            ValueError, match=r"bert has no tokenizer: put one of tokenizer.json, .* beside config.json$"
        ):
            tokenizer_of(bert)

    def test_one_that_is_broken_or_runs_code(self, bert: Path) -> None:
        (words(bert) / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match="its tokenizer cannot be loaded") as caught:
            tokenizer_of(bert)
        assert "\n" not in str(caught.value)
        edited(bert, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
        with pytest.raises(ValueError, match=r"tokenizer_config.json has auto_map: it runs code of its own"):
            tokenizer_of(bert)


def refused(folder: Path | str, **keywords: Any) -> str:
    with pytest.raises(ValueError) as caught:
        pretrained(folder, **{"kind": "classification", **keywords})
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestBadInput:
    def test_code_of_the_models_own_is_never_run(self, bert: Path) -> None:
        (bert / "own.py").write_text("raise SystemExit('ran')")
        edited(bert, auto_map={"AutoModelForSequenceClassification": "own.Model"})
        assert "config.json has auto_map: it runs code of its own, which is never run here" in refused(bert)

    def test_weights_as_pickles_alone(self, bert: Path) -> None:
        weights = safetensors.torch.load_file(bert / "model.safetensors")
        torch.save(weights, bert / "pytorch_model.bin")
        (bert / "model.safetensors").unlink()
        assert "holds its weights as pickles alone (pytorch_model.bin), which can run code" in refused(bert)

    def test_no_weights_and_broken_weights(self, bert: Path) -> None:
        (bert / "model.safetensors").write_bytes(b"no weights")
        assert "transformers cannot load it" in refused(bert)
        (bert / "model.safetensors").unlink()
        assert refused(bert).endswith("holds no model.safetensors")

    def test_folders_that_are_none_or_hold_no_model(self, tmp_path: Path) -> None:
        assert refused(tmp_path).endswith("holds no config.json: give the folder that save_pretrained wrote")
        assert "nowhere is no folder: give one that holds config.json, or an id" in refused(tmp_path / "nowhere")

    def test_configurations_that_are_none(self, bert: Path) -> None:
        assert "transformers cannot read it" in refused(edited(bert, model_type="martian"))
        (bert / "config.json").write_text("[]")
        assert refused(bert).endswith("config.json is no JSON object")
        (bert / "config.json").write_text("{")
        assert "config.json is not JSON" in refused(bert)

    def test_an_id_without_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        text = refused("nobody/no-such-model")
        assert text.startswith("nobody/no-such-model is no folder here, and its files cannot be had")
        assert text.endswith("give the path of a local copy")

    def test_families_without_such_a_head(self, bert: Path) -> None:
        assert refused(bert, kind="image").endswith("is a bert, which has no head for 'image'")
        assert "is a bert that reads the tokens on both sides" in refused(bert, kind="language")
        assert "no networks of kind 'sound'; known are classification, language, image" in refused(bert, kind="sound")

    def test_weights_of_another_model(self, bert: Path, llama: Path) -> None:
        (llama / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
        assert "they are of another architecture" in refused(llama, kind="language")
        assert "they are of two models" in refused(edited(bert, hidden_size=8), classes=3)

    def test_a_language_model_without_its_head(self, tmp_path: Path) -> None:
        LlamaModel(LlamaConfig(**LLAMA)).save_pretrained(tmp_path)
        assert "its weights lack lm_head.weight (1 in all)" in refused(tmp_path, kind="language")

    def test_classes_that_do_not_fit(self, encoder: Path, llama: Path) -> None:
        assert refused(encoder, classes=1) == "1 classes: a classifier has 2 or more"
        assert "has no head of its own (classifier.bias is missing): say how many classes" in refused(encoder)
        assert "a language model has no classes" in refused(llama, kind="language", classes=2)

    def test_a_classifier_that_nothing_pads(self, llama: Path) -> None:
        edited(llama, eos_token_id=None, pad_token_id=None)
        assert "has no pad_token_id and no eos_token_id" in refused(llama, classes=2)
