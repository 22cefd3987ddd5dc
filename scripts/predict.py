"""Segment images with a checkpoint of this project: its label maps, overlays and, with masks, its scores.

python scripts/predict.py outputs/.../task_01/model.ckpt photo.jpg more/ 'even/*.png' [--output predictions]
    [--task 1] [--masks folder] [--classes file] [--maps] [--size run] [--batch-size 4] [--device auto]

Writes for each image, at its size: <name>.png, a palette image of the data set's class ids and colours, and
<name>_overlay.jpg; with masks also <name>_compare.jpg (image, mask, prediction, wrong pixels), and one scores.json;
with maps <name>_probability.png and <name>_entropy.png, in grey, and the mean entropy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import clone  # noqa: F401

from continual.launch.script_options import ArgumentParser, add_device, add_trust, named_path, output_folder
from continual.launch.user_errors import one_line_exit
from protocol.errors import ConfigError
from protocol.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from continual.models.predictions import PredictionWriter

MOST_WAITING = 16  # images whose files are being written while the network goes on


def main() -> None:
    """Read the arguments, predict, say where the results are."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "checkpoint",
        type=named_path,
        help="model.ckpt of a finished task, last.ckpt of one in training, or a run's folder",
    )
    parser.add_argument("images", nargs="+", help="files, folders or globs")
    parser.add_argument("--output", type=named_path, default=Path("predictions"), help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument(
        "--task",
        help="only classes of one task or of the first ones, as scripts/evaluate.py names them: 1, 2, 1u2 (or 12) ...",
    )
    parser.add_argument(
        "--masks",
        type=named_path,
        help="masks of the data set's class ids, a folder or one image's file: scores are computed",
    )
    parser.add_argument(
        "--classes",
        type=named_path,
        help="classes file of the masks, where their values are not those of the network's data set",
    )
    parser.add_argument("--maps", action="store_true", help="write the probability and the entropy of each pixel too")
    parser.add_argument(
        "--size", default="run", help="what the network gets: run = as in the run's evaluation | native | 512x1024"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images of one size at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    add_device(parser)
    add_trust(parser)
    arguments = parser.parse_args()
    with one_line_exit():
        predict(arguments)


def predict(arguments: argparse.Namespace) -> None:
    """Segment the images.

    Raises:
        ConfigError: an option does not fit.
        DataError: an image or mask is missing or damaged, or results would be overwritten.
        RunError: the checkpoint cannot be used.
    """
    from rich.progress import Progress  # heavy, as all below: not needed for --help or a wrong option

    from continual.models.memory import check_fits
    from continual.models.predictions import PredictionWriter
    from continual.models.saved_model import SavedModel, find_device
    from continual.models.segmentation import segmented
    from datamodules.loose_images import find_images, find_masks, loose_batches

    if arguments.classes and not arguments.masks:
        raise ConfigError("--classes has no effect without --masks")
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise ConfigError("--batch-size must be at least 1 and --workers at least 0")
    images = find_images(arguments.images)
    masks = find_masks(images, arguments.masks) if arguments.masks else {}
    model = SavedModel.load(arguments.checkpoint, arguments.trust)
    writer = PredictionWriter(model, arguments.output, model.group(arguments.task), masks, arguments.classes)
    model.network.to(find_device(arguments.device))
    size = model.input_size(arguments.size)
    fits = partial(check_fits, model.network, remedy="give a smaller --size or --batch-size")
    fits(min(arguments.batch_size, len(images)), size(1, 1))  # of images that are resized
    output_folder(arguments.output)
    writer.check_free(images, arguments.overwrite)
    batches = loose_batches(images, size, arguments.batch_size, arguments.workers)
    confusion, entropy, waiting = 0, [], deque()
    with ThreadPoolExecutor() as pool, Progress(disable=not sys.stdout.isatty(), transient=True) as progress:
        results = segmented(model, batches, writer.group, maps=arguments.maps, fits=fits)
        for path, image, prediction, certainty in progress.track(results, len(images), description="predicting"):
            if certainty is not None:
                entropy.append(certainty[1].mean().item())
            waiting.append(pool.submit(writer.write, path, image, prediction, certainty))
            if len(waiting) > MOST_WAITING:
                confusion = confusion + waiting.popleft().result()
        confusion = sum((each.result() for each in waiting), confusion)
    print(f"{len(images)} images: {arguments.output}")
    tell_scores(writer, confusion, entropy)


def tell_scores(writer: PredictionWriter, confusion: Tensor | int, entropy: Sequence[float]) -> None:
    """Print the scores and write them, where there are some.

    Args: `confusion`: matrix of all images with masks; `entropy`: mean of each image, in bits.
    """
    from rich.console import Console

    from continual.models.predictions import SCORES, scores_table

    scores = writer.scores(confusion) if writer.masks else {}
    if scores:
        Console().print(scores_table(scores))
    if entropy:
        scores["mean_entropy"] = sum(entropy) / len(entropy)
        print(f"mean entropy {scores['mean_entropy']:.3f} of at most {writer.most_bits:.3f} bits")
    if scores:
        write_atomically(writer.folder / SCORES, json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
