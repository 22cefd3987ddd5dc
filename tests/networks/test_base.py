"""What every network must do; a new one is added as a subclass of `Contract` at the end."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from networks.base import NetworkOutput, SegmentationNetwork
from networks.classifier import IncrementalClassifier
from networks.deeplabv3 import DeepLabV3
from networks.erfnet import ERFNet
from networks.norm import is_norm
from networks.unet import UNet
from protocol.errors import ConfigError

ODD = (37, 51)


class Contract:
    """Tests for all networks; `make` gives one without classes, small enough for a CPU."""

    steps = 10  # that lower the loss on one batch well

    @staticmethod
    def make() -> SegmentationNetwork:
        raise NotImplementedError

    def grown(self, *classes: int) -> SegmentationNetwork:
        torch.manual_seed(0)
        network = self.make()
        for n in classes or (4, 2):
            network.add_classes(n)
        return network

    @staticmethod
    def objective(output: NetworkOutput) -> torch.Tensor:
        """What every parameter has a part in."""
        return output.logits.square().mean()

    @staticmethod
    def check_same(got: torch.Tensor, want: torch.Tensor) -> None:
        """What growth leaves as it was."""
        assert torch.equal(got, want)

    @staticmethod
    def image(size: tuple[int, int] = ODD, batch: int = 2) -> torch.Tensor:
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("size", [ODD, (64, 48), (41, 8)])
    def test_output_shapes(self, size):
        network = self.grown()
        output = network(self.image(size))
        assert isinstance(output, NetworkOutput)
        assert output.logits.shape == (2, 6, *size)
        assert output.scores.shape[:2] == (2, 6)
        assert output.embedding.shape[:2] == (2, network.embedding_channels)
        sides = [stage.shape[-1] for stage in output.stages]
        assert sides == sorted(sides, reverse=True)
        for features in (output.scores, output.embedding, *output.stages):
            possible = [tuple(-(-side // stride) for side in size) for stride in (1, 2, 4, 8, 16, 32)]
            assert tuple(features.shape[-2:]) in possible

    def test_without_background(self):
        """Channel 0 has no weights and no probability, and the network grows and keeps its scores as ever."""
        torch.manual_seed(0)
        network = self.make()
        network.leave_out_background()
        network.add_classes(4)
        before = network.eval()(self.image()).logits
        network.add_classes(2)
        output = network(self.image())
        assert output.logits.shape[1] == output.scores.shape[1] == 6
        assert network.classifier.num_classes == 5
        assert len(output.extras["class_vectors"]) == 6
        probability = torch.softmax(output.logits, dim=1)
        assert not probability[:, 0].any()
        torch.testing.assert_close(probability.sum(1), torch.ones_like(probability[:, 0]))
        if isinstance(network.classifier, IncrementalClassifier):
            self.check_same(output.logits[:, :4], before)

    def test_every_parameter_learns(self):
        network = self.grown()
        self.objective(network(self.image())).backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not idle

    def test_scores_are_the_classifier_of_the_embedding(self):
        network = self.grown().eval()
        output = network(self.image((64, 48)))
        torch.testing.assert_close(network.classifier(output.embedding), output.scores)
        upsampled = nn.functional.interpolate(output.scores, size=(64, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(output.logits, upsampled)

    @pytest.mark.parametrize("init", ["random", "zero"])
    def test_growth_keeps_old_logits_to_the_bit(self, init):
        network = self.grown().eval()
        before = network(self.image()).logits
        network.add_classes(3, init)
        after = network(self.image()).logits
        assert after.shape[1] == 9
        self.check_same(after[:, :6], before)

    def test_state_loads_into_a_network_grown_alike(self):
        network = self.grown()
        network(self.image())
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other = self.make()
        for n in (4, 2):
            other.add_classes(n)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        want = network.eval()(self.image()).logits
        assert torch.equal(other.eval()(self.image()).logits, want)

    def test_evaluation_leaves_no_trace(self):
        network = self.grown().eval()
        before = copy.deepcopy(network.state_dict())
        first, second = network(self.image()).logits, network(self.image()).logits
        assert torch.equal(first, second)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_evaluation_treats_images_one_by_one(self):
        network = self.grown().eval()
        images = self.image()
        torch.testing.assert_close(network(images).logits[:1], network(images[:1]).logits, rtol=1e-4, atol=1e-5)

    def test_copy_is_equal_and_independent(self):
        network = self.grown().eval()
        teacher = copy.deepcopy(network).requires_grad_(False)
        before = teacher(self.image()).logits
        assert torch.equal(before, network(self.image()).logits)
        network.train()(self.image()).logits.sum().backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
        assert torch.equal(teacher(self.image()).logits, before)

    def test_channels_last(self):
        network = self.grown().eval()
        want = network(self.image()).logits
        network = network.to(memory_format=torch.channels_last)
        got = network(self.image().contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    def test_bfloat16_autocast(self):
        network = self.grown()
        with torch.autocast("cpu", torch.bfloat16):
            output = network(self.image((32, 32)))
        assert output.logits.dtype == torch.float32
        self.objective(output).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())

    def test_new_classes_go_where_the_network_is(self):
        network = self.make().double()
        network.add_classes(2)
        network.add_classes(1, "background")
        assert {p.dtype for p in network.parameters()} == {torch.float64}

    def test_every_part_can_be_frozen(self):
        """Weights and statistics stay, also after `train()` and growth; the rest goes on learning."""
        for part in [name for name, _ in self.make().named_children() if name != "classifier"]:
            network = self.grown()
            network.check_parts([part])
            network.freeze([part])
            network.add_classes(1)
            before = copy.deepcopy(network.state_dict())
            network.train()(self.image((32, 32))).logits.square().mean().backward()
            torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
            moved = {k.partition(".")[0] for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
            assert part not in moved
            assert "classifier" in moved
        with pytest.raises(ConfigError, match=r"training\.freeze=\[classifier\]: classifier must be"):
            self.make().check_parts(["classifier"])

    def test_running_statistics_move_in_training(self):
        network = self.grown()
        layers = [m for m in network.modules() if is_norm(m)]
        assert layers
        before = [layer.running_var.clone() for layer in layers]
        network(self.image())
        assert not any(torch.equal(layer.running_var, old) for layer, old in zip(layers, before, strict=True))

    def test_a_small_picture_can_be_learned(self):
        """The way from logits to every weight works: a few steps lower the loss on one batch."""
        network = self.grown(3)
        label = (torch.arange(32) // 11).expand(2, 32, 32)  # three stripes, each of a colour and noise
        image = self.image((32, 32)) * 0.5 + torch.eye(3)[label].permute(0, 3, 1, 2)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        losses = []
        for _ in range(self.steps):
            loss = nn.functional.cross_entropy(network(image).logits, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]


class TestUNet(Contract):
    steps = 25

    @staticmethod
    def make():
        return UNet(width=4, num_layers=3)


class TestUNetBilinear(Contract):
    steps = 25

    @staticmethod
    def make():
        return UNet(width=8, num_layers=3, bilinear=True)


class TestERFNet(Contract):
    @staticmethod
    def make():
        return ERFNet(dropout=(0.0, 0.0))


class TestDeepLabV3(Contract):
    @staticmethod
    def make():
        return DeepLabV3("resnet18", norm="bn")


class TestDeepLabV3InPlaceABN(Contract):
    @staticmethod
    def make():
        return DeepLabV3("resnet18", output_stride=8, norm="abn", pooling=3)


class TestFreezeNorm:
    def test_neither_statistics_nor_weights_move(self):
        """Also after `train()`, where MiB's --fix_bn lets the statistics thaw."""
        network = DeepLabV3("resnet18", freeze_norm=True)
        network.add_classes(3)
        frozen = {n: v.clone() for n, v in network.state_dict().items() if "bn" in n or "downsample.1" in n}
        assert frozen
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
        network.train()(torch.randn(2, 3, 32, 32)).logits.square().mean().backward()
        optimizer.step()
        state = network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in frozen.items())
        assert network.encoder.conv1.weight.grad is not None


def test_concatenation_and_upsampling_of_mib(golden):
    """A body and a head of one convolution each, some tasks, odd size (MiB's segmentation module)."""
    data = golden("mib_segmodule")
    state = {
        name.removeprefix("sd/").replace("cls.", "classifier.heads."): torch.from_numpy(value)
        for name, value in data.items() if name.startswith("sd/")
    }  # fmt: skip
    body, head = state["body.weight"], state["head.weight"]

    class Toy(SegmentationNetwork):
        def __init__(self):
            super().__init__(embedding_channels=len(head))
            self.body = nn.Conv2d(body.shape[1], len(body), body.shape[2:], stride=4, padding=1)
            self.head = nn.Conv2d(head.shape[1], len(head), 1)

        def encode(self, image):
            body = self.body(image)
            return self.head(body), [body], {}

    network = Toy().double()
    for n in data["classes"].tolist():
        network.add_classes(n)
    network.load_state_dict(state)
    output = network(torch.from_numpy(data["x"]))
    got = {"logits": output.logits, "feat_body": output.stages[0], "feat_pre_logits": output.embedding}
    for name, value in got.items():
        torch.testing.assert_close(value, torch.from_numpy(data[name]), rtol=1e-9, atol=1e-9)
