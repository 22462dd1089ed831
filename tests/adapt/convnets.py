# SPDX-License-Identifier: Apache-2.0
"""Small networks with the module trees of public libraries: names, order and kinds of modules as there, sizes our own.

`tv_` as torchvision names modules, `timm_` as timm does. Only what a state dict and a forward pass show is restated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)


def conv1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv3(inputs, width, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2 = conv3(width, width), nn.BatchNorm2d(width)
        change = stride != 1 or inputs != width
        self.downsample = nn.Sequential(conv1(inputs, width, stride), nn.BatchNorm2d(width)) if change else None

    def forward(self, x: Tensor) -> Tensor:
        side = x if self.downsample is None else self.downsample(x)
        return F.relu(side + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv1(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3, self.relu = conv1(width, outputs), nn.BatchNorm2d(outputs), nn.ReLU()
        change = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs)) if change else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        side = x if self.downsample is None else self.downsample(x)
        return F.relu(side + self.bn3(self.conv3(out)))


class TvResNet(nn.Module):
    def __init__(self, block: type[Basic] | type[Bottleneck], groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 8
        for number, (width, stride) in enumerate(((8, 1), (12, 2)), 1):
            blocks = [block(inputs, width, stride, groups)]
            inputs = width * block.expansion
            blocks += [block(inputs, width, groups=groups) for _ in range(2)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in (1, 2):
            x = self.get_submodule(f"layer{number}")(x)
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


class ConvNormActivation(nn.Sequential):
    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if act else []))


class TvInvertedV2(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, ratio: int) -> None:
        super().__init__()
        inner = inputs * ratio
        layers: list[nn.Module] = [] if ratio == 1 else [ConvNormActivation(inputs, inner, 1)]
        layers += [ConvNormActivation(inner, inner, 3, stride, inner), conv1(inner, outputs), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.use_res_connect else out


class TvMobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [
            TvInvertedV2(8, 6, 1, 1),
            TvInvertedV2(6, 8, 2, 6),
            TvInvertedV2(8, 8, 1, 6),
            TvInvertedV2(8, 8, 1, 6),
        ]
        blocks += [TvInvertedV2(8, 12, 2, 6), TvInvertedV2(12, 12, 1, 6)]
        self.features = nn.Sequential(ConvNormActivation(3, 8, 3, 2), *blocks, ConvNormActivation(12, 20, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return out


class TvSqueezeExcitation(nn.Module):
    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, squeeze, 1), nn.Conv2d(squeeze, width, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return out * x


class TvInvertedV3(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if inner == inputs else [ConvNormActivation(inputs, inner, 1)]
        layers.append(ConvNormActivation(inner, inner, 5, stride, inner))
        layers += [TvSqueezeExcitation(inner, inner // 4)] if squeeze else []
        layers.append(ConvNormActivation(inner, outputs, 1, act=False))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.use_res_connect else out


class TvMobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [
            TvInvertedV3(8, 8, 8, 1, True), TvInvertedV3(8, 24, 12, 2, False), TvInvertedV3(12, 40, 12, 1, True),
            TvInvertedV3(12, 32, 12, 1, True),
        ]  # fmt: skip
        self.features = nn.Sequential(ConvNormActivation(3, 8, 3, 2), *blocks, ConvNormActivation(12, 24, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(24, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return out


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return out.permute(0, 3, 1, 2)


class Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = list(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class TvConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width), Permute(0, 2, 3, 1), nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), Permute(0, 3, 1, 2),
        )  # fmt: skip
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer_scale * self.block(x)
        return out + x


class TvConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6))
        between = nn.Sequential(LayerNorm2d(8, eps=1e-6), nn.Conv2d(8, 12, 2, 2))
        stages = [nn.Sequential(*(TvConvNeXtBlock(width) for _ in range(3))) for width in (8, 12)]
        self.features = nn.Sequential(stem, stages[0], between, stages[1])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(12, eps=1e-6), nn.Flatten(1), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.avgpool(self.features(x)))
        return out


class TimmResNet(nn.Module):
    """With the shortcut of the variants that pool before they project."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks = [Bottleneck(8, 8), Bottleneck(32, 8), Bottleneck(32, 8)]
        pooled = nn.Sequential(nn.Identity(), conv1(8, 32), nn.BatchNorm2d(32))
        blocks[0].downsample = pooled
        self.layer1, self.global_pool, self.fc = nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.maxpool(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.fc(self.global_pool(x).flatten(1))
        return out


class BatchNormAct2d(nn.BatchNorm2d):
    """A batch norm with its activation inside."""

    def __init__(self, width: int, act: bool = True) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        out: Tensor = self.act(self.drop(x))
        return out


class TimmSqueezeExcite(nn.Module):
    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = nn.Conv2d(width, squeeze, 1), nn.ReLU()
        self.conv_expand, self.gate = nn.Conv2d(squeeze, width, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))
        return x * out


