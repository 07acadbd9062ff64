"""EfficientNet: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling", the base network B0."""

from torch import Tensor, nn


def _conv_bn(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs, eps=1e-3))


class Gate(nn.Module):
    """x · sigmoid(W2 silu(W1 mean(x))): one gate per channel, `inner` wide inside."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.SiLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class Block(nn.Module):
    """1x1 widen, depthwise, gate, 1x1 narrow; added to x where shapes agree.

    The gate is a quarter as wide as the block's input, not as its widened inside.
    """

    def __init__(self, ins: int, outs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = ins * expand
        layers: list[nn.Module] = [_conv_bn(ins, width, 1), nn.SiLU()] if expand != 1 else []
        layers += [_conv_bn(width, width, kernel, stride, width), nn.SiLU()]
        layers += [Gate(width, ins // 4), _conv_bn(width, outs, 1)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.residual else out


# expansion, channels, repeats, first stride, kernel: table 1 of the paper.
_B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class EfficientNet(nn.Module):
    """Image (N, 3, H, W) → class logits (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn(3, 32, 3, 2), nn.SiLU()]
        ins = 32
        for expand, outs, repeats, stride, kernel in _B0:
            for i in range(repeats):
                layers.append(Block(ins, outs, expand, kernel, 1 if i else stride))
                ins = outs
        layers += [_conv_bn(ins, 1280, 1), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(1280, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.pool(self.features(image)).flatten(1)
        logits: Tensor = self.head(self.dropout(features))
        return logits


def efficientnet_b0() -> EfficientNet:
    """Return EfficientNet-B0 for 224x224 images: 5.29 million parameters."""
    return EfficientNet(1000)
