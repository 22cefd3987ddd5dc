from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks.bisenet import AttentionRefinement, BiSeNet, ConvBlock, FeatureFusion
from tests.conftest import ROOT
from tests.networks.test_base import Contract
from tests.networks.test_deeplabv3 import formula

# Our names -> the authors', the first that fits counts.
NAMES = (
    ("encoder.", "head.context_path."), ("spatial.0.", "head.saptial_path.convblock1."),
    ("spatial.1.", "head.saptial_path.convblock2."), ("spatial.2.", "head.saptial_path.convblock3."),
    ("refine.0.", "head.attention_refinement_module1."), ("refine.1.", "head.attention_refinement_module2."),
    ("fusion.block.", "head.feature_fusion_module.convblock."), ("fusion.", "head.feature_fusion_module."),
    ("auxiliaries.0.heads.", "supervision1."), ("auxiliaries.1.heads.", "supervision2."), ("classifier.heads.", "cls."),
)  # fmt: skip


def their_name(name: str) -> str:
    for ours, theirs in NAMES:
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            return theirs + (rest.replace("conv.", "conv1.", 1) if "convblock" in theirs else rest)
    raise KeyError(name)


def fill(network: nn.Module, rename) -> None:
    state = network.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(formula(rename(name), value.shape))


def block(data, prefix, module):
    state = {
        key.removeprefix(f"{prefix}_sd/").replace("conv1.", "conv."):
        torch.from_numpy(np.asarray(value))
        for key, value in data.items() if key.startswith(f"{prefix}_sd/")
    }  # fmt: skip
    module.double().load_state_dict(state)
    return module


@pytest.mark.parametrize(
    ("prefix", "make"),
    [
        ("conv", lambda: ConvBlock(4, 5)),
        ("conv_s1", lambda: ConvBlock(4, 3, 1)),
        ("arm", lambda: AttentionRefinement(6)),
    ],
)
def test_golden_blocks(golden, prefix, make):
    data = golden("mib_bisenet_blocks")
    x = torch.from_numpy(data[f"{prefix}_x"])
    for mode in ("eval", "train"):
        got = block(data, prefix, make()).train(mode == "train")(x)
        torch.testing.assert_close(got, torch.from_numpy(data[f"{prefix}_y_{mode}"]), rtol=1e-9, atol=1e-9)


def test_golden_fusion_and_spatial_path(golden):
    data = golden("mib_bisenet_blocks")
    paths = torch.cat([torch.from_numpy(data[name]) for name in ("ffm_x1", "ffm_x2")], dim=1)
    for mode in ("eval", "train"):
        fusion = FeatureFusion(7, 256).double()
        fill(fusion, lambda name: name.replace("block.conv.", "convblock.conv1.").replace("block.bn", "convblock.bn"))
        got = fusion.train(mode == "train")(paths)[:, :24]
        torch.testing.assert_close(got, torch.from_numpy(data[f"ffm_y_{mode}_first24"]), rtol=1e-9, atol=1e-9)
    spatial = BiSeNet("resnet18").spatial.double().eval()
    fill(spatial, lambda name: f"convblock{int(name[0]) + 1}{name[1:]}".replace("conv.", "conv1."))
    got = spatial(torch.from_numpy(data["sp_x"]))[:, :24]
    torch.testing.assert_close(got, torch.from_numpy(data["sp_y_eval_first24"]), rtol=1e-9, atol=1e-9)


def test_golden_network(golden):
    """All three outputs of the authors' in evaluation mode, where ours gives the auxiliary ones in training alone."""
    data = golden("mib_bisenet")
    network = BiSeNet("resnet50").double()
    for n in (16, 5):
        network.add_classes(n)
    fill(network, their_name)
    network.eval().training = True  # statistics stay those of evaluation
    output = network(torch.from_numpy(data["x"]))
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(output.logits[..., ::2, ::2], torch.from_numpy(data["logits"]), **close)
    torch.testing.assert_close(output.embedding[:, :16], torch.from_numpy(data["result_first16"]), **close)
    for place, logits in enumerate(output.extras["auxiliary"], start=1):
        torch.testing.assert_close(logits[..., ::4, ::4], torch.from_numpy(data[f"logits_sup{place}"]), **close)
    network.eval()
    assert "auxiliary" not in network(torch.from_numpy(data["x"])).extras


def test_golden_resnet18(golden):
    """Whose auxiliary classifiers the authors' code cannot build."""
    data = golden("mib_bisenet")
    network = BiSeNet("resnet18").double().eval()
    network.add_classes(2)
    fill(network, lambda name: their_name(name).removeprefix("head."))
    output = network(torch.from_numpy(data["x"]))
    torch.testing.assert_close(
        output.embedding[:, :16], torch.from_numpy(data["r18_result_first16"]), rtol=1e-8, atol=1e-8
    )


def test_names_and_shapes_of_the_authors():
    network = BiSeNet("resnet50")
    for n in (16, 5):
        network.add_classes(n)
    ours = {their_name(name): tuple(value.shape) for name, value in network.state_dict().items()}
    lines = (ROOT / "tests/golden/mib_bisenet50_keys.txt").read_text().splitlines()
    theirs = {line.split()[0]: line for line in lines if line.strip() and ".features." not in line}
    assert set(theirs) - set(ours) <= {name for name in theirs if ".fc." in name}
    assert set(ours) <= set(theirs)


def test_auxiliary_classifiers_grow_and_learn():
    torch.manual_seed(0)
    network = BiSeNet("resnet18")
    network.add_classes(3)
    network.add_classes(2, "background")
    output = network(torch.randn(2, 3, 37, 51))
    assert [tuple(logits.shape) for logits in output.extras["auxiliary"]] == [(2, 5, 37, 51)] * 2
    sum(logits.square().mean() for logits in output.extras["auxiliary"]).backward()
    assert all(p.grad is not None for p in network.auxiliaries.parameters())
    network.freeze(["old_classes"])
    assert [p.requires_grad for p in network.auxiliaries[0].parameters()] == [False, False, True, True]


def test_without_auxiliary_classifiers_nothing_is_idle():
    network = BiSeNet("resnet18", auxiliary_weight=0)
    network.add_classes(3)
    output = network(torch.randn(2, 3, 37, 51))
    assert "auxiliary" not in output.extras
    output.logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


class TestBiSeNet(Contract):
    @staticmethod
    def make():
        return BiSeNet("resnet18")

    @staticmethod
    def objective(output):
        """Of the auxiliary classifiers too, in training."""
        return sum(logits.square().mean() for logits in (output.logits, *output.extras.get("auxiliary", ())))
