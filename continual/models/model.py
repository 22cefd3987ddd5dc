"""A trained network as Python code uses it: `continual.models.load`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from continual.models.memory import check_fits
from continual.models.saved_model import SavedModel, find_device
from continual.models.segmentation import segmented
from datamodules.given_images import given
from datamodules.loose_images import batches_of_one_size, network_pixels
from networks.maps import nearest_pixels
from protocol.arrays import Pixels
from protocol.errors import ConfigError


class Model:
    """A network with its classes; labels are channels, so that `class_names[label]` is what a pixel shows.

    Attributes:
        saved: the network, its method and what the file says of them.
        class_names: of the channels, background first.
        palette: colours of the channels, C x 3 uint8.
        mask_values: what the channels are called in the data set's masks, C uint8; 255 where background has no value.
    """

    def __init__(self, saved: SavedModel, size: str | tuple[int, int] = "run") -> None:
        """Args: `size`: see `continual.models.load`.

        Raises:
            ConfigError: `size` cannot be.
        """
        self.saved = saved
        self.class_names = list(saved.class_names)
        self.palette = saved.colours
        self.mask_values = np.array(saved.mask_values, np.uint8)
        self._size = saved.input_size(_written(size))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str, size: str | tuple[int, int], trust: bool) -> Model:
        """See `continual.models.load`."""
        if not os.fspath(path).strip():
            raise ConfigError("the path of the model is empty: name a model.ckpt, a run's folder or a .safetensors")
        model = cls(SavedModel.load(Path(path).expanduser(), trust, "trust=True"), size)
        return model.to(device)

    def __repr__(self) -> str:
        network = type(self.saved.network).__name__
        return f"<{network} of {self.saved.path}: {len(self.class_names)} channels on {self.saved.device}>"

    def to(self, device: str) -> Model:
        """Move the network; "auto": to a GPU where there is one.

        Raises:
            ConfigError: there is no such device.
        """
        self.saved.network.to(find_device(str(device)))
        return self

    def predict(self, image: Any, *, size: str | tuple[int, int] | None = None, batch_size: int = 4) -> Any:
        """Label each pixel of one image or of several.

        The network gets an image at the size that it had in the run's evaluation, and the labels have the image's own.

        Args:
            image: a path, an array H x W x 3, a PIL image of mode RGB, a tensor 3 x H x W or B x 3 x H x W, or a list
                of these, whose images may differ in size; for their values see `datamodules.given_images.given`.
            size: instead of that of `load`.
            batch_size: images of one size at a time.

        Returns:
            Channels: of a tensor an int64 tensor (B x) H x W on its device, of a list a list of one answer for each
            thing in it, of all else an array H x W uint8.

        Raises:
            DataError: an image is of the wrong kind or damaged.
            ConfigError: `size` or `batch_size` cannot be, or memory is too small.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        wanted = self._size if size is None else self.saved.input_size(_written(size))
        asked = given(image)
        sizes = [wanted(*pixels.shape[:2]) for pixels in asked.images]
        chunks = batches_of_one_size(sizes, batch_size)
        largest = max(chunks, key=lambda chunk: len(chunk) * math.prod(sizes[chunk[0]]))
        remedy = "give a smaller size or batch_size"
        check_fits(self.saved.network, len(largest), sizes[largest[0]], remedy)
        batches = ([(i, asked.images[i], network_pixels(asked.images[i], sizes[i])) for i in chunk] for chunk in chunks)
        results = segmented(self.saved, batches)
        labels = [nearest_pixels(found, pixels.shape[:2]).numpy() for _, pixels, found, _ in results]
        return asked.answer(labels)

    def colour(self, labels: Any) -> Pixels:
        """A picture of labels H x W, array or tensor, in the classes' colours: H x W x 3 uint8.

        Raises:
            ConfigError: a label is none of the channels.
        """
        channels = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if channels.size and not 0 <= channels.min() <= channels.max() < len(self.palette):
            raise ConfigError(
                f"labels from {channels.min()} to {channels.max()} are not those of a model of {len(self.palette)} "
                "channels: give what predict returned"
            )
        picture: Pixels = self.palette[channels]
        return picture


def _written(size: str | tuple[int, int]) -> str:
    """A size as the scripts have it, "512x1024" for (512, 1024)."""
    return size if isinstance(size, str) else "x".join(map(str, size))
