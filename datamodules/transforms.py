"""What happens to an image and its mask between the file and the batch.

Every transform is called as `transform(image, mask, rng_seed)` with image H x W x 3 uint8 and mask H x W uint8 and
gives the same two kinds of arrays. The mask already holds channels, 255 = ignored. Random choices depend on `rng_seed`
alone. Masks are never interpolated.

Interpolation of images, where a transform lets one choose:
    pil: Pillow's bilinear filter, antialiased when it shrinks; used by the papers' code, some 2.5 ms per image.
    cv2: bilinear (at most one grey level away from pil when enlarging); mean over the covered area when shrinking to
        less than half; about a tenth of the time.
In both, a pixel of a resized mask takes the value of the pixel nearest to its centre, with equal results.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, get_args

import albumentations as A
import cv2
import numpy as np
from annotated_types import Ge, Predicate
from PIL import Image

from datamodules.base import DataError
from datamodules.geometry import (
    ScaleCropLayout,
    Window,
    sample_window,
    scale_crop_layout,
    short_side_to,
    visible_part,
)
from protocol.labels import IGNORE
from protocol.numbers import Colour, Count, Interval, MaskValue, ascending

Pair = tuple[np.ndarray, np.ndarray]
Interpolation = Literal["cv2", "pil"]
Factor = Annotated[float, Ge(1)]


class Augmentation:
    """Albumentations transforms, one after the other, with the random numbers of the sample.

    By itself, albumentations 2.0 repeats one stream of random numbers in every loader process and every epoch, and its
    `set_random_seed` gives all transforms of a pipeline the same numbers (two flips would always agree). Here each
    sample has a stream of its own, from which the transforms draw one after the other.
    """

    def __init__(self, **transforms: A.BasicTransform | None) -> None:
        """Args: `transforms` by name, in their order; the name is the key in the configuration. None leaves one out.

        Raises:
            DataError: a transform would fill masks with something else than 255.
        """
        kept = {name: transform for name, transform in transforms.items() if transform is not None}
        for name, transform in kept.items():
            if getattr(transform, "fill_mask", IGNORE) != IGNORE:
                raise DataError(
                    f"dataset.augmentation.{name} fills masks with {transform.fill_mask}, which is a class; "
                    f"set dataset.augmentation.{name}.fill_mask={IGNORE}"
                )
        # sizes were compared when the class index was built
        self.pipeline = A.Compose(list(kept.values()), is_check_shapes=False)

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng_seed: int) -> Pair:
        """Image and mask, augmented."""
        self.pipeline.set_random_state(np.random.default_rng(rng_seed), random.Random(rng_seed))
        result = self.pipeline(image=image, mask=mask)
        return result["image"], result["mask"]


class Evaluation(ABC):
    """What becomes of an image and its mask before a network is tested; nothing is random."""

    @abstractmethod
    def __call__(self, image: np.ndarray, mask: np.ndarray, rng_seed: int = 0) -> Pair:
        """Image and mask as the test has them."""


class Identity(Evaluation):
    """Nothing changes: training without augmentation, evaluation at native size."""

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng_seed: int = 0) -> Pair:
        """Image and mask as they are."""
        return image, mask


class CenterCrop(Evaluation):
    """Short side resized to `size`, then the central square: the evaluation of MiB and of most papers after it.

    Scores are then measured on resized masks without the ends of the images; `full` measures on the images as they are.
    The interpolation is Pillow's, so that numbers are those of the papers' code. Nothing is random.
    """

    def __init__(self, size: Count) -> None:
        """Args: `size`: side of the square in pixels."""
        self.size = size
        self.output_size = (size, size)

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng_seed: int = 0) -> Pair:
        """Image and mask, `size` x `size`."""
        height, width = self.input_size(*mask.shape)
        # Python's round: half to even, as in the papers' code
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        square = Window(top, left, self.size, self.size)
        return cut(resize_image(image, height, width, "pil"), square), cut(resize_mask(mask, height, width), square)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a whole image, before it is cut."""
        return short_side_to(self.size, height, width)


