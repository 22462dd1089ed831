# SPDX-License-Identifier: Apache-2.0
"""`model.pt2`: a network as torch alone runs it, without the class that built it (torch.export)."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from sartor.atomic import write_bytes
from sartor.deploy.parity import ExportError, Run, evaluating, pair, single_line
from sartor.deploy.trust import reason_for_distrust

__all__ = ["export_pt2", "load_pt2", "pt2_runner"]


def export_pt2(net: nn.Module, example: Tensor, path: Path) -> None:
    """Write `net` to `path` as a torch.export program for inputs like `example` (N, ...) with any N.

    The traces of Python files that torch keeps for debugging are left out: they would publish where the
    user's files lie, and make equal networks unequal files. ExportError if torch cannot export the network.
    """
    batch = torch.export.Dim("batch", min=1)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), evaluating(net):
        warnings.simplefilter("ignore")  # of torch about its own internals; parity is checked on the result
        try:
            program = torch.export.export(net, (pair(example),), dynamic_shapes=({0: batch},))
            for module in program.graph_module.modules():
                for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)
            torch.export.save(program, buffer)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"torch.export refuses the network: {single_line(error)}") from error
    write_bytes(path, buffer.getvalue())


def load_pt2(path: Path, *, device: str = "cpu") -> nn.Module:
    """Return the program at `path` as a module on `device`, with the tensors that it makes on the way.

    ExportError if it is no such program, or would run code of whoever wrote it.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        distrust = reason_for_distrust(path)
    except Exception as error:
        raise ExportError(f"{path} is not a torch.export program: {single_line(error)}") from error
    if distrust:
        raise ExportError(f"{path} is not loaded, as it could run code: {distrust}; export the network again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(path)
            return (program if device == "cpu" else move_to_device_pass(program, device)).module()
        except Exception as error:
            raise ExportError(f"{path} is not a torch.export program: {single_line(error)}") from error


def pt2_runner(path: Path) -> Run:
    """Return the program at `path` as a function of float32 arrays, or of int64 token ids."""
    module = load_pt2(path)

    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(inputs)).float().numpy())

    return run
