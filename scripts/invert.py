"""Images that a trained network dreams of its classes (DeepInversion): PNGs, a record of each, and a contact sheet.

python scripts/invert.py outputs/.../task_00/model.ckpt [--output dreams] [--per-class 8] [--size 256]
    [--iterations 2000] [--pooling lse_lba] [--student other.ckpt] [--judge third.ckpt] ...

The same command continues where it was stopped. `callbacks=deep_inversion deepinversion_images=dreams` replays the
images in training.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clone  # noqa: F401

from continual.launch.script_options import ArgumentParser, add_device, add_trust, named_path, output_folder
from continual.launch.user_errors import one_line_exit
from protocol.errors import ConfigError, full_keys

if TYPE_CHECKING:
    from continual.dreams.dreamer import Dreamer
    from continual.models.saved_model import SavedModel

# Weights of `continual.dreams.recipe.Recipe`, whose defaults hold where an option is not given.
WEIGHTS = ("classification", "tv_l1", "tv_l2", "l2", "statistics", "first_layer", "competition")

MOST_IMAGES = 100_000  # of a class; each is a file


def main() -> None:
    """Read the arguments and dream."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=named_path, help="model.ckpt of a finished task, or an exported safetensors")
    parser.add_argument("--output", type=named_path, default=Path("dreams"), help="folder for the images")
    parser.add_argument("--per-class", type=int, default=8, help="images of each class")
    parser.add_argument("--task", help="only classes of one task, as scripts/evaluate.py names them: 1, 2, 1u2 ...")
    parser.add_argument("--size", type=int, help="height and width; those of the training crops where not given")
    parser.add_argument("--batch-size", type=int, default=32, help="images that are made together")
    parser.add_argument("--iterations", type=int, default=2000, help="updates at full resolution")
    parser.add_argument("--shrunk-iterations", type=int, default=0, help="updates before, at half the resolution")
    parser.add_argument("--lr", type=float, help="greatest learning rate of the pixels")
    parser.add_argument("--no-clip", action="store_true", help="pixels may leave [0, 255]; Adam's betas are 0.9, 0.999")
    parser.add_argument("--pooling", help="of logits: lse_lba | mean | max; dense = label maps")
    parser.add_argument("--jitter", type=int, help="greatest shift in pixels")
    parser.add_argument("--no-flip", action="store_true", help="never mirror")
    for name in WEIGHTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="weight of that term")
    parser.add_argument("--student", type=named_path, help="checkpoint of the network to compete with (--competition)")
    parser.add_argument("--judge", type=named_path, help="checkpoint of another network: does it see the classes?")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    add_trust(parser)
    arguments = parser.parse_args()
    with one_line_exit():
        invert(arguments)


def invert(arguments: argparse.Namespace) -> None:
    """Dream, and say how sure the network, and the judge, are of what they see.

    Raises:
        ConfigError: an option does not fit, or the network has no batch normalisation.
        RunError: a checkpoint cannot be used, or the folder holds other dreams.
    """
    from continual.models.memory import check_fits
    from continual.models.saved_model import SavedModel, find_device

    check(arguments)
    device = find_device(arguments.device)
    model = SavedModel.load(arguments.checkpoint, arguments.trust)
    model.network.to(device)
    group = model.group(arguments.task) or slice(0, len(model.class_names))
    classes = [c for c in range(group.start, group.stop) if c > 0]
    judge = load_judge(arguments, [model.class_names[c] for c in classes]) if arguments.judge else None
    with options_named():
        dreamer = make_dreamer(arguments, model)
    together = min(dreamer.batch_size, arguments.per_class * len(classes))
    check_fits(model.network, together, dreamer.size, "give a smaller --size or --batch-size", learns=True)
    output_folder(arguments.output)
    with full_keys("network", type(model.network)):
        images = dreamer.dream(classes, arguments.output)
    confidence, share = (100 * sum(image[key] for image in images) / len(images) for key in ("confidence", "share"))
    print(f"{len(images)} images of {len(classes)} classes: {arguments.output}")
    print(f"the network is {confidence:.0f} % sure of them, and sees them on {share:.0f} % of the pixels")
    if judge:
        judge.network.to(device)
        print(judgement(judge, images, arguments.output))


