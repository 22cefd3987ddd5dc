from __future__ import annotations

import functools
import hashlib
import http.server
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from networks import fetching
from networks.bisenet import BiSeNet
from networks.deeplabv3 import DeepLabV3
from networks.erfnet import ERFNet
from networks.norm import Norm
from networks.pretrained import convert_gamma, from_mib_name, load_encoder
from networks.resnet import ResNet
from networks.segmenter import Segmenter
from protocol.errors import ConfigError


def random_state(norm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 with positive and negative gammas."""
    generator = torch.Generator().manual_seed(seed)
    state = ResNet("resnet18", Norm(norm)).state_dict()
    for name, value in state.items():
        if value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    return state


def to_mib(name: str) -> str:
    """Inverse of `from_mib_name`, written by hand for the encoder."""
    if not name.startswith("layer"):
        return f"mod1.{name}"
    stage, block, rest = name.removeprefix("layer").split(".", 2)
    rest = rest.replace("downsample.0", "proj_conv").replace("downsample.1", "proj_bn")
    return f"mod{int(stage) + 1}.block{int(block) + 1}." + (rest if rest.startswith("proj") else f"convs.{rest}")


def features(state: dict[str, torch.Tensor], norm: str) -> list[torch.Tensor]:
    encoder = ResNet("resnet18", Norm(norm)).eval()
    encoder.load_state_dict(state)
    return encoder(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)))[0]


def test_names_of_mib(golden_keys):
    """All names of the published ResNet-101 DeepLab checkpoints, to all names of ours."""
    theirs = dict(line.split(" ", 1) for line in golden_keys("mib_resnet101_deeplab"))
    network = DeepLabV3("resnet101")
    for name in sorted(name for name in theirs if re.fullmatch(r"cls\.\d+\.bias", name)):
        network.add_classes(int(theirs[name].strip("(,)")))
    ours = {name: str(tuple(value.shape)) for name, value in network.state_dict().items()}
    assert {from_mib_name(name): shape for name, shape in theirs.items()} == ours


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_torchvision_file(tmp_path, prefix, wrapped):
    state = random_state("bn")
    content = {prefix + name: value for name, value in state.items()} | {prefix + "fc.weight": torch.ones(3, 3)}
    torch.save({"state_dict": content, "epoch": 3} if wrapped else content, tmp_path / "resnet18.pth")
    network = DeepLabV3("resnet18", norm="bn", pretrained=str(tmp_path / "resnet18.pth"))
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert network.weights == f"{tmp_path / 'resnet18.pth'}: {len(state)} tensors match, none is missing"


def test_mib_file_without_batch_counters(tmp_path):
    """As published: In-Place ABN, "module." before each name, no num_batches_tracked, an ImageNet classifier."""
    state = random_state("abn")
    content = {f"module.{to_mib(n)}": v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    content |= {"module.classifier.fc.weight": torch.ones(10, 4), "module.classifier.fc.bias": torch.ones(10)}
    torch.save({"state_dict": content}, tmp_path / "resnet18_iabn_sync.pth.tar")
    encoder = ResNet("resnet18", Norm("abn"))
    report = load_encoder(encoder, str(tmp_path / "resnet18_iabn_sync.pth.tar"))
    assert report.complete
    assert len(report.matched) == len(state)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]) or name.endswith("num_batches_tracked"), name


def test_negative_gammas_of_batch_norm_become_absolute_without_a_change():
    """bn_leaky and abn differ in the scale alone, so the converted network is the same function."""
    state = random_state("bn_leaky")
    assert any((v < 0).any() for n, v in state.items() if n.endswith("bn1.weight"))
    converted = convert_gamma(state, from_absolute=False, to_absolute=True)
    scales = [v for n, v in converted.items() if n.endswith(("bn1.weight", "bn2.weight", "downsample.1.weight"))]
    assert len(scales) == 20
    assert all((scale >= 0).all() for scale in scales)
    for got, want in zip(features(converted, "abn"), features(state, "bn_leaky"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    unconverted = features(state, "abn")
    assert (unconverted[-1] - features(state, "bn_leaky")[-1]).abs().max() > 0.1


def test_gammas_of_inplace_abn_become_those_of_batch_norm():
    state = random_state("abn")
    converted = convert_gamma(state, from_absolute=True, to_absolute=False)
    for got, want in zip(features(converted, "bn_leaky"), features(state, "abn"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def imagenet(monkeypatch) -> dict[str, torch.Tensor]:
    """torchvision's download, without the download."""
    state = random_state("bn") | {"fc.weight": torch.ones(2, 2)}
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, *args, **kwargs: dict(state))
    return state


def test_imagenet_fits_bn_as_it_is(imagenet, caplog):
    encoder = DeepLabV3("resnet18", norm="bn", pretrained="imagenet").encoder
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, imagenet[name])
    assert "another activation" not in caplog.text


