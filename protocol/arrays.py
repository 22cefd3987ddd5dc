"""Types of the arrays that rooms hand one another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # image H x W x 3, mask or labels H x W, table of 256 labels by mask value
Positions = npt.NDArray[np.signedinteger]  # of images in a split
Flags = npt.NDArray[np.bool_]  # presence of values in masks: N x 256