class ResizeImage(Evaluation):
    """Images at one size, masks as they are: predictions are brought to the masks' size (CIL's evaluation)."""

    def __init__(self, height: Count, width: Count) -> None:
        """Args: `height`, `width`: of what the network gets, pixels."""
        self.output_size = (height, width)

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng_seed: int = 0) -> Pair:
        """Image `height` x `width` by Pillow's interpolation, and the mask."""
        return resize_image(image, *self.output_size, "pil"), mask

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the network gets."""
        return self.output_size


class RandomResizedCrop(A.DualTransform):
    """A random window, resized to a square whatever its aspect (MiB; also PLOP, SDR, RCIL, DKD)."""

    def __init__(
        self,
        size: Count,
        scale: Interval = (0.5, 2.0),
        ratio: Interval = (3 / 4, 4 / 3),
        interpolation: Interpolation = "cv2",
    ) -> None:
        """The window is drawn by `sample_window`.

        Args:
            size: side of the square in pixels.
            scale: least and greatest area of the window as a fraction of the image's.
            ratio: least and greatest aspect, width / height.
            interpolation: "cv2" or "pil", see the top of this file.
        """
        super().__init__(p=1.0)
        self.size = size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.interpolation = _known(interpolation)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window."""
        height, width = params["shape"][:2]
        return {"window": sample_window(height, width, self.py_random, self.scale, self.ratio)}

    def apply(self, img: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """The image's window, `size` x `size`."""
        return resize_image(cut(img, window), self.size, self.size, self.interpolation)

    def apply_to_mask(self, mask: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """The mask's window, `size` x `size`."""
        return resize_mask(cut(mask, window), self.size, self.size)


class ScaleCrop(A.DualTransform):
    """Short side resized to `size`, random scale, random square with padding (MBS; without the first step SSUL)."""

    def __init__(
        self,
        size: Count,
        scale: Interval = (0.5, 2.0),
        resize_short: bool = True,
        pad_image: Colour = (0.0, 0.0, 0.0),
        pad_label: MaskValue = IGNORE,
        interpolation: Interpolation = "cv2",
    ) -> None:
        """Scale and place are drawn by `scale_crop_layout`.

        Args:
            size: side of the square in pixels.
            scale: least and greatest factor by which the sides grow.
            resize_short: bring the short side to `size` first.
            pad_image: colour around the image, RGB in [0, 1].
            pad_label: label around the mask; 255 is ignored, MBS and SSUL take 0 (background).
            interpolation: "cv2" or "pil", see the top of this file.
        """
        super().__init__(p=1.0)
        self.size = size
        self.scale = tuple(scale)
        self.resize_short = resize_short
        self.pad_image = tuple(round(255 * c) for c in pad_image)
        self.pad_label = pad_label
        self.interpolation = _known(interpolation)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the scale and the place of the square."""
        height, width = params["shape"][:2]
        return {"layout": scale_crop_layout(height, width, self.size, self.py_random, self.scale, self.resize_short)}

    def apply(self, img: np.ndarray, layout: ScaleCropLayout, **params: Any) -> np.ndarray:
        """The image's square."""
        return self._square(img, layout, partial(resize_image, interpolation=self.interpolation), self.pad_image)

    def apply_to_mask(self, mask: np.ndarray, layout: ScaleCropLayout, **params: Any) -> np.ndarray:
        """The mask's square."""
        return self._square(mask, layout, resize_mask, self.pad_label)

    def _square(
        self, array: np.ndarray, layout: ScaleCropLayout, resize: Callable[..., np.ndarray], fill: int | Sequence[int]
    ) -> np.ndarray:
        if self.interpolation == "pil":  # as the papers' code: all of the image, at each size in turn
            for height, width in layout.sizes:
                array = resize(array, height, width)
            return cut_padded(array, layout.top, layout.left, self.size, fill)
        last = layout.sizes[-1]
        y0, y1, height, top = visible_part(layout.top, self.size, array.shape[0], last[0])
        x0, x1, width, left = visible_part(layout.left, self.size, array.shape[1], last[1])
        return cut_padded(resize(array[y0:y1, x0:x1], height, width), top, left, self.size, fill)


class ShrinkCrop(A.DualTransform):
    """Image and mask resized to one size, shrunk by a random factor, then cut to a random window (CIL)."""

    def __init__(
        self,
        height: Count,
        width: Count,
        shrink: Annotated[tuple[Factor, Factor], Predicate(ascending)],
        crop_height: Count,
        crop_width: Count,
        interpolation: Interpolation = "cv2",
    ) -> None:
        """The factor s is uniform; the shrunk image has `height` // s and `width` // s pixels.

        Args:
            height, width: of all images before they are shrunk, pixels.
            shrink: least and greatest factor.
            crop_height, crop_width: of the window, pixels.
            interpolation: "cv2" or "pil", see the top of this file.

        Raises:
            DataError: the window does not fit into the most shrunk image.
        """
        super().__init__(p=1.0)
        self.size = (height, width)
        self.shrink = tuple(shrink)
        self.crop = (crop_height, crop_width)
        self.interpolation = _known(interpolation)
        least = tuple(int(side // self.shrink[1]) for side in self.size)
        if self.shrink[0] < 1 or self.crop[0] > least[0] or self.crop[1] > least[1]:
            raise DataError(
                f"dataset.augmentation: a window of {crop_height} x {crop_width} pixels does not fit into "
                f"{height} x {width}, shrunk by {list(shrink)}: choose another window or a shrink of 1 and more"
            )

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor and the place of the window."""
        factor = self.py_random.uniform(*self.shrink)
        height, width = (int(side // factor) for side in self.size)
        top = self.py_random.randint(0, height - self.crop[0])
        left = self.py_random.randint(0, width - self.crop[1])
        return {"shrunk": (height, width), "window": Window(top, left, *self.crop)}

    def apply(self, img: np.ndarray, shrunk: tuple[int, int], window: Window, **params: Any) -> np.ndarray:
        """The image's window."""
        if self.interpolation == "pil":  # as the paper's code: one size after the other
            return cut(resize_image(resize_image(img, *self.size, "pil"), *shrunk, "pil"), window)
        return self._window(img, partial(resize_image, interpolation="cv2"), shrunk, window)

    def apply_to_mask(self, mask: np.ndarray, shrunk: tuple[int, int], window: Window, **params: Any) -> np.ndarray:
        """The mask's window."""
        if self.interpolation == "pil":
            return cut(resize_mask(resize_mask(mask, *self.size), *shrunk), window)
        return self._window(mask, resize_mask, shrunk, window)

    @staticmethod
    def _window(
        array: np.ndarray, resize: Callable[..., np.ndarray], shrunk: tuple[int, int], window: Window
    ) -> np.ndarray:
        """The window, by resizing only the part of the array that it shows."""
        y0, y1, height, top = visible_part(window.top, window.height, array.shape[0], shrunk[0])
        x0, x1, width, left = visible_part(window.left, window.width, array.shape[1], shrunk[1])
        return cut(resize(array[y0:y1, x0:x1], height, width), Window(top, left, window.height, window.width))


def cut(array: np.ndarray, window: Window) -> np.ndarray:
    """View of the window; H x W or H x W x 3."""
    return array[window.top : window.top + window.height, window.left : window.left + window.width]


def cut_padded(array: np.ndarray, top: int, left: int, size: int, fill: int | Sequence[int]) -> np.ndarray:
    """Square of `size` that may reach beyond the array; `fill` is the value there."""
    height, width = array.shape[:2]
    bottom, right = top + size, left + size
    inner = array[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    beyond = [max(n, 0) for n in (-top, bottom - height, -left, right - width)]
    if not any(beyond):
        return inner
    above, below, before, behind = beyond
    return cv2.copyMakeBorder(inner, above, below, before, behind, cv2.BORDER_CONSTANT, value=fill)


def resize_image(image: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    """Image h x w x 3 uint8 at another size; see the top of this file."""
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "pil":
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    # Down to a half, every pixel still counts in the bilinear filter, which takes a third of the time of INTER_AREA.
    skips = 2 * height < image.shape[0] and 2 * width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if skips else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mask h x w uint8 at another size, nearest pixel by its centre (cv2.INTER_NEAREST would shift by half a pixel)."""
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _known(interpolation: Interpolation) -> Interpolation:
    if interpolation not in get_args(Interpolation):
        raise DataError(f"interpolation={interpolation} in dataset.augmentation is neither cv2 nor pil")
    return interpolation