@contextmanager
def options_named() -> Iterator[None]:
    """Within it a message about a setting of the recipe names the option: --tv-l1 instead of tv_l1=."""
    names = "|".join(("lr", "pooling", "jitter", *WEIGHTS))
    try:
        yield
    except ConfigError as error:
        text = re.sub(rf"(?<![\w.-])({names})=", lambda found: f"--{found[1].replace('_', '-')}=", str(error))
        raise ConfigError(text) from error


def check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError unless the options go together."""
    for name in ("per_class", "batch_size", "iterations", *(["size"] if arguments.size is not None else [])):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.per_class > MOST_IMAGES:
        raise ConfigError(f"--per-class={arguments.per_class} must be at most {MOST_IMAGES}")
    for name in ("shrunk_iterations", "seed"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 0")
    if bool(arguments.competition) != (arguments.student is not None):
        raise ConfigError("--competition needs --student, the network to compete with, and the other way round")


def load_judge(arguments: argparse.Namespace, names: Sequence[str]) -> SavedModel:
    """Another network, which must know some classes.

    Raises:
        ConfigError: it has not learned one of them.
    """
    from continual.models.saved_model import SavedModel

    judge = SavedModel.load(arguments.judge, arguments.trust)
    unknown = [name for name in names if name not in judge.class_names]
    if unknown:
        raise ConfigError(f"--judge {arguments.judge} has not learned {unknown[0]}")
    return judge


def make_dreamer(arguments: argparse.Namespace, model: SavedModel) -> Dreamer:
    """What dreams, by the options; `model`: on its device."""
    from continual.dreams.dreamer import Dreamer, check_classes, digest
    from continual.dreams.recipe import Recipe, phases
    from continual.models.saved_model import SavedModel

    student, student_name = None, None
    if arguments.student:
        other = SavedModel.load(arguments.student, arguments.trust)
        check_classes(other, model.class_names, "--student")
        network = other.network.to(next(model.network.parameters()).device)
        student, student_name = (lambda x: network(x).logits), digest(network)
    given = {name: getattr(arguments, name) for name in ("lr", "pooling", "jitter", *WEIGHTS)}
    recipe = Recipe(
        phases(arguments.iterations, arguments.shrunk_iterations, clip=not arguments.no_clip),
        flip=not arguments.no_flip,
        **{name: value for name, value in given.items() if value is not None},
    )
    dataset = model.facts.dataset
    side = arguments.size or dataset.crop_size
    if side is None:
        raise ConfigError("--size must be given: the checkpoint does not say how large training images were")
    return Dreamer(
        model.network, model.class_names, dataset.mean, dataset.std, recipe, (side, side), arguments.per_class,
        arguments.batch_size, arguments.seed, student, student_name,
    )  # fmt: skip


def judgement(judge: SavedModel, images: list[dict[str, Any]], folder: Path) -> str:
    """How often another network finds an image's class the likeliest, and on how many pixels it sees the class."""
    import torch

    from continual.dreams.dreamer import class_probabilities
    from datamodules.files import read_image

    right, share = 0, 0.0
    device = next(judge.network.parameters()).device
    for image in images:
        channel = judge.class_names.index(image["name"])
        pixels = torch.from_numpy(read_image(folder / image["file"])).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode():
            logits = judge.network(judge.normalise(pixels)).logits[0]
        right += int(class_probabilities(logits[None]).argmax()) + 1 == channel
        share += (logits.argmax(0) == channel).float().mean().item()
    chance = 100 / (len(judge.class_names) - 1)
    return (
        f"the judge gives {100 * right / len(images):.0f} % of the images their class (chance: {chance:.0f} %), and "
        f"sees it on {100 * share / len(images):.0f} % of the pixels"
    )


if __name__ == "__main__":
    main()
