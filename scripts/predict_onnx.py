"""Segment images with the exported network model.onnx beside this file: needs onnxruntime, numpy and pillow alone.

python predict_onnx.py photo.jpg ... [--output predictions]   # <name>.png each: palette images of the classes' values
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

parser = argparse.ArgumentParser(description="Segment images with the exported network model.onnx beside this file.")
parser.add_argument("images", nargs="+", type=Path)
parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the results")
arguments = parser.parse_args()
session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
values = np.array([each["mask_value"] for each in facts["classes"]], np.uint8)
palette = np.zeros((256, 3), np.uint8)
palette[values] = [each["colour"] for each in facts["classes"]]
targets = [arguments.output / f"{path.stem}.png" for path in arguments.images]
for place, target in enumerate(targets):
    if target.exists() or target in targets[:place]:
        sys.exit(f"error: {target} exists, or two images would be that: give another --output, or rename one")
arguments.output.mkdir(parents=True, exist_ok=True)
for path, target in zip(arguments.images, targets, strict=True):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    scale = facts["size"].get("short_side", min(image.size)), min(image.size)
    size = [side * scale[0] // scale[1] for side in image.size]  # native, or by the short side
    size = [facts["size"].get("width", size[0]), facts["size"].get("height", size[1])]  # or fixed
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    (classes,) = session.run(["classes"], {"image": pixels[None]})
    rows, columns = (
        np.arange(own) * its // own for own, its in zip(image.size[::-1], classes.shape[1:], strict=True)
    )  # the nearest pixel of the network's map
    labels = Image.fromarray(values[classes[0][rows[:, None], columns]])
    labels.putpalette(palette.tobytes())
    labels.save(target)
print(f"{len(targets)} images: {arguments.output}")
