# SPDX-License-Identifier: Apache-2.0
"""`use.py`: the script beside a network that uses it, with no more than a runtime and what reads the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["INT8", "script"]

INT8 = "model.int8.onnx"

_HEAD = '''"""{purpose} with ONNX Runtime, or PyTorch alone: python use.py [--torch] {argument}"""

import json, sys
from pathlib import Path
import numpy as np
{imports}
if sys.argv[-1].startswith("--") or len(sys.argv) < 2:
    sys.exit(__doc__)
'''
_FILE = """if not Path(sys.argv[-1]).is_file():
    sys.exit(sys.argv[-1] + ": no such file")
"""
_PLACE = """here = Path(__file__).resolve().parent
p = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
"""
_PIXELS = """scale, mean, std = (np.float32(p[name]).reshape(-1, 1, 1) for name in ("scale", "mean", "std"))
x = ((pixels / scale - mean) / std)[None]
"""
_ONE_RUN = """if "--torch" in sys.argv:
    import torch
    scores = torch.export.load(here / "model.pt2").module()(torch.from_numpy(x)).detach().numpy()
else:
    import onnxruntime
    scores = onnxruntime.InferenceSession({model}).run(None, {{"input": x}})[0]
print(p["classes"][scores[0].argmax()])
"""
_SEQUENCE = """x = np.full((1, p["length"]), p["pad"], np.int64)
ids = ids[: p["length"]]
x[0, : len(ids)] = ids
"""
_GREEDY = """if "--torch" in sys.argv:
    import torch
    module = torch.export.load(here / "model.pt2").module()
    run = lambda x: module(torch.from_numpy(x)).detach().numpy()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession({model})
    run = lambda x: session.run(None, {{"input": x}})[0]
for _ in range(20 if ids else 0):
    seen = ids[-p["length"] :]
    x = np.full((1, p["length"]), p["pad"], np.int64)
    x[0, : len(seen)] = seen
    ids.append(int(run(x)[0, len(seen) - 1].argmax()))
print({shown})
"""
_IMAGE = """image = Image.open(sys.argv[-1]).convert(p["mode"])
image = image.resize((p["width"], p["height"]), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape(p["height"], p["width"], -1).transpose(2, 0, 1)
"""
_ARRAY = "pixels = np.load(sys.argv[-1]).astype(np.float32)\n"
_TOKENIZER = 'tokenizer = Tokenizer.from_file(str(here / p["tokenizer"]))\n'
_ENCODE = "ids = tokenizer.encode(sys.argv[-1]{special}).ids\n"
_IDS = "ids = [int(word) for word in sys.argv[-1].split()]\n"


def script(preprocessing: Mapping[str, Any], int8: bool) -> str:
    """Return the text of `use.py` for what `preprocessing` says that an input is.

    It reads image files, or arrays of what is no image; classifies a sentence with the tokenizers library alone; and
    prints what a language model takes to follow, token by token.
    """
    model = f'next(here.glob("{INT8}"), here / "model.onnx")' if int8 else 'here / "model.onnx"'  # what was measured
    mode = preprocessing["mode"]
    if mode in ("text", "tokens"):
        return _of_text(mode, preprocessing["kind"] == "language", model)
    purpose, argument, imports, read = (
        ("Classify an array (channels, height, width)", "ARRAY.npy", "", _ARRAY)
        if mode == "tensor"
        else ("Classify an image", "IMAGE", "from PIL import Image\n", _IMAGE)
    )
    head = _HEAD.format(purpose=purpose, argument=argument, imports=imports)
    return head + _FILE + _PLACE + read + _PIXELS + _ONE_RUN.format(model=model)


def _of_text(mode: str, language: bool, model: str) -> str:
    text = mode == "text"
    purpose = f"{'Continue' if language else 'Classify'} {'a text' if text else 'token ids'}"
    head = _HEAD.format(
        purpose=purpose,
        argument="TEXT" if text else "'5 17 8'",
        imports="from tokenizers import Tokenizer\n" if text else "",
    )
    special = ", add_special_tokens=False" if language else ""
    read = _TOKENIZER + _ENCODE.format(special=special) if text else _IDS
    if not language:
        return head + _PLACE + read + _SEQUENCE + _ONE_RUN.format(model=model)
    shown = "tokenizer.decode(ids)" if text else '" ".join(map(str, ids))'
    return head + _PLACE + read + _GREEDY.format(model=model, shown=shown)
