# SPDX-License-Identifier: Apache-2.0
"""The families of Hugging Face's transformers: what may be searched in each, by the paths of its modules.

Heads keep their size. Where query heads share a key-value head, they come and go with it. Paths are those of
transformers 5; a head of the network (a classifier, a language model's) that a rule for the hidden size does not name
is refused when the network is adopted.
"""

from __future__ import annotations

from collections.abc import Mapping

from sartor.adapt.encoder_decoders import T5, WHISPER
from sartor.adapt.rules import Depth, Rule, Stated, Width

__all__ = ["FAMILIES"]

_DEPTH = Stated("num_hidden_layers")
_MLP = Stated("intermediate_size")
_HIDDEN = Stated("hidden_size")


# BERT, and RoBERTa, whose modules have the same names but for the heads of the network.
_BERT: tuple[Rule, ...] = (
    Depth("depth", "encoder.layer", places=("attention.self.layer_idx",), stated=_DEPTH),
    Width(
        "heads", "encoder.layer.*",
        makes=("attention.self.query", "attention.self.key", "attention.self.value"),
        reads=("attention.output.dense",), count="attention.self.num_attention_heads",
        stated=Stated("num_attention_heads", unit="attention.self.attention_head_size"),
    ),
    Width("mlp", "encoder.layer.*", makes=("intermediate.dense",), reads=("output.dense",), stated=_MLP),
    Width(
        "hidden", "",
        makes=(
            "embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings",
            "layer.*.attention.output.dense", "layer.*.output.dense", "pooler.dense?", "transform.dense?",
            "classifier.dense?", "lm_head.dense?",
        ),
        reads=(
            "attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense",
            "pooler.dense?", "transform.dense?", "predictions.decoder?", "cls.seq_relationship?",
            "classifier?", "classifier.dense?", "classifier.out_proj?", "qa_outputs?",
            "lm_head.dense?", "lm_head.decoder?",
        ),
        follows=(
            "embeddings.LayerNorm", "attention.output.LayerNorm", "layer.*.output.LayerNorm",
            "transform.LayerNorm?", "lm_head.layer_norm?",
        ),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip
_DISTILBERT: tuple[Rule, ...] = (
    Depth("depth", "transformer.layer", stated=_DEPTH),
    Width(
        "heads", "transformer.layer.*", makes=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        reads=("attention.out_lin",), count="attention.n_heads",
        stated=Stated("num_attention_heads", unit="attention.attention_head_size"),
    ),
    Width("mlp", "transformer.layer.*", makes=("ffn.lin1",), reads=("ffn.lin2",), stated=Stated("hidden_dim")),
    Width(
        "hidden", "",
        makes=(
            "embeddings.word_embeddings", "embeddings.position_embeddings", "attention.out_lin", "ffn.lin2",
            "pre_classifier?", "vocab_transform?",
        ),
        reads=(
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1", "pre_classifier?", "classifier?",
            "qa_outputs?", "vocab_transform?", "vocab_projector?",
        ),
        follows=("embeddings.LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm?"),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip
_VIT: tuple[Rule, ...] = (
    Depth("depth", "layers", stated=_DEPTH),
    Width(
        "heads", "layers.*", makes=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        reads=("attention.o_proj",), count="attention.num_attention_heads",
        stated=Stated("num_attention_heads", unit="attention.head_dim", unit_name="head_dim"),
    ),
    Width("mlp", "layers.*", makes=("mlp.fc1",), reads=("mlp.fc2",), stated=_MLP),
    Width(
        "hidden", "",
        makes=(
            "embeddings.patch_embeddings.projection", "embeddings.cls_token", "embeddings.distillation_token?",
            "embeddings.mask_token?", "embeddings.position_embeddings", "attention.o_proj", "mlp.fc2",
        ),
        reads=(
            "attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.fc1", "pooler.dense?", "classifier?",
            "cls_classifier?", "distillation_classifier?",
        ),
        follows=("layernorm_before", "layernorm_after", "layernorm"),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip
_SWIN: tuple[Rule, ...] = (
    Depth("depth", "layers.*.blocks", stated=Stated("depths")),
    Width(
        "heads", "layers.*.blocks.*",
        makes=(
            "attention.q_proj", "attention.k_proj", "attention.v_proj",
            "attention.relative_position_bias.relative_position_bias_table",
        ),
        reads=("attention.o_proj",), count="attention.num_attention_heads",
    ),
    Width(
        "mlp", "layers.*.blocks.*", makes=("mlp.fc1",), reads=("mlp.fc2",), stated=Stated("mlp_ratio", per_input=True),
    ),
)  # fmt: skip
_LLAMA: tuple[Rule, ...] = (
    Depth("depth", "layers", places=("self_attn.layer_idx",), kinds="layer_types", stated=_DEPTH),
    Width(
        "heads", "layers.*", makes=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        reads=("self_attn.o_proj",), count="self_attn.config.num_attention_heads",
        together="self_attn.num_key_value_groups",
        stated=Stated(
            "num_attention_heads", unit="self_attn.head_dim", unit_name="head_dim", groups="num_key_value_heads"
        ),
    ),
    Width(
        "mlp", "layers.*", makes=("mlp.gate_proj", "mlp.up_proj"), reads=("mlp.down_proj",), stated=_MLP,
    ),
    Width(
        "hidden", "",
        makes=("embed_tokens", "self_attn.o_proj", "mlp.down_proj"),
        reads=(
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj",
            "lm_head?", "score?", "qa_outputs?",
        ),
        follows=("input_layernorm", "post_attention_layernorm", "norm"),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip
_GPT2: tuple[Rule, ...] = (
    Depth("depth", "h", places=("attn.layer_idx",), stated=_DEPTH),
    Width(
        "heads", "h.*", makes=("attn.c_attn",), reads=("attn.c_proj",), count="attn.num_heads", fused=3,
        numbers=("attn.num_heads", "attn.split_size"), stated=Stated("num_attention_heads", unit="attn.head_dim"),
    ),
    Width("mlp", "h.*", makes=("mlp.c_fc",), reads=("mlp.c_proj",), stated=Stated("n_inner")),
    Width(
        "hidden", "",
        makes=("wte", "wpe", "attn.c_proj", "mlp.c_proj"),
        reads=("attn.c_attn", "mlp.c_fc", "lm_head?", "score?", "classifier?", "qa_outputs?", "summary?"),
        follows=("ln_1", "ln_2", "ln_f"),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip

FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": _DISTILBERT,
    "vit": _VIT,
    "deit": _VIT,
    "swin": _SWIN,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "t5": T5,
    "whisper": WHISPER,
}
"""Rules by `config.model_type`."""
