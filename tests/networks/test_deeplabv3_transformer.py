from __future__ import annotations

import pytest
import torch

from networks.deeplabv3_transformer import DeepLabV3Transformer, TransformerDecoder
from networks.token_classifier import TokenClassifier
from protocol.errors import ConfigError
from tests.vectors import part, tensors, variants


def golden_head(data):
    """Decoder and classifier with the vectors' parameters."""
    given = part(data, "param__")
    channels, in_channels = given["feature_embedding__weight"].shape[:2]
    decoder = TransformerDecoder(
        in_channels, channels, int(data["dim_feedforward"]), int(data["nhead"]), int(data["num_layers"]),
        given["pos_embed"].shape[-2:],
    )  # fmt: skip
    classifier = TokenClassifier(channels)
    classifier.add_task(given["class_tokens"].shape[1])
    own = {"pos_embed": decoder.positions, "class_tokens": classifier.tokens[0]}
    own |= {"proj_patch": classifier.patch_projection, "proj_classes": classifier.class_projection}
    own |= {"mask_norm__weight": classifier.weights[0], "mask_norm__bias": classifier.biases[0]}
    for kind in ("weight", "bias"):
        own[f"feature_embedding__{kind}"] = getattr(decoder.feature_embedding, kind)
        own[f"decoder_norm__{kind}"] = getattr(decoder.blocks.norm, kind)
        for i, block in enumerate(decoder.blocks.layers):
            names = {"norm1": block.norm1, "norm2": block.norm2, "attn__proj": block.self_attn.out_proj}
            names |= {"mlp__fc1": block.linear1, "mlp__fc2": block.linear2}
            own |= {f"blocks__{i}__{name}__{kind}": getattr(module, kind) for name, module in names.items()}
            own[f"blocks__{i}__attn__qkv__{kind}"] = getattr(block.self_attn, f"in_proj_{kind}")
    assert set(own) == set(given)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name].view_as(parameter))
    return decoder, classifier


@pytest.mark.parametrize("training", [True, False])
def test_golden_head(golden, training):
    """Also through the library's fast path, which evaluation takes."""
    data = tensors(golden("bacs_transeg_head"))
    decoder, classifier = (module.train(training) for module in golden_head(data))
    features = data["features"].requires_grad_(training)
    with torch.set_grad_enabled(training):
        patches, classes = decoder(features, torch.cat(list(classifier.tokens)))
        scores = classifier(*classifier.project(patches, classes))
    torch.testing.assert_close(patches, data["patch_features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, data["masks"], rtol=1e-4, atol=1e-5)
    if training:
        (grad,) = torch.autograd.grad(scores.square().sum(), features)
        torch.testing.assert_close(grad, data["grad_features_of_sum_squares"], rtol=1e-3, atol=1e-4)


def test_golden_growth(golden):
    """New tokens from the mean of all and from background's."""
    data = tensors(golden("bacs_headinit"))
    (before,) = data["tokens_before"]
    for init in variants(data, r"tokens_after_(\w+)"):
        (after,) = data[f"tokens_after_{init}"]
        classifier = TokenClassifier(before.shape[1])
        classifier.add_task(len(before))
        with torch.no_grad():
            classifier.tokens[0].copy_(before)
            classifier.weights[0].copy_(data["mask_norm_weight_before"])
            classifier.biases[0].copy_(data["mask_norm_bias_before"])
        classifier.add_task(len(after) - len(before), init)
        for parameters, want in (
            (classifier.tokens, after),
            (classifier.weights, data[f"mask_norm_weight_after_{init}"]),
            (classifier.biases, data[f"mask_norm_bias_after_{init}_fixed"]),
        ):
            torch.testing.assert_close(torch.cat(list(parameters)), want)


def test_what_a_first_task_cannot_start_from():
    for init in ("mean", "background"):
        with pytest.raises(ValueError, match=f"classifier_init={init} starts from earlier classes"):
            TokenClassifier(4).add_task(2, init)
    with pytest.raises(ValueError, match="classifier_init=x must be one of random, zero"):
        TokenClassifier(4).add_task(2, "x")


def small(**settings):
    return DeepLabV3Transformer(
        "resnet18", norm="bn", channels=16, feedforward=32, heads=2, layers=1, crop_size=64, **settings
    )


def test_images_of_any_size_and_growth():
    """Positions are resized; old tokens stay as they are."""
    network = small()
    network.add_classes(4)
    before = network.classifier.tokens[0].clone()
    network.add_classes(2, "mean")
    assert network.classifier.sizes == [4, 2]
    assert torch.equal(network.classifier.tokens[0], before)
    for size in ((64, 64), (48, 80), (37, 51)):
        output = network(torch.randn(2, 3, *size))
        assert output.logits.shape == (2, 6, *size)
        assert output.embedding.shape[1] == 16
        assert output.extras["class_features"].shape == (2, 6, 16)
        assert output.extras["class_vectors"].shape == (6, 16)
    network(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_heads_share_the_channels():
    with pytest.raises(ConfigError, match=r"channels=16 must be a multiple of heads=3"):
        DeepLabV3Transformer(channels=16, heads=3)


def test_number_of_parameters_is_that_of_bacs():
    network = DeepLabV3Transformer()
    network.add_classes(21)
    assert sum(p.numel() for p in network.parameters()) == 46_053_994
