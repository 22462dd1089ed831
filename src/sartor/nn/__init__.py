"""Elastic layers and containers, named as in `torch.nn`: where an int stood, a size may stand."""

from sartor.nn.attention import MultiheadAttention
from sartor.nn.containers import OneOf, Repeat
from sartor.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from sartor.nn.elastic import Elastic
from sartor.nn.layout import channels_last
from sartor.nn.linear import Embedding, Linear
from sartor.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm, RMSNorm
from sartor.nn.resolution import at_resolution, resized
from sartor.nn.squeeze_excite import SqueezeExcite, round_channels

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Elastic",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MultiheadAttention",
    "OneOf",
    "RMSNorm",
    "Repeat",
    "SqueezeExcite",
    "at_resolution",
    "channels_last",
    "resized",
    "round_channels",
]
