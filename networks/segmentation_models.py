"""The networks of the package segmentation_models_pytorch, with a growing classifier.

Tensors have the package's names after "module."; its settings are the package's defaults.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from networks.module import ModuleNetwork
from protocol.checks import did_you_mean
from protocol.errors import ConfigError

# Of the package's, all whose encoders give maps for images of any size: DPT's do not.
Architecture = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet",
    "segformer",
]  # fmt: skip
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
OF_TIMM = "tu-"  # how the package calls timm's networks
SMALLEST = {"pan": 128}  # side of an image, pixels, of what pools its deepest map three times
INITIAL = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")  # by which weights are made
CLASS_LAYER = "segmentation_head.0"
CLASSES = 2  # of the layer that the growing classifier takes the place of


class ShapesAlone(TorchFunctionMode):
    """Within it networks of the package can be made on the meta device, and fast.

    `torch.linspace` gives numbers there too, since Mix Transformers read their rates of dropping from it. What draws
    random values, where there are none, does nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or do not."""
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if getattr(func, "__name__", "") in INITIAL and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        where = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **where})


def library() -> ModuleType:
    """The package.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import segmentation_models_pytorch  # optional, and takes two seconds
    except ImportError as error:
        raise ConfigError(
            f'{error.name} is missing, which network=segmentation_models needs: pip install -e ".[smp]"'
        ) from error
    found: ModuleType = segmentation_models_pytorch
    return found


def build(architecture: str, encoder: str, classes: int = CLASSES) -> nn.Module:
    """The package's network with random weights.

    Raises:
        ConfigError: the package is missing, has no such encoder, or cannot join the two.
    """
    package = library()
    names = package.encoders.get_encoder_names()
    if encoder not in names and not _is_timm(encoder):
        raise ConfigError(
            f"encoder={encoder} is no encoder of segmentation_models_pytorch, and no {OF_TIMM}<name> of timm"
            f"{did_you_mean(encoder, names)}"
        )
    try:
        with ShapesAlone():
            model: nn.Module = package.create_model(architecture, encoder, encoder_weights=None, classes=classes)
    except Exception as error:  # the package and timm raise many kinds
        raise ConfigError(f"architecture={architecture} cannot have encoder={encoder}: {error}") from error
    return model


def _is_timm(encoder: str) -> bool:
    """Whether it is the name of a network that timm has itself, and not the address of one elsewhere."""
    import timm

    return re.fullmatch(rf"{OF_TIMM}[\w.]+", encoder) is not None and timm.is_model(encoder.removeprefix(OF_TIMM))


class SegmentationModels(ModuleNetwork):
    """One of the package's networks; `stages` are the maps that its encoder gives the decoder."""

    def __init__(
        self, architecture: Architecture = "unet", encoder: str = "resnet34", freeze_norm: bool = False
    ) -> None:
        """Args:
        architecture: of the decoder, as the package's `create_model` calls it.
        encoder: as the package calls it.
        freeze_norm: see `SegmentationNetwork`.

        Raises:
            ConfigError: see `build`.
        """
        module: Any = build(architecture, encoder)
        divisor = module.encoder.output_stride if module.requires_divisible_input_shape else 1
        super().__init__(module, CLASS_LAYER, ["encoder"], divisor, freeze_norm=freeze_norm, trial_size=None)
        self.divided_by = f"encoder={encoder}"
        self.architecture = architecture

    def check_crops(self, height: int, width: int) -> None:
        """As in every network; some decoders need more.

        Raises:
            ConfigError: the deepest layer would have no pixel of its own.
        """
        super().check_crops(height, width)
        smallest = SMALLEST.get(self.architecture, 1)
        if min(height, width) < smallest:
            raise ConfigError(
                f"architecture={self.architecture} needs images of at least {smallest} x {smallest} pixels, and crops "
                f"have {height} x {width}: take larger crops, or another architecture"
            )

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """As every module; the image, and the empty maps of some encoders, are no stages."""
        embedding, maps, extras = super().encode(image)
        return embedding, [each for each in maps if each.shape[1] and each is not image], extras
