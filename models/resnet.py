"""Residual networks: He et al. 2015, "Deep Residual Learning for Image Recognition"."""

from collections.abc import Sequence

from torch import Tensor, nn


def _conv_bn(ins: int, outs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs))


class Block(nn.Module):
    """relu(body(x) + shortcut(x)); the body is two 3x3, or 1x1, 3x3, 1x1 where it narrows.

    In the bottleneck form the 3x3 carries the stride, as in the variant the published
    25.56 million parameter count belongs to.
    """

    def __init__(self, ins: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outs = width * 4 if bottleneck else width
        if bottleneck:
            self.body = nn.Sequential(
                *(_conv_bn(ins, width, 1), nn.ReLU()),
                *(_conv_bn(width, width, 3, stride), nn.ReLU()),
                _conv_bn(width, outs, 1),
            )
        else:
            self.body = nn.Sequential(
                _conv_bn(ins, width, 3, stride), nn.ReLU(), _conv_bn(width, outs, 3)
            )
        same = ins == outs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_bn(ins, outs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Image (N, channels, H, W) → class logits (N, classes). Every stage but the first halves H, W.

    `large` puts the 7x7 stride-2 stem with max pooling in front, for photographs.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        channels: int,
        classes: int,
        bottleneck: bool = False,
        large: bool = False,
    ) -> None:
        super().__init__()
        stem: list[nn.Module] = [_conv_bn(channels, widths[0], 7 if large else 3, 1 + large)]
        stem.append(nn.ReLU())
        if large:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        ins = widths[0]
        blocks: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                blocks.append(Block(ins, width, 2 if stage and not i else 1, bottleneck))
                ins = width * 4 if bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(ins, classes)

    def forward(self, image: Tensor) -> Tensor:
        features = self.pool(self.blocks(self.stem(image))).flatten(1)
        logits: Tensor = self.head(features)
        return logits


def digits_resnet() -> ResNet:
    """Return the small network for 16x16 digits."""
    return ResNet((1, 1, 1), (16, 32, 48), channels=1, classes=10)


def resnet18() -> ResNet:
    """Return ResNet-18 for 224x224 images: 11.69 million parameters."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), channels=3, classes=1000, large=True)


def resnet50() -> ResNet:
    """Return ResNet-50 for 224x224 images: 25.56 million parameters."""
    widths = (64, 128, 256, 512)
    return ResNet((3, 4, 6, 3), widths, channels=3, classes=1000, bottleneck=True, large=True)
