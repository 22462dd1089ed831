# SPDX-License-Identifier: Apache-2.0
"""Pretrained networks from a folder or the Hugging Face hub, without running anybody's code.

Weights come from safetensors files alone, configurations and tokenizers from JSON and text. A hub id is brought into
the local cache first and from then on is a folder like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from sartor.adapt.load import load
from sartor.adapt.networks import ImageClassifier, LanguageModel, TextClassifier
from sartor.deploy.parity import single_line

__all__ = ["Kind", "configuration", "positions", "pretrained", "tokenizer_of"]

Kind = Literal["classification", "language", "image"]
"""What a network does: classifies text, predicts the next token, classifies images."""

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_SECONDS = 5.0  # to hear from the hub; without a network the answer comes at once
_TEXTS = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin")
_TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_HEADS: dict[Kind, tuple[str, str]] = {
    "classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    "language": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "image": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
}


def pretrained(
    model: str | Path, *, kind: Kind, classes: int | None = None, seed: int = 0, replace_head: bool = False
) -> TextClassifier | LanguageModel | ImageClassifier:
    """Load a pretrained network, in float32 and in evaluation mode, as one tensor in and one out.

    Args:
        model: a folder with `config.json` and safetensors weights, or the id of one on the Hugging Face hub.
        kind: what the network shall do.
        classes: of a classifier; None for the number that its own head has.
        seed: of the weights of a new head. torch's generator is left as it is.
        replace_head: put a new head in place of one for another number of classes.

    Where torch's default device is meta, the network is made there, without its weights, which are not brought either.
    Raises ValueError, in one line, for: a folder or id without what is needed, an id that cannot be reached, code of
    the model's own, weights that are pickles or do not fit, a family without such a head, and classes that do not fit.
    """
    if kind not in _HEADS:
        raise ValueError(f"no networks of kind {kind!r}; known are {', '.join(_HEADS)}")
    _transformers()
    bare = torch.get_default_device().type == "meta"
    folder = _folder(model)
    _safe_json(folder, "config.json")
    with silent():
        config = _config(folder, kind, classes)
        is_cut = (folder / "sizes.json").is_file()
        if is_cut:
            _check_head(folder, config, kind, classes)
        is_local = Path(model).is_dir()
        if not is_local and (is_cut or not bare):
            _download(str(model), _WEIGHTS)
        if is_local or is_cut or not bare:
            _require_weights(folder)
        try:
            network, info = (_cut(folder), {}) if is_cut else _whole(folder, config, kind, seed)
        except Exception as error:
            raise ValueError(f"{folder}: transformers cannot load it: {single_line(error)}") from error
    _check_weights(folder, network, info, kind, classes, replace_head)
    if kind == "image":
        return ImageClassifier(network).eval()
    return (LanguageModel(network) if kind == "language" else TextClassifier(network, config.pad_token_id)).eval()


def _whole(folder: Path, config: Any, kind: Kind, seed: int) -> tuple[Any, dict[str, Any]]:
    """The network of a configuration, and what transformers says of its weights."""
    import transformers

    auto = getattr(transformers, _HEADS[kind][0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.get_default_device().type == "meta":
            return auto.from_config(config), {}
        network, info = auto.from_pretrained(
            str(folder), config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
        return network, info


def _cut(folder: Path) -> Any:
    """A network that `adapt.saving.save` wrote with its sizes; the script beside it is not run, but the one here."""
    network = load(folder).float()
    return network.to("meta") if torch.get_default_device().type == "meta" else network


def _check_head(folder: Path, config: Any, kind: Kind, classes: int | None) -> None:
    """ValueError for a network that was cut with another head than is wanted."""
    from transformers.models.auto import modeling_auto

    heads = getattr(modeling_auto, _HEADS[kind][1])[config.model_type]
    own = (config.architectures or ["network without a name"])[0]
    if own not in ((heads,) if isinstance(heads, str) else heads):
        raise ValueError(f"{folder} holds a {own} that was cut, which has no head for {kind!r}")
    found = len(json.loads((folder / "config.json").read_bytes()).get("id2label", "12"))  # two are not told
    if classes is not None and kind != "language" and classes != found:
        raise ValueError(f"{folder} was cut with a head of {found} classes, not of {classes}: it keeps that head")


def configuration(model: str | Path) -> Any:
    """Read the configuration of a model, of which no weights are loaded. Raises ValueError as `pretrained` does."""
    transformers = _transformers()
    folder = _folder(model)
    _safe_json(folder, "config.json")
    with silent():
        try:
            return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ValueError(f"{folder / 'config.json'}: transformers cannot read it: {single_line(error)}") from error


def positions(config: Any) -> int | None:
    """How many tokens the longest sequence of a model has; None where its configuration names no limit."""
    found: Any = getattr(config, "max_position_embeddings", None)
    if found is None:
        return None
    above_pad = config.model_type == "roberta"  # whose places are counted from behind the token that pads
    return int(found) - (int(config.pad_token_id) + 1 if above_pad else 0)


def tokenizer_of(model: str | Path) -> Any:
    """Load the tokenizer that lies beside a model; it pads with the token that `pretrained` takes for padding.

    Raises ValueError, in one line, for a model that has none, that brings code of its own, or that cannot be reached.
    """
    transformers = _transformers()
    folder = _folder(model)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ValueError(f"{model} has no tokenizer: put one of {', '.join(_TOKENIZERS)} beside config.json")
    _safe_json(folder, "config.json")
    if (folder / "tokenizer_config.json").is_file():
        _safe_json(folder, "tokenizer_config.json")
    with silent():
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise ValueError(f"{folder}: its tokenizer cannot be loaded: {single_line(error)}") from error
        pad = _pad_of(config)
        if pad is None and tokenizer.pad_token_id is None:
            raise ValueError(f"{model}: its tokenizer pads with no token: name one by pad_token_id in config.json")
        if pad is not None and tokenizer.pad_token_id != pad:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"transformers is missing ({error}): pip install 'sartor[hf]'") from None
    return transformers


def _folder(model: str | Path) -> Path:
    """The folder of a model, with its configuration and tokenizer in it."""
    folder = Path(model)
    if not folder.is_dir():
        name = str(model)
        if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
            raise ValueError(f"{model} is no folder: give one that holds config.json, or an id such as google/vit-base")
        folder = _download(name, _TEXTS)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model} holds no config.json: give the folder that save_pretrained wrote")
    return folder


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    """Bring the files of a hub id into the cache, or find them there; subfolders hold other formats."""
    import huggingface_hub

    talk: Any = huggingface_hub.utils
    talk.disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*patterns], ignore_patterns=["*/*"], etag_timeout=_SECONDS
            )
        )
    except Exception as error:
        raise ValueError(
            f"{name} is no folder here, and its files cannot be had from the Hugging Face hub:"
            f" {single_line(error).removeprefix('Got: ')}; give the path of a local copy"
        ) from error
    finally:
        talk.enable_progress_bars()


def _safe_json(folder: Path, name: str) -> None:
    """ValueError for a file that is no JSON object, or that names code of the model's own."""
    try:
        content = json.loads((folder / name).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{folder / name} is no JSON object")
    if "auto_map" in content:
        raise ValueError(f"{folder / name} has auto_map: it runs code of its own, which is never run here")


def _config(folder: Path, kind: Kind, classes: int | None) -> Any:
    """The configuration of the network that is wanted. ValueError where the family has none of the kind."""
    import transformers
    from transformers.models.auto import modeling_auto

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{folder / 'config.json'}: transformers cannot read it: {single_line(error)}") from error
    family = config.model_type
    if family not in getattr(modeling_auto, _HEADS[kind][1]):
        raise ValueError(f"{folder} is a {family or 'model without model_type'}, which has no head for {kind!r}")
    both_sides = family in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind == "language" and both_sides and not getattr(config, "is_decoder", False):
        raise ValueError(f"{folder} is a {family} that reads the tokens on both sides: it predicts no next token")
    if kind != "image" and getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{folder} is a {family}, of an encoder and a decoder, which is neither trained nor exported here"
        )
    config.dtype = torch.float32
    if kind == "language":
        if classes is not None:
            raise ValueError(
                f"{folder}: a language model has no classes, its {config.vocab_size} tokens are; drop them"
            )
        return config
    if classes is not None:
        if classes < 2:
            raise ValueError(f"{classes} classes: a classifier has 2 or more")
        if classes != config.num_labels:
            config.num_labels = classes
    if kind == "classification":
        config.pad_token_id = _pad_of(config)
        if config.pad_token_id is None:
            raise ValueError(f"{folder / 'config.json'} has no pad_token_id and no eos_token_id: name the padding")
    return config


