from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from continual.models.foreign.segformer import recognise
from networks.segformer import OF_SIZE
from protocol.errors import RunError
from tests.continual.models.foreign.growth import CLASSES, IMAGE, check_growth

SMALL = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 2, 1, 1], "decoder_hidden_size": 32}


def model_of(**settings) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = SegformerConfig(**(settings or SMALL), num_labels=CLASSES)
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


def test_what_does_not_fit_is_named():
    state = model_of().state_dict()
    assert recognise({name: value for name, value in state.items() if "classifier" not in name}) is None
    del state["segformer.stages.0.layer_norm.bias"]
    with pytest.raises(RunError, match=r"SegFormer of a size of its own, and is not quite: missing: seg"):
        recognise(state)
    wide = {name: value for name, value in state.items() if ".stages.3." not in name}
    with pytest.raises(RunError, match=r"whose four stages .* has stages of \[8, 16, 40\]"):
        recognise(wide)