def test_imagenet_for_abn_is_converted_and_warned_of(imagenet, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = DeepLabV3("resnet18", norm="abn", pretrained="imagenet").encoder
    assert (encoder.bn1.weight >= 0).all()
    assert "trained with ReLU and norm=abn has another activation" in caplog.text
    assert "norm=bn fits at once" in caplog.text


def test_no_network_is_one_clear_sentence(monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(ConfigError, match=r"pretrained=IMAGENET1K_V1 could not fetch resnet18 .*/path/to/res"):
        DeepLabV3("resnet18", pretrained="imagenet")


def test_auto_takes_what_can_be_had(imagenet, tmp_path, monkeypatch, caplog):
    """The weights in the cache, without asking anybody; else random ones, with a warning that names reason and remedy.

    A place that does not exist says so at once, one that never answers is not waited for.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    monkeypatch.setattr(fetching, "PATIENCE", 0.3)
    weights = ResNet18_Weights.IMAGENET1K_V1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (9, silent.getsockname()[1]):
            address = f"http://127.0.0.1:{port}/{file.name}"
            monkeypatch.setattr(weights, "_value_", replace(weights.value, url=address))
            begun = time.monotonic()
            network = DeepLabV3("resnet18", norm="bn", pretrained="auto")
            assert time.monotonic() - begun < 5
            assert network.weights == "random"
            (said,) = [record.getMessage() for record in caplog.records]
            assert said.startswith(f"pretrained=auto: the network starts from random weights ({address} ")
            assert f"put it into {file.parent}, or give its path, pretrained=/path/to/{file.name}" in said
            caplog.clear()
        file.parent.mkdir(parents=True)
        file.touch()  # what `imagenet` says is in it
        network = DeepLabV3("resnet18", norm="bn", pretrained="auto")
    assert network.weights == f"imagenet of torchvision (resnet18): {len(imagenet) - 1} tensors match, none is missing"
    assert torch.equal(network.encoder.conv1.weight, imagenet["conv1.weight"])
    assert not caplog.records


def test_a_damaged_cache_does_not_stop_auto(imagenet, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    imagenet.pop("conv1.weight")
    assert BiSeNet("resnet18", pretrained="auto").weights == "random"
    assert "1 missing: conv1.weight" in caplog.text


@pytest.mark.parametrize("make", [ERFNet, lambda **k: Segmenter("vit_tiny_patch16_224", {"depth": 1}, 32, **k)])
def test_auto_of_networks_without_torchvision_s_weights(make, monkeypatch, caplog):
    monkeypatch.setattr(fetching, "silence_of", lambda url: f"{url} is silent")
    assert make(pretrained="auto").weights == make().weights == "random"
    assert caplog.text.count("pretrained=auto: the network starts from random weights (") == 1


class Weights(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, with the headers of a model hub."""

    def end_headers(self):
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"weights"')
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Weights, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_torchvision_weights_are_fetched_by_name_once(server, tmp_path, monkeypatch):
    folder, address = server
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    (tmp_path / "weights.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    weights = ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", replace(weights.value, url=f"{address}/resnet18-{digest[:8]}.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name in ("IMAGENET1K_V1", "imagenet"):  # the second time from the cache
        encoder = DeepLabV3("resnet18", norm="bn", pretrained=name).encoder
        assert torch.equal(encoder.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.slow
def test_timm_weights_are_fetched_by_name(server, tmp_path):
    import timm
    from safetensors.torch import save_file

    folder, address = server
    state = timm.create_model("resnet18").state_dict()
    place = folder / "timm/resnet18.tv_in1k/resolve/main"
    place.mkdir(parents=True)
    save_file(state, place / "model.safetensors")
    save_file({"expected": state["layer3.0.conv1.weight"]}, tmp_path / "expected.safetensors")
    program = (
        "import torch; from safetensors.torch import load_file; from networks.deeplabv3 import DeepLabV3;"
        "network = DeepLabV3('resnet18', norm='bn', pretrained='timm/resnet18.tv_in1k');"
        "assert torch.equal(network.encoder.layer3[0].conv1.weight, load_file('expected.safetensors')['expected'])"
    )
    root = str(Path(__file__).parents[2])
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": root}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr


def test_unknown_timm_name_is_one_sentence():
    with pytest.raises(ConfigError, match=r"pretrained=timm/resnet18\.none .*list_pretrained"):
        DeepLabV3("resnet18", pretrained="timm/resnet18.none")


def test_missing_file_names_key_and_source(tmp_path):
    with pytest.raises(ConfigError, match=r"pretrained=.*no such file.*imagenet.*mapillary/inplace_abn"):
        DeepLabV3("resnet18", pretrained=str(tmp_path / "none.pth"))


def test_broken_file(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"broken\.pth cannot be read as a state dict"):
        DeepLabV3("resnet18", pretrained=str(tmp_path / "broken.pth"))


@pytest.mark.parametrize("content", [torch.ones(2), {"epoch": 3}, {"state_dict": [1, 2]}])
def test_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth holds no state dict"):
        DeepLabV3("resnet18", pretrained=str(tmp_path / "other.pth"))


def test_partial_load_lists_what_does_not_fit(tmp_path):
    state = random_state("bn")
    del state["layer2.0.conv1.weight"]
    state["conv1.weight"] = torch.ones(64, 1, 7, 7)
    state["layer9.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "part.pth")
    encoder = ResNet("resnet18", Norm("bn"))
    before = encoder.bn1.bias.clone()
    with pytest.raises(ConfigError) as error:
        load_encoder(encoder, str(tmp_path / "part.pth"))
    message = str(error.value)
    assert "1 missing: layer2.0.conv1.weight" in message
    assert "1 unexpected: layer9.weight" in message
    assert "1 mismatched: conv1.weight" in message
    assert torch.equal(encoder.bn1.bias, before)
