# SPDX-License-Identifier: Apache-2.0
"""Bundles of networks that read text: they stand alone, with the tokenizers library or with ids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sartor.architecture import Architecture
from sartor.data.text_preprocessing import TextPreprocessing, tokenizer_json
from sartor.deploy.bundle import Bundle, is_complete, write_bundle

tokenizers = pytest.importorskip("tokenizers")

WORDS = ("[PAD]", "bad", "good", "film", "the")
ARCH = Architecture({"width": 8})
PAD, LENGTH = 0, 6


class Counting(nn.Module):
    """Class 1 for more 2s than 1s; for language the next token, which is the last one plus one."""

    def __init__(self, language: bool) -> None:
        super().__init__()
        self.language = language
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, ids: Tensor) -> Tensor:
        one_hot = (ids[:, :, None] == torch.arange(len(WORDS))).float() * self.weight
        return one_hot.roll(1, -1) if self.language else one_hot.sum(1)[:, 1:3]


@pytest.fixture
def tokenizer() -> Any:
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return found


def bundle(folder: Path, told: TextPreprocessing, **more: Any) -> Bundle:
    ids = torch.tensor([[2, 3, 1, 4, 1, 1], [2, 2, 3, PAD, PAD, PAD]])
    language = told.kind == "language"
    return write_bundle(
        folder / ARCH.id, net=Counting(language), arch=ARCH, example=ids[:1], samples=ids, files=told.files(),
        preprocessing=told.to_dict(), classes=[] if language else ["bad", "good"], **more,
    )  # fmt: skip


def said(found: Bundle, *arguments: str, without: str) -> str:
    block = f"import runpy, sys; sys.modules[{without!r}] = sys.modules['transformers'] = None"
    code = f"{block}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(found.folder / "use.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def test_a_classifier_of_text_stands_alone(tokenizer: Any, tmp_path: Path) -> None:
    content, pad = tokenizer_json(tokenizer, LENGTH)
    assert pad == PAD
    found = bundle(tmp_path, TextPreprocessing("classification", LENGTH, PAD, content))
    assert is_complete(found.folder) and sorted(found.files) == sorted(found.folder.iterdir())
    assert said(found, "the film good good bad", without="torch") == "good"
    assert said(found, "the film bad bad bad bad good good good good", without="torch") == "bad"  # cut at 6
    told = json.loads((found.folder / "preprocessing.json").read_text())
    assert told["length"] == LENGTH and "height" not in told
    (found.folder / "tokenizer.json").unlink()
    assert not is_complete(found.folder)


@pytest.mark.slow
def test_torch_alone_classifies_text(tokenizer: Any, tmp_path: Path) -> None:
    found = bundle(tmp_path, TextPreprocessing("classification", LENGTH, PAD, tokenizer_json(tokenizer, LENGTH)[0]))
    assert said(found, "--torch", "the film good good bad", without="onnxruntime") == "good"


def test_a_language_model_says_what_follows(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    told = TextPreprocessing("language", LENGTH, PAD, tokenizer_json(tokenizer, None)[0])
    written = said(bundle(tmp_path / "text", told), "good", without="torch").split()
    assert written[:3] == ["good", "film", "the"] and len(written) >= 20
    ids = said(bundle(tmp_path / "ids", TextPreprocessing("language", LENGTH, PAD)), "2", without="torch").split()
    assert ids[:5] == ["2", "3", "4", "0", "1"] and len(ids) == 21
