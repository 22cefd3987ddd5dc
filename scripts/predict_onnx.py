"""Segment images with the exported network model.onnx that lies beside this file.

python predict_onnx.py photo.jpg ... [--output predictions] [--model model.onnx]

Writes <name>.png for each image, at its size: a palette image of the classes' values and colours. Needs onnxruntime,
numpy and pillow. All that is to be known of the network stands in the file's metadata.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main() -> None:
    """Read the arguments, segment, say where the results are."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the results")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
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
        resized = image.resize(network_size(facts["size"], *image.size), Image.Resampling.BILINEAR)
        (classes,) = session.run(["classes"], {"image": np.asarray(resized).transpose(2, 0, 1)[None]})
        sides = zip((image.height, image.width), classes.shape[1:], strict=True)
        rows, columns = (np.arange(own) * its // own for own, its in sides)
        labels = Image.fromarray(values[classes[0][rows[:, None], columns]])
        labels.putpalette(palette.tobytes())
        labels.save(target)
    print(f"{len(arguments.images)} images: {arguments.output}")


def network_size(rule: dict[str, int], width: int, height: int) -> tuple[int, int]:
    """Width and height that the network gets of an image: fixed, by the short side, or the image's own."""
    if "width" in rule:
        return rule["width"], rule["height"]
    short, side = min(width, height), rule.get("short_side")
    return (width, height) if side is None else (side * width // short, side * height // short)


if __name__ == "__main__":
    main()
