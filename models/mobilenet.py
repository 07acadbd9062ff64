"""Mobile networks: MobileNetV2 (Sandler et al. 2018) and the blocks of V3 (Howard et al. 2019)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Stage:
    """One inverted residual: `expand` is the factor on the input's channels, `se` adds gating."""

    expand: int
    outs: int
    stride: int = 1
    kernel: int = 3
    se: bool = False
    act: Activation = nn.ReLU6


def _conv_bn(
    ins: int, outs: int, kernel: int, act: Activation, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outs), act()]


class SqueezeExcite(nn.Module):
    """x · hardsigmoid(W2 relu(W1 mean(x))): one gate per channel, a quarter as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class InvertedResidual(nn.Module):
    """1x1 widen, depthwise, gate, 1x1 narrow without activation; added to x where shapes agree."""

    def __init__(self, ins: int, stage: Stage) -> None:
        super().__init__()
        width = ins * stage.expand
        layers = _conv_bn(ins, width, 1, stage.act) if stage.expand != 1 else []
        layers += _conv_bn(width, width, stage.kernel, stage.act, stage.stride, width)
        if stage.se:
            layers.append(SqueezeExcite(width))
        layers += _conv_bn(width, stage.outs, 1, nn.Identity)
        self.body = nn.Sequential(*layers)
        self.residual = stage.stride == 1 and ins == stage.outs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """Image (N, channels, H, W) → class logits (N, classes)."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        channels: int,
        stem: int,
        stem_stride: int,
        last: int,
        classes: int,
        act: Activation,
    ) -> None:
        super().__init__()
        layers = _conv_bn(channels, stem, 3, act, stem_stride)
        ins = stem
        for stage in stages:
            layers.append(InvertedResidual(ins, stage))
            ins = stage.outs
        layers += _conv_bn(ins, last, 1, act)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.pool(self.features(image)).flatten(1)
        logits: Tensor = self.head(self.dropout(features))
        return logits


def digits_mobilenet() -> MobileNet:
    """Return the small network for 16x16 digits: both activations, both kernel sizes, gates."""
    swish = nn.Hardswish
    stages = (
        Stage(1, 16, act=nn.ReLU, se=True),
        Stage(3, 24, stride=2, act=nn.ReLU),
        Stage(3, 24, act=nn.ReLU),
        Stage(3, 40, stride=2, kernel=5, se=True, act=swish),
        Stage(3, 40, kernel=5, se=True, act=swish),
    )
    return MobileNet(stages, channels=1, stem=16, stem_stride=1, last=120, classes=10, act=swish)


# expansion, channels, repeats, first stride: table 2 of the MobileNetV2 paper.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2() -> MobileNet:
    """Return MobileNetV2 at width 1.0 for 224x224 images: 3.50 million parameters."""
    stages = [
        Stage(expand, outs, stride=1 if i else stride)
        for expand, outs, repeats, stride in _V2
        for i in range(repeats)
    ]
    return MobileNet(
        stages, channels=3, stem=32, stem_stride=2, last=1280, classes=1000, act=nn.ReLU6
    )
