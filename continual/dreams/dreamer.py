"""A folder of images that a network dreamed: PNGs, a record of each, and a contact sheet to look at.

    img_s007_00001_id003.png   class (channel) 7, batch 1, place 3
    batch_00001.json           its record, until all batches are there
    dreams.json                {"settings", "images": [{"file", "class", "name", "confidence", "share", "losses"}]}
    contact_sheet.png

A batch is written when it is done, and is not dreamed again after that. Processes share the batches.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from continual.dreams.recipe import Recipe
from continual.dreams.record import RECORD, SHEET, contact_sheet, read_record
from continual.dreams.synthesis import Network, dense_targets, pixel_bounds, random_numbers_of, synthesise
from continual.dreams.terms import FeatureStatistics, lse_lba
from continual.evaluation.plots import render, save_picture
from continual.models.saved_model import SavedModel
from networks.base import SegmentationNetwork
from networks.pixels import Pixels
from protocol.errors import ConfigError
from protocol.files import write_atomically
from protocol.random_streams import Stream, seed_of


@dataclass
class Dreamer:
    """A frozen network that dreams images of its classes.

    Attributes:
        network: in evaluation mode, on its device.
        class_names: of its channels.
        mean, std: of the images that it was trained on, per RGB channel, in [0, 1].
        recipe: how images are made.
        size: height and width of the images.
        per_class: images of each class.
        batch_size: images that are made together.
        seed: of all random numbers; each batch has its own stream.
        student: gives scores or logits, for the competition.
        student_name: which one, for the record.
    """

    network: SegmentationNetwork
    class_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    recipe: Recipe
    size: tuple[int, int]
    per_class: int
    batch_size: int
    seed: int = 0
    student: Network | None = None
    student_name: str | None = None

    def dream(
        self, classes: Sequence[int], folder: Path, rank: int = 0, world: int = 1, barrier: Callable[[], Any] = int
    ) -> list[dict[str, Any]]:
        """Fill a folder with images; goes on where an earlier call was stopped.

        Args:
            classes: channels to dream of.
            folder: is made where it does not exist.
            rank, world: of the process, and how many there are; the first one writes the record.
            barrier: waits for all processes.

        Returns:
            "images" of the record.

        Raises:
            ConfigError: the network has no batch normalisation to dream by, or there is no class.
            RunError: the folder holds dreams of other settings.
        """
        if not classes:
            raise ConfigError("there is no class to dream of")
        statistics = FeatureStatistics(self.network, self.recipe.first_layer)
        settings = self._settings(classes)
        images = read_record(folder / RECORD, settings)
        if images is not None:
            return images
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [c for _ in range(self.per_class) for c in classes]
        batches = [wanted[i : i + self.batch_size] for i in range(0, len(wanted), self.batch_size)]
        files = [folder / f"batch_{number:05d}.json" for number in range(len(batches))]
        with _progress(rank) as progress:
            steps = sum(phase.iterations for phase in self.recipe.phases)
            mine = range(rank, len(batches), world)
            bar = progress.add_task("dreaming", total=steps * len(mine), losses="")
            for turn, number in enumerate(mine):
                if read_record(files[number], settings) is None:
                    watch = partial(_show, progress, bar, turn * steps)
                    records = self._batch(number, batches[number], folder, statistics, watch)
                    write_atomically(files[number], json.dumps({"settings": settings, "images": records}))
                progress.update(bar, completed=(turn + 1) * steps)
        barrier()
        return [] if rank else _joined(files, folder, settings)

    def _settings(self, classes: Sequence[int]) -> dict[str, Any]:
        """The settings that the images depend on, as they look after a round trip through JSON."""
        settings = {
            "network": digest(self.network), "student": self.student_name, "mean": list(self.mean),
            "std": list(self.std), "recipe": asdict(self.recipe), "size": self.size, "seed": self.seed,
            "per_class": self.per_class, "batch_size": self.batch_size, "classes": list(classes),
        }  # fmt: skip
        as_read: dict[str, Any] = json.loads(json.dumps(settings))
        return as_read

    def _batch(
        self, number: int, classes: Sequence[int], folder: Path, statistics: FeatureStatistics, watch: Any
    ) -> list[dict[str, Any]]:
        device = next(self.network.parameters()).device
        generator = torch.Generator().manual_seed(seed_of(Stream.DREAM, self.seed, number))
        start = torch.randn(len(classes), 3, *self.size, generator=generator).to(device)
        wanted = torch.tensor(list(classes))
        targets = dense_targets(wanted, self.size, generator) if self.recipe.pooling == "dense" else wanted
        bounds = pixel_bounds(self.mean, self.std, device)
        numbers = random_numbers_of(generator, self.recipe.flip)
        dreams = synthesise(
            self._logits, statistics, start, targets.to(device), self.recipe, bounds, numbers, self.student, watch
        )
        pixels = self._pixels(dreams.images)
        confidence, share = self._judge(pixels, wanted)
        records = []
        for place, c in enumerate(classes):
            file = f"img_s{c:03d}_{number:05d}_id{place:03d}.png"
            Image.fromarray(pixels[place].permute(1, 2, 0).cpu().numpy()).save(folder / file)
            records.append({
                "file": file, "class": c, "name": self.class_names[c], "confidence": round(confidence[place].item(), 4),
                "share": round(share[place].item(), 4), "losses": {"loss": dreams.loss, **dreams.terms},
            })  # fmt: skip
        return records

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            return self.network(x).logits

    def _pixels(self, images: Tensor) -> Tensor:
        """Normalised images as N x 3 x H x W uint8."""
        mean, std = (torch.tensor(list(values), device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((images * std + mean).clamp(0, 1) * 255).round().byte()

    @torch.no_grad()
    def _judge(self, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """How sure the network is of the classes in N images, and on which share of the pixels it sees them."""
        device = next(self.network.parameters()).device
        logits = self.network(Pixels(self.mean, self.std).to(device).normalise(pixels.to(device))).logits
        wanted = classes.to(device)
        scores = class_probabilities(logits).gather(1, wanted[:, None] - 1).squeeze(1)
        return scores, (logits.argmax(1) == wanted.view(-1, 1, 1)).float().mean((1, 2))


def _joined(files: Sequence[Path], folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make one record and the contact sheet from the records of all batches; gives the images."""
    images = []
    for file in files:
        batch = read_record(file, settings)
        assert batch is not None, f"{file} is missing, which a process has written"
        images += batch
    save_picture(render(contact_sheet(folder, images)), folder / SHEET)
    write_atomically(folder / RECORD, json.dumps({"settings": settings, "images": images}, indent=1))
    for file in files:
        file.unlink()
    return images


def class_probabilities(logits: Tensor) -> Tensor:
    """Probabilities of the classes without background, N x C - 1, in whole images, from logits N x C x H x W."""
    return torch.softmax(lse_lba(logits.float(), 0.0)[:, 1:], dim=1)


def digest(network: torch.nn.Module) -> str:
    """Hex digest of the weights, which identifies the network that dreamed."""
    content = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def check_classes(model: SavedModel, names: Sequence[str], key: str) -> None:
    """Raise ConfigError, with the `key` that chose the model, unless its first classes are those of a network."""
    for ours, theirs in zip(names, model.class_names, strict=False):
        if ours != theirs:
            raise ConfigError(f"{key}={model.path} has {theirs} where the network that dreams has {ours}")


def _show(progress: Progress, bar: TaskID, begin: int, done: int, terms: Mapping[str, float]) -> None:
    """Move the bar to the updates of a batch that began at `begin`, and name its losses."""
    losses = " ".join(f"{name} {value:.3g}" for name, value in terms.items())
    progress.update(bar, completed=begin + done, losses=losses)


def _progress(rank: int) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"), transient=True, disable=rank > 0 or not sys.stdout.isatty(),
    )  # fmt: skip
