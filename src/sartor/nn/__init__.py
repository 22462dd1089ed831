"""Elastic layers and containers, named as in `torch.nn`: where an int stood, a size may stand."""

from sartor.nn.attention import MultiheadAttention
from sartor.nn.bypass import Bypass, Filters, Widest
from sartor.nn.containers import OneOf, Repeat, Stages
from sartor.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from sartor.nn.elastic import Elastic
from sartor.nn.inputs import Inputs, InputSum, graph, read_together
from sartor.nn.layout import channels_last
from sartor.nn.linear import Embedding, Linear
from sartor.nn.mixing import mixtures
from sartor.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm
from sartor.nn.parametrized import baked, originals, parametrizations
from sartor.nn.quantize import FakeQuantize, Quantize, quantized
from sartor.nn.resolution import at_resolution, resized
from sartor.nn.routed import Encoding, Routed, Router, route
from sartor.nn.sparsify import Sparsify, TopK, sparsified
from sartor.nn.squeeze_excite import SqueezeExcite, round_channels
from sartor.nn.superposed import SuperposedConv2d
from sartor.nn.switchable import SwitchableBatchNorm, with_private_norms
from sartor.nn.transformed import TransformedConv2d
from sartor.nn.zero import Zero

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Bypass",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Elastic",
    "Embedding",
    "Encoding",
    "FakeQuantize",
    "Filters",
    "GroupNorm",
    "InputSum",
    "Inputs",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "OneOf",
    "Quantize",
    "RMSNorm",
    "Repeat",
    "Routed",
    "Router",
    "Sparsify",
    "SqueezeExcite",
    "Stages",
    "SuperposedConv2d",
    "SwitchableBatchNorm",
    "TopK",
    "TransformedConv2d",
    "Widest",
    "Zero",
    "at_resolution",
    "baked",
    "channels_last",
    "graph",
    "mixtures",
    "originals",
    "parametrizations",
    "quantized",
    "read_together",
    "resized",
    "round_channels",
    "route",
    "sparsified",
    "with_private_norms",
]
