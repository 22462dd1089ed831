# SPDX-License-Identifier: Apache-2.0
"""Wrappers of transformers: one tensor in, one out, and graphs that are right for every padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier
from sartor.deploy.onnx import export_onnx, onnx_runner
from sartor.deploy.parity import compare, outputs, require
from sartor.deploy.program import export_pt2, pt2_runner
from sartor.targets.decoding import decoded, decoding_speed
from sartor.workload import macs, trace

transformers = pytest.importorskip("transformers")

PAD = 0
SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 24, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 99, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def bert() -> nn.Module:
    return TextClassifier(transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)), PAD)


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(**SIZES, pad_token_id=PAD)
    return TextClassifier(transformers.RobertaForSequenceClassification(config), PAD)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=99, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=24
    )
    return TextClassifier(transformers.DistilBertForSequenceClassification(config), PAD)


def llama_classifier() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    return TextClassifier(transformers.LlamaForSequenceClassification(config), PAD)


def t5_encoder() -> nn.Module:
    config = transformers.T5Config(vocab_size=99, d_model=16, num_layers=2, num_heads=2, d_ff=24, d_kv=8)
    return TextClassifier(transformers.T5EncoderModel(config), PAD)


def llama() -> nn.Module:
    return LanguageModel(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=1)))


def gpt2() -> nn.Module:
    return LanguageModel(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))


CLASSIFIERS = [bert, roberta, distilbert, llama_classifier]
ALL = [*CLASSIFIERS, t5_encoder, llama, gpt2]


def made(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return make().eval()


def padded(rows: int = 5, length: int = 7) -> Tensor:
    ids = torch.randint(2, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    for row in range(1, rows):
        ids[row, length - row :] = PAD
    return ids


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_a_classifier_computes_what_its_model_does_with_a_mask(make: Callable[[], nn.Module]) -> None:
    network, ids = made(make), padded()
    with torch.no_grad():
        torch.testing.assert_close(network(ids), network.model(ids, attention_mask=(ids != PAD).long()).logits)


@pytest.mark.parametrize("make", CLASSIFIERS)
def test_pads_change_nothing(make: Callable[[], nn.Module]) -> None:
    network, ids = made(make), padded(1)
    longer = torch.nn.functional.pad(ids, (0, 4), value=PAD)
    with torch.no_grad():
        torch.testing.assert_close(network(ids), network(longer))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_language_model_computes_what_its_model_does(make: Callable[[], nn.Module]) -> None:
    network, ids = made(make), padded()
    with torch.no_grad():
        assert torch.equal(network(ids), network.model(ids, use_cache=False).logits)


def test_an_image_classifier_returns_logits() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    network = ImageClassifier(transformers.ViTForImageClassification(config)).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(images), network.model(images).logits)
    assert macs(trace(network, images)) > 0


@pytest.mark.parametrize("make", ALL)
def test_a_trace_on_the_meta_device_counts_all_parameters(make: Callable[[], nn.Module]) -> None:
    network = made(make)
    work = trace(network, padded(1))
    assert macs(work) > 0
    sizes = {id(p): p.numel() for p in network.parameters()}
    read = sum(op.attribute("parameters") for op in work)
    assert read >= 0.9 * sum(sizes.values())  # T5's tied embedding, and types or positions that no token uses


@pytest.mark.parametrize("make", [bert, llama_classifier, t5_encoder, llama, gpt2])
def test_an_onnx_file_is_right_for_padded_inputs_though_traced_without_pads(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    network = made(make)
    export_onnx(network, padded(1), tmp_path / "model.onnx")
    require(compare(onnx_runner(tmp_path / "model.onnx"), outputs(network, padded()), padded()), "the file")


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL)
def test_both_programs_are_right_for_padded_inputs(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, reference = made(make), outputs(made(make), padded())
    export_onnx(network, padded(1), tmp_path / "model.onnx")
    export_pt2(network, padded(1), tmp_path / "model.pt2")
    require(compare(onnx_runner(tmp_path / "model.onnx"), reference, padded()), "the ONNX file")
    require(compare(pt2_runner(tmp_path / "model.pt2"), reference, padded()), "the program")


def test_the_program_of_a_classifier_is_right_for_padded_inputs(tmp_path: Path) -> None:
    network = made(distilbert)
    export_pt2(network, padded(1), tmp_path / "model.pt2")
    require(compare(pt2_runner(tmp_path / "model.pt2"), outputs(network, padded()), padded()), "the program")


@pytest.mark.parametrize("make", [llama, gpt2])
def test_decoding_with_a_cache_writes_what_passes_without_one_say(make: Callable[[], nn.Module]) -> None:
    network, ids = made(make), padded(2, 5)[:1]
    found = decoded(network, ids, 4)
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, network(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids[:, 5:])


def test_the_speeds_of_several_networks_come_in_their_order_and_leave_them_as_they_were() -> None:
    networks = [made(llama).train(), made(gpt2)]
    found = decoding_speed(networks, padded(1), tokens=3, seconds=0.01)
    assert len(found) == 2 and networks[0].training and not networks[1].training
    for one in found:
        assert 0 < one.low <= one.per_s <= one.high and 0 < one.prompt_low <= one.prompt_per_s
        assert (one.prompt, one.tokens, one.batch, one.threads) == (7, 3, 1, 1)
        assert one.to_dict()["rounds"] >= 6


def test_a_model_that_sees_a_window_is_timed_beyond_it() -> None:
    config = transformers.MistralConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, sliding_window=4,
    )  # fmt: skip
    assert decoding_speed([transformers.MistralForCausalLM(config)], padded(1), tokens=6, seconds=0.01)[0].tokens == 6


@pytest.mark.parametrize(
    ("prompt", "tokens", "words"), [(torch.zeros(1, 3), 2, "token ids"), (torch.ones(1, 3, dtype=torch.int64), 0, "1")]
)
def test_what_cannot_be_decoded_says_so(prompt: Tensor, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decoding_speed([], prompt, tokens=tokens)
