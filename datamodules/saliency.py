"""Which pixels of an image are salient: SSUL's "unknown" class is the salient pixels that have no class.

A source is called as `source(name, image)` with the image's name in its split and the image H x W x 3 uint8, and gives
its salient pixels, H x W bool. Any class of callables will do: `dataset/saliency=custom
dataset.saliency._target_=my.module.Source`, with `+dataset.saliency.<argument>=...`. It is called in the loaders'
processes, before the augmentation. Salient background gets a label of its own in the mask, and so is cropped and
mirrored with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from datamodules.base import DataError
from datamodules.files import decoded, image_size
from datamodules.text import shortened
from protocol.arrays import Flags
from protocol.numbers import Amount, Count, Text

SaliencySource = Callable[[str, np.ndarray], Flags]
SALIENT = 254  # label of salient background, between the mask's file and the batch

WITHOUT_MAPS = "fetch the maps that SSUL's authors publish, or set dataset/saliency=spectral or dataset/saliency=none"


class SaliencyFiles:
    """Maps from files `<root>/<name><suffix>` of one channel, 0 where nothing is salient (as SSUL's authors have)."""

    def __init__(self, root: Text, suffix: str = ".png") -> None:
        """Args: `root`: folder of the maps; `suffix`: of their names.

        Raises:
            DataError: there is no such folder.
        """
        self.root, self.suffix = Path(os.path.expanduser(root)), suffix
        if not root.strip() or not os.path.isdir(self.root):
            raise DataError(f"dataset.saliency.root={shortened(root)}: there is no such folder; {WITHOUT_MAPS}")

    def path_of(self, name: str) -> Path:
        """File of an image's map."""
        return self.root / f"{name}{self.suffix}"

    def fingerprint(self, names: Iterable[str]) -> str:
        """Hex digest that changes when a map of these images changes (sizes, times); cheap."""
        facts = [(name, *self.path_of(name).stat()[6:9:2]) for name in names]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def check(self, names: Iterable[str]) -> None:
        """Raise DataError unless every image has a map."""
        missing = [name for name in names if not os.path.isfile(self.path_of(name))]
        if missing:
            raise DataError(
                f"{len(missing)} images have no saliency map, the first is {self.path_of(missing[0])}: {WITHOUT_MAPS}"
            )

    def __call__(self, name: str, image: np.ndarray) -> Flags:
        """Salient pixels, H x W bool.

        Raises:
            DataError: the map cannot be read or is of another size.
        """
        path = self.path_of(name)
        height, width = image_size(path, "saliency map")  # of the header: a map of any other size is not decoded
        if (height, width) != image.shape[:2]:
            raise DataError(
                f"{path} is {width}x{height}, its image {image.shape[1]}x{image.shape[0]}: "
                "a saliency map has its image's size"
            )
        salient: Flags = decoded(path, cv2.IMREAD_GRAYSCALE) > 0
        return salient


class SpectralResidual:
    """Saliency from the image alone: where its spectrum differs from its own local mean (Hou and Zhang, CVPR 2007).

    Of a grey image of `size` x `size`: S = |F^-1 exp(L - h L + i P)|^2 with F the Fourier transform, L and P the
    logarithm of its amplitude and its phase, h a 3 x 3 mean; smoothed, and salient where above `factor` times its mean.
    """

    def __init__(self, size: Count = 64, factor: Amount = 3.0) -> None:
        """Args: see the class."""
        self.size, self.factor = size, factor

    def __call__(self, name: str, image: np.ndarray) -> Flags:
        """Salient pixels, H x W bool."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float64)
        spectrum = np.fft.fft2(small)
        logarithm = np.log(np.abs(spectrum) + 1e-8)
        residual = logarithm - cv2.blur(logarithm, (3, 3))
        salience = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        salience = cv2.GaussianBlur(salience, (9, 9), 2.5)
        salience = cv2.resize(salience, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        salient: Flags = salience > self.factor * salience.mean()
        return salient
