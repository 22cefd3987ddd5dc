"""Export a checkpoint to ONNX and safetensors, with a model card; each file is checked against the original.

python scripts/export.py outputs/.../task_01/model.ckpt [--output exported] [--formats onnx safetensors]
    [--size 512x1024]

ONNX needs: pip install -e ".[export]".
"""

from __future__ import annotations

from pathlib import Path

import clone  # noqa: F401

from continual.launch.script_options import ArgumentParser, add_trust, check_replaceable, named_path, output_folder
from continual.launch.user_errors import one_line_exit
from protocol.errors import ConfigError
from protocol.files import is_taken

FORMATS = ("onnx", "safetensors")


def main() -> None:
    """Read the arguments and export."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "checkpoint", type=named_path, help="model.ckpt of a finished task, or last.ckpt of one in training"
    )
    parser.add_argument("--output", type=named_path, default=Path("exported"), help="folder for the files")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--size", default="run", help="of the images: run = as in the run's evaluation | 512x1024")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_trust(parser)
    arguments = parser.parse_args()
    with one_line_exit():
        export(**vars(arguments))


def export(checkpoint: Path, output: Path, formats: list[str], size: str, overwrite: bool, trust: bool) -> None:
    """Write model.onnx, model.safetensors and README.md.

    Raises:
        ConfigError: an option does not fit, a package is missing, or a file is there already.
        RunError: the checkpoint cannot be used.
        UserError: an exported file does not compute what the checkpoint does.
    """
    from continual.models.export import export_onnx, export_safetensors, write_card
    from continual.models.memory import check_fits
    from continual.models.saved_model import SavedModel

    model = SavedModel.load(checkpoint, trust)
    height, width = model.fixed_size(size)
    names = [*(f"model.{kind}" for kind in formats), "README.md"]
    there = [output / name for name in names if is_taken(output / name)]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} exists: give --overwrite, or another --output")
    for file in there:
        check_replaceable(file, "give another --output")
        if file.exists() and file.samefile(checkpoint):
            raise ConfigError(f"{file} is the checkpoint itself: give another --output")
    check_fits(model.network, 2, (height, width), "give a smaller --size")
    output_folder(output)
    differences = {}
    if "safetensors" in formats:
        differences["model.safetensors"] = export_safetensors(model, output / "model.safetensors")
    if "onnx" in formats:
        differences["model.onnx"] = export_onnx(model, output / "model.onnx", (height, width))
    write_card(model, output / "README.md", (height, width), differences)
    for name, difference in differences.items():
        print(f"{output / name}: logits equal the checkpoint's up to {difference:.2g}")
    print(f"{output / 'README.md'}: model card")


if __name__ == "__main__":
    main()
