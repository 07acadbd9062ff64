"""Segmentation: Ronneberger et al. 2015, "U-Net", two and four levels deep."""

import torch
from torch import Tensor, nn


def _pair(ins: int, outs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (ins, outs):
        conv = nn.Conv2d(channels, outs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Image (N, channels, H, W), H and W multiples of 4 → logits per pixel (N, classes, H, W).

    The two ways up differ on purpose, a transposed convolution and a bilinear resize with a
    convolution, since networks in use have either.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.down1 = _pair(channels, width)
        self.down2 = _pair(width, 2 * width)
        self.bottom = _pair(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = _pair(4 * width, 2 * width)
        self.up1 = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(2 * width, width, 1),
        )
        self.join1 = _pair(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = self.down1(image)
        b = self.down2(self.pool(a))
        x = self.up2(self.bottom(self.pool(b)))
        x = self.up1(self.join2(torch.cat([x, b], dim=1)))
        logits: Tensor = self.head(self.join1(torch.cat([x, a], dim=1)))
        return logits


def digits_unet() -> UNet:
    """Return the small network for 32x32 scenes: background, digit, bar."""
    return UNet(1, 14, 3)


class DeepUNet(nn.Module):
    """Image (N, 3, H, W), H and W multiples of 16 → logits per pixel (N, 1, H, W).

    Four levels, each way up a transposed convolution, as Buda et al. 2019 published it for slices
    of 256x256.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(map(_pair, [3, *widths[:3]], widths[:4]))
        self.bottom = _pair(widths[3], widths[4])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[3::-1])
        self.join = nn.ModuleList(_pair(2 * w, w) for w in widths[3::-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x, skips = image, []
        for down in self.down:
            skips.append(down(x))
            x = self.pool(skips[-1])
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        logits: Tensor = self.head(x)
        return logits


def unet() -> DeepUNet:
    """Return the network of width 32 for 256x256 images: 7.76 million parameters."""
    return DeepUNet(32)
