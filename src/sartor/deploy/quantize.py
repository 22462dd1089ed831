# SPDX-License-Identifier: Apache-2.0
"""Quantisation after training: `model.int8.onnx` from training samples, and weights alone in int8 without any."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sartor.atomic import write_bytes
from sartor.deploy.parity import ExportError, single_line
from sartor.deploy.scratch import scratch_beside
from sartor.nn.elastic import Elastic
from sartor.nn.quantize import Int8

__all__ = ["quantize_onnx", "size_in_bytes", "weights_int8"]

_WARNING, _FATAL = 2, 4  # severities of ONNX Runtime's logger, whose default is the first


class _Samples:
    """What ONNX Runtime's calibration reads: one dictionary of inputs after the other, then None."""

    def __init__(self, name: str, batches: Sequence[NDArray[np.float32]]) -> None:
        self._inputs = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._inputs, None)


def quantize_onnx(source: Path, calibration: Sequence[Tensor], path: Path) -> None:
    """Write the float32 model `source` in int8 to `path`, calibrated on batches (N, C, H, W) for training.

    A model of token ids is quantised dynamically, and calibrates nothing: the weights of its products are int8 per
    channel, and each activation is scaled by its own range as it comes. Few entries of a transformer's activations
    are far larger than the rest (Dettmers et al., NeurIPS 2022, arXiv:2208.07339), and other ones for each input.

    QDQ format, unsigned activations by their range, signed weights per channel, 7 of whose 8 bits are used:
    processors without VNNI add pairs of products in 16 bits, and full weights overflow them silently (12 %
    error against 1 % on a plain network here), while a file must compute the same wherever it is copied.
    ONNX Runtime's graph optimiser is not run beforehand: it takes hard-swish apart, whose parts would be
    quantised one by one. Batch norm is folded by then, except by the exporter for rare operations.
    Raises ValueError without calibration samples, ExportError if the model cannot be quantised.
    """
    try:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is missing ({error}): pip install 'sartor[onnx]'") from None
    with scratch_beside(path) as folder, _silent():
        inferred, quantised = folder / "inferred.onnx", folder / "int8.onnx"
        try:
            graph = onnx.load(source).graph
            given = graph.input[0]
            # Equal tensors, as the biases of fresh layers, are exported once and copied, and such a layer stays float.
            unfolded = any(node.op_type in ("BatchNormalization", "Identity") for node in graph.node)
            of_ids = given.type.tensor_type.elem_type == onnx.TensorProto.INT64
            samples = [] if of_ids else _calibration(calibration)
            if of_ids:
                _dynamic(onnx.load(source), quantised)
            else:
                quant_pre_process(source, inferred, skip_symbolic_shape=True, skip_optimization=not unfolded)
                _static(inferred, quantised, _Samples(given.name, samples))
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise ExportError(f"{source} cannot be quantised: {single_line(error)}") from error
        write_bytes(path, quantised.read_bytes())


def _calibration(batches: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    found = [np.ascontiguousarray(batch.detach().float().numpy()) for batch in batches if len(batch)]
    if not found:
        raise ValueError("int8 needs calibration samples, and there are none: give batches of training data")
    return found


def _static(source: Path, path: Path, samples: _Samples) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source, path, samples, quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def _dynamic(model: Any, path: Path) -> None:
    """Products of two activations, as in attention, stay in float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del model.graph.value_info[:]  # with shapes of weights, which the quantiser transposes and then finds wrong
    quantize_dynamic(
        model, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def weights_int8(network: nn.Module) -> nn.Module:
    """Store the weights of all linear layers in int8, in place, with a scale for each output; return the network.

    Weights only: they are multiplied out when they are read, so that activations, biases, norms and embeddings stay
    floats, and the file and the memory shrink, not the time. An embedding that is tied to a linear layer stays tied,
    and so is in int8 as well. Nothing is trained afterwards: the stored weights have no gradient.

    Raises ValueError for a network without linear layers, for a supernet, whose slices follow choices, and for weights
    that are parametrized already.
    """
    if any(isinstance(module, Elastic) for module in network.modules()):
        raise ValueError(f"{type(network).__name__} is a supernet: extract a network, and quantise that")
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(network).__name__} has no linear layer: there are no weights to store in int8")
    if any(map(parametrize.is_parametrized, linear)):
        raise ValueError(f"{type(network).__name__} has parametrized weights already: quantise plain ones")
    weights = {id(layer.weight) for layer in linear}
    tied = [layer for layer in network.modules() if isinstance(layer, nn.Embedding) and id(layer.weight) in weights]
    stored: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for layer in (*linear, *tied):
        key = id(layer.weight)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", Int8())
        both: Any = layer.parametrizations["weight"]  # type: ignore[index]
        values, scale = stored.setdefault(key, (both.original0, both.original1))
        both.original0, both.original1 = values, scale
    return network


def size_in_bytes(network: nn.Module) -> int:
    """The bytes of all parameters and buffers that a state dict keeps; what is tied counts once."""
    tensors = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


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
