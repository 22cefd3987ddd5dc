from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import nn

from networks.bisenet import AttentionRefinement, BiSeNet, ConvBlock, FeatureFusion
from tests.networks.test_base import Contract
from tests.networks.test_deeplabv3 import formula, split_at, thinned
from tests.vectors import golden_variants, part, tensors

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
    state = tensors(part(data, f"{prefix}_sd/"))
    module.double().load_state_dict({name.replace("conv1.", "conv."): value for name, value in state.items()})
    return module


@pytest.mark.parametrize(("file", "prefix"), golden_variants("mib_bisenet_blocks*", r"(\w+)_sd/conv1?\.weight"))
def test_golden_blocks(golden, file, prefix):
    data = golden(file)
    x = torch.from_numpy(data[f"{prefix}_x"])
    if f"{prefix}_sd/conv.weight" in data:
        made = AttentionRefinement(x.shape[1])
    else:
        stride = -(-x.shape[2] // data[f"{prefix}_y_eval"].shape[2])
        made = ConvBlock(x.shape[1], data[f"{prefix}_y_eval"].shape[1], stride)
    module = block(data, prefix, made)
    for mode in ("eval", "train"):
        got = module.train(mode == "train")(x)
        torch.testing.assert_close(got, torch.from_numpy(data[f"{prefix}_y_{mode}"]), rtol=1e-9, atol=1e-9)


def first(maps, want):
    """As many channels as the vectors keep."""
    return maps[:, : want.shape[1]]


def test_golden_fusion_and_spatial_path(golden):
    """The fusion gives 256 channels, as in the whole network."""
    data = tensors(golden("mib_bisenet_blocks"))
    paths = torch.cat([data["ffm_x1"], data["ffm_x2"]], dim=1)
    fusion = FeatureFusion(paths.shape[1], 256).double()
    fill(fusion, lambda name: name.replace("block.conv.", "convblock.conv1.").replace("block.bn", "convblock.bn"))
    for mode in ("eval", "train"):
        want = data[f"ffm_y_{mode}_first24"]
        torch.testing.assert_close(first(fusion.train(mode == "train")(paths), want), want, rtol=1e-9, atol=1e-9)
    spatial = BiSeNet("resnet18").spatial.double().eval()
    fill(spatial, lambda name: f"convblock{int(name[0]) + 1}{name[1:]}".replace("conv.", "conv1."))
    want = data["sp_y_eval_first24"]
    torch.testing.assert_close(first(spatial(data["sp_x"]), want), want, rtol=1e-9, atol=1e-9)


def test_golden_network(golden):
    """All three outputs of the authors' in evaluation mode, where ours gives the auxiliary ones in training alone."""
    data = tensors(golden("mib_bisenet"))
    network = BiSeNet("resnet50").double()
    for _ in range(2):
        network.add_classes(data["logits"].shape[1])
    fill(network, their_name)
    network.eval().training = True  # statistics stay those of evaluation
    output = network(data["x"])
    close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)
    close(first(output.embedding, data["result_first16"]), data["result_first16"])
    auxiliary = {f"logits_sup{place}": logits for place, logits in enumerate(output.extras["auxiliary"], start=1)}
    for name, logits in {"logits": output.logits, **auxiliary}.items():
        close(split_at(thinned(logits, data[name]), data[name]), data[name])
    network.eval()
    assert "auxiliary" not in network(data["x"]).extras


def test_golden_resnet18(golden):
    """Whose auxiliary classifiers the authors' code cannot build."""
    data = tensors(golden("mib_bisenet"))
    network = BiSeNet("resnet18").double().eval()
    network.add_classes(2)
    fill(network, lambda name: their_name(name).removeprefix("head."))
    want = data["r18_result_first16"]
    torch.testing.assert_close(first(network(data["x"]).embedding, want), want, rtol=1e-8, atol=1e-8)


def test_names_and_shapes_of_the_authors(golden_keys):
    theirs = dict(line.split(" ", 1) for line in golden_keys("mib_bisenet50") if ".features." not in line)
    network = BiSeNet("resnet50")
    for name in sorted(name for name in theirs if re.fullmatch(r"cls\.\d+\.bias", name)):
        network.add_classes(int(theirs[name].strip("(,)")))
    ours = {their_name(name): str(tuple(value.shape)) for name, value in network.state_dict().items()}
    assert ours == {name: shape for name, shape in theirs.items() if ".fc." not in name}


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
