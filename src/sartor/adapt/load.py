# SPDX-License-Identifier: Apache-2.0
"""Load the network in this folder with torch, transformers and safetensors: `from load import load; net = load()`."""

import json
from pathlib import Path
from typing import Any


def load(folder: str | Path = Path(__file__).parent) -> Any:
    """The network, in evaluation mode: one of transformers' classes with layers of the sizes in sizes.json."""
    import torch
    import transformers
    from safetensors.torch import load_file

    folder = Path(folder)
    sizes = json.loads((folder / "sizes.json").read_bytes())
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):  # the whole network, without memory for it
        network: Any = getattr(transformers, config.architectures[0])(config)
    for path, kept in sizes["blocks"].items():
        parent, _, name = path.rpartition(".")
        blocks = network.get_submodule(path)
        setattr(network.get_submodule(parent), name, torch.nn.ModuleList(blocks[i] for i in kept))
    for path, values in sizes["values"].items():
        for name, value in values.items():
            setattr(network.get_submodule(path), name, tuple(value) if isinstance(value, list) else value)
    tensors = {name: one.clone() for name, one in load_file(folder / "model.safetensors").items()}  # aligned in memory
    for name in [*tensors, *sizes["tied"]]:
        parent, _, last = name.rpartition(".")
        module = network.get_submodule(parent)
        if last in module._buffers:
            module._buffers[last] = tensors[name]
        elif name in tensors:
            module._parameters[last] = torch.nn.Parameter(tensors[name])
        else:
            module._parameters[last] = network.get_parameter(sizes["tied"][name])
    if (folder / "generation_config.json").is_file():
        network.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return network.eval()
