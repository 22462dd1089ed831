# SPDX-License-Identifier: Apache-2.0
"""The loader of llama2.c files in `benchmarks/stories.py`."""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
SOURCE = Path(__file__).parents[1] / "benchmarks" / "stories.py"
TRAINED = Path(os.environ.get("SARTOR_STORIES", "shared/data/stories260k")) / "stories260K.bin"


def stories() -> Any:
    spec = importlib.util.spec_from_file_location("stories", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path: Path, numbers: int) -> Path:
    """A file of dim 8, hidden 12, 2 layers, 2 heads, 1 key-value head, 5 tokens, length 6, and ascending numbers."""
    values = torch.arange(numbers, dtype=torch.float32) / 1000
    path.write_bytes(struct.pack("<7i", 8, 12, 2, 2, 1, 5, 6) + values.numpy().tobytes())
    return path


NUMBERS = 5 * 8 + 2 * 8 + 2 * (64 + 32 + 32 + 64) + 2 * 8 + 2 * 3 * 96 + 8 + 2 * 6 * 2


def test_tensors_are_found_in_their_places(tmp_path: Path) -> None:
    model = stories().load_llama2c(written(tmp_path / "a.bin", NUMBERS), turns=0)
    state = model.state_dict()
    start = {"embedding": 0, "q": 40 + 16, "gate": 40 + 16 + 384 + 16}
    assert state["model.embed_tokens.weight"][0, 1] == pytest.approx(0.001)
    assert state["lm_head.weight"] is not None and model.config.tie_word_embeddings
    query = state["model.layers.0.self_attn.q_proj.weight"][:, 0] * 1000
    assert query[:4].round().tolist() == [start["q"] + 8 * row for row in (0, 2, 1, 3)]  # halves, not neighbours
    assert state["model.layers.0.mlp.gate_proj.weight"][0, 0] == pytest.approx(start["gate"] / 1000)
    assert state["model.layers.1.mlp.up_proj.weight"][0, 0] == pytest.approx((start["gate"] + 5 * 96) / 1000)


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no version 0"):
        stories().load_llama2c(written(tmp_path / "a.bin", NUMBERS + 1))


@pytest.mark.skipif(not TRAINED.is_file(), reason="SARTOR_STORIES does not name a folder with stories260K.bin")
def test_the_trained_network_knows_its_own_stories() -> None:
    module = stories()
    model = module.load_llama2c(TRAINED)
    assert sum(p.numel() for p in model.parameters()) == 260_032
    prompt = torch.tensor([[module.BEGIN]])
    story = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False, pad_token_id=0
    )
    assert len(set(story[0].tolist())) > 20  # it does not repeat a few words for ever
    tokens = module.samples(model, 16, 65, seed=0)
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss) < 1.6
