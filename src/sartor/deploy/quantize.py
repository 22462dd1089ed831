# SPDX-License-Identifier: Apache-2.0
"""`model.int8.onnx`: static int8 quantisation of an exported model, from training samples."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sartor.atomic import write_bytes
from sartor.deploy.parity import ExportError, single_line
from sartor.deploy.scratch import scratch_beside

__all__ = ["quantize_onnx"]

_WARNING, _FATAL = 2, 4  # severities of ONNX Runtime's logger, whose default is the first


class _Samples:
    """What ONNX Runtime's calibration reads: one dictionary of inputs after the other, then None."""

    def __init__(self, name: str, batches: Sequence[NDArray[np.float32]]) -> None:
        self._inputs = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._inputs, None)


def quantize_onnx(source: Path, calibration: Sequence[Tensor], path: Path) -> None:
    """Write the float32 model `source` in int8 to `path`, calibrated on batches (N, C, H, W) for training.

    QDQ format, unsigned activations by their range, signed weights per channel, 7 of whose 8 bits are used:
    processors without VNNI add pairs of products in 16 bits, and full weights overflow them silently (12 %
    error against 1 % on a plain network here), while a file must compute the same wherever it is copied.
    ONNX Runtime's graph optimiser is not run beforehand: it takes hard-swish apart, whose parts would be
    quantised one by one. Batch norm is folded by then, except by the exporter for rare operations.
    Raises ValueError without calibration samples, ExportError if the model cannot be quantised.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is missing ({error}): pip install 'sartor[onnx]'") from None
    batches = [np.ascontiguousarray(batch.detach().float().numpy()) for batch in calibration if len(batch)]
    if not batches:
        raise ValueError("int8 needs calibration samples, and there are none: give batches of training data")
    with scratch_beside(path) as folder, _silent():
        inferred, quantised = folder / "inferred.onnx", folder / "int8.onnx"
        try:
            graph = onnx.load(source).graph
            unfolded = any(node.op_type == "BatchNormalization" for node in graph.node)
            quant_pre_process(source, inferred, skip_symbolic_shape=True, skip_optimization=not unfolded)
            quantize_static(
                inferred, quantised, _Samples(graph.input[0].name, batches), quant_format=QuantFormat.QDQ,
                per_channel=True, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"{source} cannot be quantised: {single_line(error)}") from error
        write_bytes(path, quantised.read_bytes())


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the quantiser's advice, to the root logger and from its own sessions, away from the user's terminal."""
    import onnxruntime

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(_FATAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
            onnxruntime.set_default_logger_severity(_WARNING)
