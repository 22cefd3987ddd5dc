from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from continual.models.foreign.segformer import recognise
from continual.models.start import find_start
from networks.segformer import OF_SIZE
from protocol.errors import RunError
from tests.continual.models.foreign.growth import CLASSES, IMAGE, check_growth

SMALL = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 2, 1, 1], "decoder_hidden_size": 32}


def model_of(**settings) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    settings = settings or SMALL
    config = SegformerConfig(**settings, **({} if "id2label" in settings else {"num_labels": CLASSES}))
    return SegformerForSemanticSegmentation(config).eval()


@pytest.mark.parametrize("saved", [False, True])
def test_a_state_dict_becomes_a_network_that_grows(saved, tmp_path):
    """By the names in memory, and by those of earlier versions, in which transformers writes files."""
    model = model_of()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") if saved else model.state_dict()
    assert any(name.startswith("segformer.encoder.") for name in state) == saved
    found = recognise(state)
    assert found.network["widths"] == SMALL["hidden_sizes"]
    assert found.network["depths"] == SMALL["depths"]
    with torch.no_grad():
        check_growth(found, model(IMAGE).logits, tmp_path)


@pytest.mark.parametrize("size", OF_SIZE)
def test_the_sizes_of_the_paper_are_known(size):
    widths, depths, decoder = OF_SIZE[size]
    with torch.device("meta"):
        state = model_of(hidden_sizes=widths, depths=depths, decoder_hidden_size=decoder).state_dict()
    found = recognise(state)
    assert (found.source, found.network["size"]) == (f"transformers' SegFormer {size.upper()}", size)
    assert (found.class_counts, found.background) == ((CLASSES,), False)


NAMES = ("background", "road", "car")


@pytest.mark.parametrize("names", [NAMES, NAMES[1:]])
def test_the_folder_that_save_pretrained_writes_says_its_classes_and_normalisation(names, tmp_path):
    model = model_of(**SMALL, id2label=dict(enumerate(names)))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}')
    for given in (tmp_path, tmp_path / "model.safetensors"):
        start = find_start(str(given), None, {"_target_": "networks.segformer.SegFormer"}, trust=False)
        assert list(start.labels.classes.values()) == ["road", "car"]
        assert start.network.has_background == (names == NAMES)
        assert (start.mean, start.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(RunError, match="does not say its classes"):
        find_start(str(tmp_path), None, {"_target_": "networks.segformer.SegFormer"}, trust=False)


def test_one_channel_is_a_class_against_background(tmp_path):
    model = model_of(**SMALL, id2label={0: "crack"})
    model.save_pretrained(tmp_path)
    start = find_start(str(tmp_path), ["crack"], {"_target_": "networks.segformer.SegFormer"}, trust=False)
    assert (start.network.class_counts, start.labels.background) == ([2], 0)
    with torch.no_grad():
        ours = start.network(IMAGE).logits.softmax(1)[:, 1:]
        score = torch.nn.functional.interpolate(model(IMAGE).logits, size=IMAGE.shape[-2:], mode="bilinear")
    torch.testing.assert_close(ours, score.sigmoid())


def test_what_does_not_fit_is_named():
    state = model_of().state_dict()
    assert recognise({name: value for name, value in state.items() if "classifier" not in name}) is None
    del state["segformer.stages.0.layer_norm.bias"]
    with pytest.raises(RunError, match=r"SegFormer of a size of its own, and is not quite: missing: seg"):
        recognise(state)
    wide = {name: value for name, value in state.items() if ".stages.3." not in name}
    with pytest.raises(RunError, match=r"whose four stages .* has stages of \[8, 16, 40\]"):
        recognise(wide)
