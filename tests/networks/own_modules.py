"""Modules as users write them, with five classes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tiny(nn.Module):
    """An encoder of two stages and a head at half the resolution; gives a mapping, and resizes by itself."""

    def __init__(self, width: int = 16, classes: int = 5, bias: bool = True) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"low": _unit(3, width, 2), "high": _unit(width, 2 * width, 2)})
        self.decode_head = nn.ModuleDict(
            {"fuse": _unit(3 * width, width), "cls_seg": nn.Conv2d(width, classes, 1, bias=bias)}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        low = self.backbone["low"](image)
        high = self.backbone["high"](low)
        x = torch.cat([low, F.interpolate(high, size=low.shape[-2:], mode="bilinear")], dim=1)
        scores = self.decode_head["cls_seg"](self.decode_head["fuse"](x))
        return {"out": F.interpolate(scores, size=image.shape[-2:], mode="bilinear"), "features": high}


class Transposed(nn.Module):
    """A class layer that upsamples, with a kernel of 4; the size of its result is not the image's."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.classifier = nn.Module()  # the name of the growing classifier
        self.classifier.features = _unit(3, 8, 4)
        self.classifier.up = nn.ConvTranspose2d(8, 5, 4, stride=2, padding=1, bias=False)

    def forward(self, image: Tensor) -> object:
        logits = self.classifier.up(self.classifier.features(image))
        forms = {"logits": {"logits": logits}, "object": SimpleNamespace(logits=logits), "list": [logits, image]}
        forms |= {"tuple": (logits,), "softmax": logits.softmax(1), "sigmoid": torch.sigmoid(logits)}
        forms |= {
            "log_softmax": logits.log_softmax(1),
            "none": None,
            "other": {"masks": logits},
            "flat": logits.flatten(2),
        }
        forms |= {"cut": logits[:, :5], "broken": logits.view(2, 5, -1) if self.form == "broken" else None}
        return forms.get(self.form, logits)


class Odd(nn.Module):
    """Layers that cannot be the classes', and stages that give no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 8, 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dense = nn.Linear(8, 8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.twice = nn.Conv2d(8, 8, 1)
        self.unused = nn.Conv2d(8, 5, 1)
        self.classes = nn.Conv2d(8, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = self.grouped(self.twice(self.twice(x))) + self.dense(self.pool(x))[..., None, None]
        return self.classes(x)


def _unit(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))
