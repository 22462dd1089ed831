# SPDX-License-Identifier: Apache-2.0
"""A pretrained network from the command to a verified front: text, language and images; resumed, and mistakes."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sartor.cli import main
from sartor.recipes import _profile_bench, decoding, profiling

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")
pytest.importorskip("onnxruntime")

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "SAMPLES", 5)
    monkeypatch.setattr(_profile_bench, "SECONDS", 0.01)
    monkeypatch.setattr(decoding, "SECONDS", 0.01)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: a BERT without a head for these classes, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(WORDS) + 4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=32, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sentences(path: Path, count: int = 160) -> Path:
    """Sentences whose first word tells their class."""
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(count):
            kind = i % 2
            first = rng.choice(WORDS[:5] if kind else WORDS[5:10])
            writer.writerow([" ".join([first, *rng.choices(WORDS[10:], k=rng.randint(1, 8))]), ["bad", "good"][kind]])
    return path


def searched(data: Path, model: Path, out: Path, *more: str) -> dict[str, Any]:
    argv = [
        "search",
        str(data),
        "--model",
        str(model),
        "--length",
        "12",
        "--steps",
        "3",
        "--trials",
        "4",
        "--out",
        str(out),
    ]
    assert main([*argv, *more]) == 0
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def exported(out: Path) -> list[Path]:
    return sorted((out / "pareto").iterdir())


def test_text_is_classified_within_a_limit(bert: Path, tmp_path: Path) -> None:
    data, out = sentences(tmp_path / "reviews.csv"), tmp_path / "run"
    record = searched(
        data, bert, out, "--latency", "1s", "--no-baselines", "--elastic", "heads=1,2", "--elastic", "mlp=0.5"
    )
    assert record["arguments"]["method"] == "instatune"
    assert record["space"]["choices"]["model.bert.encoder.layer.0.heads"] == [1, 2]
    best = out / "best"
    measured = json.loads((best / "measurement.json").read_text())["targets"]["onnxruntime"]
    assert measured["within_limit"] and 0.0 <= measured["accuracy"]["validation"] <= 1.0
    said = subprocess.run(
        [sys.executable, best / "use.py", "w1 w12 w13"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert said.stdout.strip() in ("bad", "good")
    assert "reviews" in (out / "report.html").read_text()
    assert main(["resume", str(out)]) == 0, "what is finished stays as it is"


def test_shared_weights_may_be_distilled_without_labels(bert: Path, tmp_path: Path) -> None:
    data, out = sentences(tmp_path / "reviews.csv"), tmp_path / "run"
    elastic = ("--elastic", "hidden=8", "--elastic", "depth=1")
    record = searched(data, bert, out, "--method", "autodistil", "--latency", "1s", "--no-baselines", *elastic)
    assert record["arguments"]["method"] == "autodistil" and record["space"]["choices"]["hidden"] == [8, 16]
    assert exported(out)


def test_a_language_model_is_searched_by_its_likelihood(llama: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, 30, 4000)
    np.savez(tmp_path / "tokens.npz", tokens=ids)
    record = searched(tmp_path / "tokens.npz", llama, tmp_path / "run", "--no-baselines", "--batch", "2")
    assert record["arguments"]["method"] == "llama_nas"
    member = exported(tmp_path / "run")[0]
    measured = json.loads((member / "measurement.json").read_text())["targets"]["onnxruntime"]
    assert 1 / 60 < measured["accuracy"]["validation"] < 1 / 15, "thirty tokens by chance"
    assert measured["measurement"]["fingerprint"]["batch"] == "2"


def test_a_language_model_with_tied_weights_is_stored_and_its_writing_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    np.savez(tmp_path / "tokens.npz", tokens=np.random.default_rng(0).integers(0, 30, 4000))
    out = tmp_path / "run"
    searched(tmp_path / "tokens.npz", tmp_path / "gpt2", out, "--no-baselines")
    written = json.loads((exported(out)[0] / "measurement.json").read_text())["decoding"]
    assert written["prompt"] == written["tokens"] == 6 and written["per_s"] > 0
    assert "tokens/s with a cache" in capsys.readouterr().out and "tokens/s" in (out / "report.html").read_text()
    assert main(["measure", str(out), "--target", "torch"]) == 0, "of another target than it was searched for"


def test_a_vision_transformer_is_searched_on_images(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=2, num_channels=1, num_labels=10,
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    argv = ["search", "digits", "--model", str(tmp_path / "vit"), "--steps", "3", "--trials", "4", "--no-baselines"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert exported(tmp_path / "run")
    assert main([*argv, "--length", "8", "--out", str(tmp_path / "other")]) == 2


def test_training_and_specialising_are_two_commands(bert: Path, tmp_path: Path) -> None:
    data, net = sentences(tmp_path / "reviews.csv"), tmp_path / "net"
    assert main(["train", f"hf:{bert}", str(data), "--length", "12", "--steps", "3", "--out", str(net)]) == 0
    argv = ["specialise", str(net), "--target", "onnxruntime", "--latency", "1s", "--trials", "4", "--out"]
    assert main([*argv, str(tmp_path / "special")]) == 0
    verdicts = json.loads((tmp_path / "special" / "specialised.json").read_text())["verdicts"]
    assert [one["met"] for one in verdicts] == [True]


def test_the_full_network_starts_as_the_pretrained_one(bert: Path) -> None:
    """Sorting by importance and adopting change nothing of what the whole network computes."""
    from sartor.adapt.loading import pretrained
    from sartor.recipes.pretrained import network

    made = network(f"hf:{bert}", kind="classification", classes=2, options="{}", shared=(), seed=0)
    plain = pretrained(bert, kind="classification", classes=2, seed=0)
    ids = torch.randint(4, 40, (3, 9))
    with torch.no_grad():
        assert torch.allclose(made(ids), plain(ids), atol=1e-5)


MISTAKES = {
    "no folder": (("--model", "{tmp}/none"), "none"),
    "no tokenizer": (("--model", "{llama}"), "has no tokenizer"),
    "code of its own": (("--model", "{remote}"), "runs code of its own"),
    "a head count that does not divide": (("--model", "{llama}", "--elastic", "heads=3"), "tokens.npz"),
    "more heads than there are": (("--model", "{bert}", "--elastic", "heads=3"), "the network has 2"),
    "a role that there is not": (("--model", "{bert}", "--elastic", "experts=2"), "what can be searched"),
    "a role that cannot be the same": (
        ("--model", "{bert}", "--uniform", "experts"),
        "cannot be the same in all blocks",
    ),
    "a role twice": (("--model", "{bert}", "--elastic", "heads=1", "--elastic", "heads=2"), "says twice what heads"),
    "nothing to choose": (("--model", "{bert}", "--elastic", "heads=2"), "has one network alone"),
    "a length that the model has not": (("--model", "{bert}", "--length", "33"), "a length of 32 at most"),
    "a method for other spaces": (("--model", "{bert}", "--method", "fbnet"), "name a method of shared weights"),
    "an image size of text": (("--model", "{bert}", "--image-size", "8"), "an image size is of images"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line(
    kind: str,
    bert: Path,
    llama: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options, told = MISTAKES[kind]
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "code.Net"}}))
    names = {"{tmp}": str(tmp_path), "{bert}": str(bert), "{llama}": str(llama), "{remote}": str(remote)}
    data = sentences(tmp_path / "reviews.csv")
    if told == "tokens.npz":
        np.savez(tmp_path / "tokens.npz", tokens=np.arange(600) % 30)
        data, told = tmp_path / "tokens.npz", "2 come and go together"
    filled = [option if option.startswith("-") else _filled(option, names) for option in options]
    argv = ["search", str(data), *filled, "--steps", "2", "--trials", "2", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("sartor: ") and len(error.splitlines()) == 1, error
    assert told in error
    assert not (tmp_path / "out").exists()


def _filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text
