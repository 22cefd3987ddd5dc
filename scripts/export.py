"""Export a checkpoint to ONNX, torch.export and safetensors, with a model card; each file is checked.

python scripts/export.py outputs/.../task_01/model.ckpt [--output exported] [--formats onnx pt2 safetensors]
    [--size any] [--images photo.jpg folder/]

Writes model.onnx with predict_onnx.py, which needs onnxruntime, numpy and pillow alone, model.pt2, model.safetensors
and README.md. ONNX needs: pip install -e ".[export]".
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import clone  # noqa: F401

from continual.launch.script_options import ArgumentParser, add_trust, check_replaceable, named_path, output_folder
from continual.launch.user_errors import one_line_exit
from protocol.errors import ConfigError
from protocol.files import is_taken

FORMATS = ("onnx", "pt2", "safetensors")
OTHER_SIZES = ((96, 128), (121, 92))  # of the images of a comparison where the run says none
PREDICT = "predict_onnx.py"


def main() -> None:
    """Read the arguments and export."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "checkpoint",
        type=named_path,
        help="model.ckpt of a finished task, last.ckpt of one in training, or a run's folder",
    )
    parser.add_argument("--output", type=named_path, default=Path("exported"), help="folder for the files")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument(
        "--size", default="any", help="of the images of the graphs: any | run = as in the run's evaluation | 512x1024"
    )
    parser.add_argument("--images", nargs="+", default=[], help="files, folders or globs to compare on, beside others")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_trust(parser)
    arguments = parser.parse_args()
    with one_line_exit():
        export(arguments)


def export(arguments: argparse.Namespace) -> None:
    """Write the files.

    Raises:
        ConfigError: an option does not fit, a package is missing, or a file is there already.
        DataError: one of the images is missing or damaged.
        RunError: the checkpoint cannot be used.
        UserError: an exported file does not compute what the checkpoint does.
    """
    from continual.models.card import card_data, write_card
    from continual.models.checked_images import checked_images, images_of_run
    from continual.models.export import (
        Reference,
        check_onnx,
        export_onnx,
        export_program,
        export_safetensors,
        traced,
    )  # fmt: skip
    from continual.models.memory import check_fits
    from continual.models.saved_model import SavedModel
    from datamodules.files import read_image
    from datamodules.loose_images import find_images

    formats, output = arguments.formats, arguments.output
    if "onnx" in formats:
        check_onnx()
    model = SavedModel.load(arguments.checkpoint, arguments.trust)
    fixed = None if arguments.size == "any" else model.fixed_size(arguments.size)
    rule = model.size_rule("run" if fixed is None else "x".join(map(str, fixed)))
    real = [*map(read_image, find_images(arguments.images)), *images_of_run(model.path)]
    check_free(output, formats, model.path, arguments.overwrite)
    differences: dict[str, float] = {}
    if {"onnx", "pt2"} & set(formats):
        check_fits(model.network, 2, fixed or OTHER_SIZES[-1], "give a smaller --size")
        graph = traced(model, fixed, lambda: model.fixed_size("run"))
        if graph.size != fixed:
            fixed = graph.size
            rule = {"height": fixed[0], "width": fixed[1]}
        wanted = (lambda *_: fixed) if fixed else model.input_size("run")
        reference = Reference(model, checked_images([fixed] if fixed else OTHER_SIZES, real, wanted))
    output_folder(output)
    if "safetensors" in formats:
        differences["model.safetensors"] = export_safetensors(model, output / "model.safetensors")
    if "pt2" in formats:
        differences["model.pt2"] = export_program(graph, output / "model.pt2", reference)
    if "onnx" in formats:
        differences["model.onnx"] = export_onnx(graph, output / "model.onnx", card_data(model, rule), reference)
        shutil.copyfile(Path(__file__).with_name(PREDICT), output / PREDICT)
    write_card(model, output / "README.md", rule, differences)
    for name, difference in differences.items():
        print(f"{output / name}: logits equal the checkpoint's up to {difference:.2g}")
    if "onnx" in formats:
        print(f"{output / PREDICT}: segments images with model.onnx, onnxruntime, numpy and pillow alone")
    print(f"{output / 'README.md'}: model card")


def check_free(output: Path, formats: list[str], checkpoint: Path, overwrite: bool) -> None:
    """Raise ConfigError where a file would replace one that may not be replaced."""
    names = [*(f"model.{kind}" for kind in formats), *([PREDICT] if "onnx" in formats else []), "README.md"]
    there = [output / name for name in names if is_taken(output / name)]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} exists: give --overwrite, or another --output")
    for file in there:
        check_replaceable(file, "give another --output")
        if file.exists() and file.samefile(checkpoint):
            raise ConfigError(f"{file} is the checkpoint itself: give another --output")


if __name__ == "__main__":
    main()
