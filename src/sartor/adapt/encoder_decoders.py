# SPDX-License-Identifier: Apache-2.0
"""Rules for families of an encoder and a decoder: T5 and Whisper.

In T5 the first block computes the bias of relative positions, one value for each head, and all blocks of its stack add
it. So heads are one choice for a stack, and the first block always runs.
"""

from __future__ import annotations

from sartor.adapt.rules import Depth, Rule, Stated, Width

__all__ = ["T5", "WHISPER"]

_HIDDEN = Stated("d_model")


def _t5_heads(stack: str, role: str, attention: str, bias: tuple[str, ...]) -> Width:
    at = f"block.*.layer.{attention}"
    return Width(
        role, stack, makes=(f"{at}.q", f"{at}.k", f"{at}.v", *bias), reads=(f"{at}.o",),
        count=f"block.0.layer.{attention}.n_heads", numbers=(f"{at}.n_heads", f"{at}.inner_dim"),
        stated=Stated("num_heads", unit=f"block.0.layer.{attention}.key_value_proj_dim", unit_name="d_kv"),
    )  # fmt: skip


def _t5_mlp(block: str, place: int) -> Width:
    at = f"layer.{place}.DenseReluDense"
    return Width(
        "mlp", block, makes=(f"{at}.wi?", f"{at}.wi_0?", f"{at}.wi_1?"), reads=(f"{at}.wo",), stated=Stated("d_ff")
    )


_T5_BIAS = ("block.0.layer.0.SelfAttention.relative_attention_bias",)
_T5_PLACES = ("layer.0.SelfAttention.layer_idx", "layer.1.EncDecAttention.layer_idx")
T5: tuple[Rule, ...] = (
    Depth("depth", "encoder.block", places=_T5_PLACES, always=(0,), stated=Stated("num_layers")),
    Depth(
        "depth", "decoder.block", places=_T5_PLACES, always=(0,), stated=Stated("num_decoder_layers", own="num_layers"),
    ),
    _t5_heads("encoder", "heads", "0.SelfAttention", _T5_BIAS),
    _t5_heads("decoder", "heads", "0.SelfAttention", _T5_BIAS),
    _t5_heads("decoder", "cross_heads", "1.EncDecAttention", ()),
    _t5_mlp("encoder.block.*", 1),
    _t5_mlp("decoder.block.*", 2),
    Width(
        "hidden", "",
        makes=(
            "shared?", "embed_tokens", "SelfAttention.o", "EncDecAttention.o?", "DenseReluDense.wo",
            "classification_head.dense?",
        ),
        reads=(
            "SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "EncDecAttention.q?", "EncDecAttention.k?",
            "EncDecAttention.v?", "DenseReluDense.wi?", "DenseReluDense.wi_0?", "DenseReluDense.wi_1?", "lm_head?",
            "classification_head.dense?", "classification_head.out_proj?", "classifier?", "qa_outputs?",
        ),
        follows=("layer_norm", "final_layer_norm"), numbers=("model_dim",), complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip


def _whisper_heads(role: str, block: str, attention: str, name: str) -> Width:
    projections = tuple(f"{attention}.{one}_proj" for one in ("q", "k", "v"))
    return Width(
        role, block, makes=projections, reads=(f"{attention}.out_proj",), count=f"{attention}.num_heads",
        numbers=(f"{attention}.num_heads",), stated=Stated(name, unit=f"{attention}.head_dim"),
    )  # fmt: skip


_WHISPER_PLACES = ("self_attn.layer_idx", "encoder_attn.layer_idx")
WHISPER: tuple[Rule, ...] = (
    Depth("depth", "encoder.layers", stated=Stated("encoder_layers")),
    Depth("depth", "decoder.layers", places=_WHISPER_PLACES, stated=Stated("decoder_layers")),
    _whisper_heads("heads", "encoder.layers.*", "self_attn", "encoder_attention_heads"),
    _whisper_heads("heads", "decoder.layers.*", "self_attn", "decoder_attention_heads"),
    _whisper_heads("cross_heads", "decoder.layers.*", "encoder_attn", "decoder_attention_heads"),
    Width("mlp", "encoder.layers.*", makes=("fc1",), reads=("fc2",), stated=Stated("encoder_ffn_dim")),
    Width("mlp", "decoder.layers.*", makes=("fc1",), reads=("fc2",), stated=Stated("decoder_ffn_dim")),
    Width(
        "hidden", "",
        makes=(
            "encoder.conv1", "encoder.conv2", "embed_positions", "embed_tokens?", "self_attn.out_proj",
            "encoder_attn.out_proj?", "fc2",
        ),
        reads=(
            "encoder.conv2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "encoder_attn.q_proj?",
            "encoder_attn.k_proj?", "encoder_attn.v_proj?", "fc1", "proj_out?", "projector?",
        ),
        follows=("self_attn_layer_norm", "encoder_attn_layer_norm?", "final_layer_norm", "layer_norm"),
        complete=True, stated=_HIDDEN,
    ),
)  # fmt: skip