class TimmSeparable(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = conv3(inputs, inputs, groups=inputs), BatchNormAct2d(inputs)
        self.se = TimmSqueezeExcite(inputs, 2)
        self.conv_pw, self.bn2 = conv1(inputs, outputs), BatchNormAct2d(outputs, act=False)
        self.drop_path, self.has_skip = nn.Identity(), inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop_path(self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x))))))
        return out + x if self.has_skip else out


class TimmInverted(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_pw, self.bn1 = conv1(inputs, inner), BatchNormAct2d(inner)
        self.conv_dw, self.bn2 = conv3(inner, inner, stride, inner), BatchNormAct2d(inner)
        self.se = TimmSqueezeExcite(inner, 4)
        self.conv_pwl, self.bn3 = conv1(inner, outputs), BatchNormAct2d(outputs, act=False)
        self.drop_path, self.has_skip = nn.Identity(), inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop_path(
            self.bn3(self.conv_pwl(self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))))
        )
        return out + x if self.has_skip else out


class TimmMobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = conv3(3, 8, 2), BatchNormAct2d(8)
        second = [TimmInverted(8, 24, 12, 2), TimmInverted(12, 40, 12), TimmInverted(12, 40, 12)]
        self.blocks = nn.Sequential(nn.Sequential(TimmSeparable(8, 8)), nn.Sequential(*second))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_head, self.act2, self.flatten = nn.Conv2d(12, 20, 1), nn.ReLU(), nn.Flatten(1)
        self.classifier = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.global_pool(self.blocks(self.bn1(self.conv_stem(x))))
        out: Tensor = self.classifier(self.flatten(self.act2(self.conv_head(x))))
        return out


class TimmMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(4 * width, width), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))
        return out


class TimmConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dw, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.mlp, self.gamma = TimmMlp(width), nn.Parameter(torch.ones(width) * 0.5)
        self.shortcut, self.drop_path = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        out: Tensor = self.drop_path(inner * self.gamma.reshape(1, -1, 1, 1)) + self.shortcut(x)
        return out


class TimmConvNeXtStage(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        change = nn.Sequential(LayerNorm2d(inputs, eps=1e-6), nn.Conv2d(inputs, outputs, 2, 2))
        self.downsample = nn.Identity() if inputs == outputs else change
        self.blocks = nn.Sequential(*(TimmConvNeXtBlock(outputs) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


class TimmHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.global_pool, self.norm = nn.AdaptiveAvgPool2d(1), LayerNorm2d(width, eps=1e-6)
        self.flatten, self.drop, self.fc = nn.Flatten(1), nn.Dropout(0.0), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(self.flatten(self.norm(self.global_pool(x)))))
        return out


class TimmConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8, eps=1e-6))
        self.stages = nn.Sequential(TimmConvNeXtStage(8, 8), TimmConvNeXtStage(8, 12))
        self.norm_pre, self.head = nn.Identity(), TimmHead(12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm_pre(self.stages(self.stem(x))))
        return out


ALL: dict[str, Callable[[], nn.Module]] = {
    "tv-resnet-basic": lambda: TvResNet(Basic), "tv-resnet-bottleneck": lambda: TvResNet(Bottleneck),
    "tv-mobilenet-v2": TvMobileNetV2, "tv-mobilenet-v3": TvMobileNetV3, "tv-convnext": TvConvNeXt,
    "timm-resnet": TimmResNet, "timm-mobilenet-v3": TimmMobileNetV3, "timm-convnext": TimmConvNeXt,
}  # fmt: skip


def filled(name: str) -> nn.Module:
    """One of them, in eval mode, with weights and statistics that differ from channel to channel."""
    torch.manual_seed(0)
    net = ALL[name]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.3)
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return net
