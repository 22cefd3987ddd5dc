"""Segmenter (Strudel et al., ICCV 2021) with a growing set of class tokens, as in MBS (ECCV 2024).

    encoder: a vision transformer of timm; its patch tokens, at the patch stride
    decoder: a linear layer, then pre-norm blocks over patches and class tokens together, then layer norm
    scores: see networks/token_classifier.py, with MBS's mask norm

Positions are learned for one size of image and resized bilinearly where the number of patches differs. Pretrained
positions of another size are resized by timm, which is bicubic.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import timm
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from networks.fetching import AUTO, where_had
from networks.pretrained import load_exactly, read_state, timm_place, timm_weights
from networks.token_classifier import MaskClassifier, TokenNetwork
from protocol.errors import ConfigError
from protocol.numbers import Count, ProperFraction

# MBS's; the published weights of the encoder were trained with 1e-6.
make_norm = partial(nn.LayerNorm, eps=1e-5)
STAGES = 4
OF_FILES = ("pretrained", "checkpoint", "cache")  # how timm's options for weights begin


class Segmenter(TokenNetwork):
    """Vision transformer and mask transformer.

    `stages` are the patches after each quarter of the encoder's blocks, the embedding those after the decoder.
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_384",
        backbone_options: Mapping[str, Any] | None = None,
        crop_size: Count = 512,
        pretrained: str | None = None,
        layers: Annotated[int, Ge(1), Le(64)] = 2,
        heads: Count | None = None,
        drop_path: ProperFraction = 0.1,
    ) -> None:
        """Args:
        backbone: a vision transformer of timm with learned positions, e.g. vit_tiny_patch16_224, vit_base_patch16_384.
        backbone_options: what timm shall build differently, e.g. {depth: 4, embed_dim: 48, num_heads: 3}.
        crop_size: side of the images for which positions are learned, pixels.
        pretrained: None; "imagenet", timm's weights of the backbone; "auto", the same where they can be had, else
            random ones; "timm/<name>"; or a file of a state dict with timm's names.
        layers: blocks of the decoder.
        heads: of the attention in the decoder; None: as in the encoder.
        drop_path: probability with which the decoder's last block is left out in training (stochastic depth).

        Raises:
            ConfigError: timm has no such vision transformer, the decoder's heads cannot share its channels, or the
                weights cannot be had or do not fit.
        """
        encoder = _make_encoder(backbone, crop_size, dict(backbone_options or {}))
        channels = encoder.embed_dim
        if heads and channels % heads:
            raise ConfigError(f"heads={heads} must be a divisor of the backbone's {channels} channels")
        block: Any = encoder.blocks[0]  # timm has several classes of them, all with `attn` and `mlp`
        super().__init__(channels, size_divisor=encoder.patch_embed.patch_size[0], classifier=MaskClassifier(channels))
        self.encoder = encoder
        if pretrained is not None:
            self.weights = _load(encoder, pretrained, backbone)
        self.decoder = MaskTransformer(
            channels, heads or block.attn.num_heads, block.mlp.fc1.out_features / channels, layers, drop_path
        )

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Patches after the decoder, stages, and the transformed class tokens; all at the patch stride."""
        height, width = image.shape[-2:]
        size = height // self.size_divisor, width // self.size_divisor
        to_map = partial(_to_map, size=size)
        x = self._tokens(image, size)
        first, every = self.encoder.num_prefix_tokens, len(self.encoder.blocks)
        ends = {every * (i + 1) // STAGES for i in range(STAGES)}
        stages = []
        for i, block in enumerate(self.encoder.blocks, start=1):
            x = block(x)
            if i in ends and i < every:
                stages.append(to_map(x[:, first:]))
        patches = self.encoder.norm(x)[:, first:]
        stages.append(to_map(patches))
        patches, classes = self.decoder(patches, self.classifier.class_vectors())
        return to_map(patches), stages, {"classes": classes}

    def _tokens(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Prefix and patch tokens with their positions, B x N x D."""
        tokens: Tensor = self.encoder.patch_embed(image)
        if self.encoder.cls_token is not None:
            tokens = torch.cat([self.encoder.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.encoder.norm_pre(tokens + self._positions(size))
        return tokens

    def _positions(self, size: tuple[int, int]) -> Tensor:
        """Learned positions; those of patches are resized where the grid is another one."""
        positions, first = self.encoder.pos_embed, self.encoder.num_prefix_tokens
        assert positions is not None  # `_make_encoder` refuses encoders without
        if not self.any_size and tuple(self.encoder.patch_embed.grid_size) == tuple(size):
            return positions
        grid = positions[:, first:].transpose(1, 2).unflatten(2, self.encoder.patch_embed.grid_size)
        grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        return torch.cat([positions[:, :first], grid.flatten(2).transpose(1, 2)], dim=1)


class MaskTransformer(nn.Module):
    """Joint attention of patches and class tokens."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float, layers: int, drop_path: float) -> None:
        """Args:
        channels: d, of the tokens.
        heads: of the attention.
        mlp_ratio: hidden channels of the blocks' second half over d.
        layers: blocks.
        drop_path: of the last block; that of the others rises to it from 0.
        """
        super().__init__()
        self.proj_dec = nn.Linear(channels, channels)
        rates = torch.linspace(0, drop_path, layers, device="cpu").tolist()  # numbers, also where there is no data
        self.blocks = nn.ModuleList(
            Block(
                channels,
                heads,
                mlp_ratio,
                qkv_bias=True,
                drop_path=rate,
                norm_layer=make_norm,  # type: ignore[arg-type]  # timm writes "a class" and calls it with a size alone
            )
            for rate in rates
        )
        self.decoder_norm = make_norm(channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches B x N x d and tokens C x d to patches B x N x d and classes B x C x d."""
        x = torch.cat([self.proj_dec(patches), tokens.expand(patches.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        patches, classes = self.decoder_norm(x).split([patches.shape[1], len(tokens)], dim=1)
        return patches, classes


def _to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """B x N x D to B x D x h x w."""
    features: Tensor = tokens.transpose(1, 2).unflatten(2, size)
    return features


def _make_encoder(backbone: str, crop_size: int, options: dict[str, Any]) -> VisionTransformer:
    files = [name for name in options if name.startswith(OF_FILES)]
    if files:
        raise ConfigError(f"backbone_options.{files[0]} is no setting: weights are named by pretrained")
    if not timm.is_model(backbone):
        raise ConfigError(f"backbone={backbone} is no model of timm: see timm.list_models('vit_*')")
    try:
        encoder = timm.create_model(
            backbone, img_size=crop_size, norm_layer=make_norm, num_classes=0, global_pool="", **options
        )
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"backbone={backbone} with backbone_options={options}: {error}") from error
    if not isinstance(encoder, VisionTransformer) or not _is_plain(encoder):
        raise ConfigError(
            f"backbone={backbone} is no plain vision transformer with learned positions: "
            "choose e.g. vit_tiny_patch16_224, vit_small_patch16_384 or vit_base_patch16_384"
        )
    encoder.patch_embed.strict_img_size = False
    return encoder


def _is_plain(encoder: VisionTransformer) -> bool:
    has_positions = encoder.pos_embed is not None and not encoder.no_embed_class
    return has_positions and len(encoder.blocks) > 0 and encoder.num_prefix_tokens <= 1


def _load(encoder: VisionTransformer, pretrained: str, backbone: str) -> str:
    """ImageNet weights; positions are resized as timm does; gives what they are, in words."""
    if pretrained == AUTO:
        place = timm_place(f"timm/{backbone}")
        remedy = f"fetch {place.url} once and give the path of its state dict, pretrained=/path/to/file"
        return where_had(lambda: _load(encoder, "imagenet", backbone), place.url, place.is_cached, remedy)
    name = f"timm/{backbone}" if pretrained == "imagenet" else pretrained
    state = timm_weights(name, "vit_*") if name.startswith("timm/") else read_state(name)
    state = {key: value for key, value in checkpoint_filter_fn(state, encoder).items() if not key.startswith("head")}
    return load_exactly(encoder, state, f"pretrained={pretrained}").found(name)
