# SPDX-License-Identifier: Apache-2.0
"""A tiny network of each family of transformers, with random weights, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TEXT: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
GROUPED = {**TEXT, **SIZES, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64}
KINDS = ["full_attention", "sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """`kind` is the class of the network in transformers, `config` that of its configuration."""

    name: str
    kind: str
    config: str
    arguments: dict[str, Any]
    hidden: tuple[int, ...] = (12, 18)
    lists: tuple[int, ...] = (0, 2)
    generates: bool = False
    inputs: Callable[[], dict[str, Tensor]] = field(default=lambda: words())

    def network(self, attention: str = "sdpa", seed: int = 0) -> Any:
        import transformers

        config = getattr(transformers, self.config)(**self.arguments)
        config._attn_implementation = attention
        torch.manual_seed(seed)
        network: nn.Module = getattr(transformers, self.kind)(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # no zeros and ones that hide a wrong slice
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return network


def words() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(3, 60, (2, 11), generator=generator),
        "attention_mask": torch.ones(2, 11, dtype=torch.int64),
    }


def padded() -> dict[str, Tensor]:
    inputs = words()
    inputs["attention_mask"][1, 8:] = 0
    return inputs


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def both() -> dict[str, Tensor]:
    return {**words(), "decoder_input_ids": words()["input_ids"][:, :5]}


def sounds() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(1))}


def heard() -> dict[str, Tensor]:
    return {**sounds(), "decoder_input_ids": words()["input_ids"][:, :5]}


BERT = {**TEXT, **SIZES, "max_position_embeddings": 32}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
T5 = {
    **TEXT, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
WHISPER = {
    **TEXT, "d_model": 24, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 44, "num_mel_bins": 8,
    "max_source_positions": 12, "max_target_positions": 32, "decoder_start_token_id": 1, "suppress_tokens": None,
    "begin_suppress_tokens": None, "classifier_proj_size": 16,
}  # fmt: skip

ALL = [
    Family("bert", "BertForSequenceClassification", "BertConfig", BERT, inputs=padded),
    Family("bert-masked", "BertForMaskedLM", "BertConfig", BERT, inputs=padded),
    Family("roberta", "RobertaForSequenceClassification", "RobertaConfig", BERT, inputs=padded),
    Family("roberta-masked", "RobertaForMaskedLM", "RobertaConfig", BERT, inputs=padded),
    Family(
        "distilbert", "DistilBertForSequenceClassification", "DistilBertConfig",
        {**TEXT, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 32},
        inputs=padded,
    ),
    Family("vit", "ViTForImageClassification", "ViTConfig", IMAGE, inputs=images),
    Family("vit-pooled", "ViTModel", "ViTConfig", IMAGE, inputs=images),
    Family("deit", "DeiTForImageClassification", "DeiTConfig", IMAGE, inputs=images),
    Family("deit-teacher", "DeiTForImageClassificationWithTeacher", "DeiTConfig", IMAGE, inputs=images),
    Family(
        "swin", "SwinForImageClassification", "SwinConfig",
        {
            "image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [3, 3], "num_heads": [2, 4], "window_size": 4,
            "drop_path_rate": 0.0,
        },
        hidden=(), inputs=images,
    ),
    Family("llama", "LlamaForCausalLM", "LlamaConfig", GROUPED, lists=(1, 2), generates=True),
    Family("llama-classifier", "LlamaForSequenceClassification", "LlamaConfig", GROUPED, lists=(1, 2)),
    Family(
        "mistral", "MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 4, "tie_word_embeddings": True},
        lists=(1, 2), generates=True,
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", "Qwen2Config",
        {**GROUPED, "layer_types": KINDS, "use_sliding_window": True, "sliding_window": 4, "tie_word_embeddings": True},
        lists=(1, 2), generates=True,
    ),
    Family(
        "qwen3", "Qwen3ForCausalLM", "Qwen3Config",
        {**GROUPED, "layer_types": KINDS, "use_sliding_window": True, "sliding_window": 4},
        lists=(0, 2), generates=True,
    ),
    Family(
        "gpt2", "GPT2LMHeadModel", "GPT2Config",
        {**TEXT, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}, lists=(1, 2), generates=True,
    ),
    Family("t5", "T5ForConditionalGeneration", "T5Config", T5, generates=True, inputs=both),
    Family(
        "t5-gated", "T5ForConditionalGeneration", "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, generates=True, inputs=both,
    ),
    Family("t5-encoder", "T5EncoderModel", "T5Config", T5),
    Family("whisper", "WhisperForConditionalGeneration", "WhisperConfig", WHISPER, lists=(1, 2), inputs=heard),
    Family("whisper-classifier", "WhisperForAudioClassification", "WhisperConfig", WHISPER, inputs=sounds),
]  # fmt: skip
GENERATORS = [family for family in ALL if family.generates]