def _pad_of(config: Any) -> int | None:
    """The token that pads: the model's own, or the one that ends a text, as is the custom for GPT-2."""
    pad: Any = getattr(config, "pad_token_id", None)
    end: Any = getattr(config, "eos_token_id", None)
    found: Any = pad if pad is not None else end[0] if isinstance(end, list) and end else end
    return None if found is None else int(found)


def _require_weights(folder: Path) -> None:
    if any((folder / name).is_file() for name in _WEIGHTS[:2]):
        return
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as pickles alone ({pickles[0]}), which can run code:"
            " have transformers save it anew as model.safetensors where you trust it"
        )
    raise ValueError(f"{folder} holds no model.safetensors")


def _check_weights(
    folder: Path, network: Any, info: dict[str, Any], kind: Kind, classes: int | None, replace_head: bool
) -> None:
    """ValueError where weights are missing or of other shapes, unless they are those of a new head."""
    base = f"{network.base_model_prefix}."
    wrong = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info.get("mismatched_keys", ())}
    for name, (found, wanted) in sorted(wrong.items()):
        if name.startswith(base) or kind == "language" or found[:1] == wanted[:1]:  # a head of other inputs, too
            raise ValueError(f"{folder}: {name} is {found}, by config.json {wanted}: they are of two models")
        if not replace_head:
            raise ValueError(f"{folder} has a head of {found[0]} classes, not of {wanted[0]}: ask for a new head")
    missing = sorted({*info.get("missing_keys", ())} - {*wrong})
    lost = [name for name in missing if kind == "language" or (name.startswith(base) and "pooler" not in name)]
    if lost:
        raise ValueError(f"{folder}: its weights lack {lost[0]} ({len(lost)} in all): they are of another architecture")
    if missing and classes is None:
        raise ValueError(
            f"{folder} has no head of its own ({missing[0]} is missing): say how many classes it shall have"
        )


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers' remarks from the user for a while: what matters in them is an error here."""
    from transformers.utils import logging

    talk: Any = logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(talk.CRITICAL)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()
