"""Segmentation: Ronneberger et al. 2015, "U-Net", two levels deep."""

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
