"""Images that a trained network dreams: DeepInversion (Yin et al., CVPR 2020), and its use for segmentation.

Pixels x, at first N(0, 1) in the network's normalised space, are trained so that the frozen teacher sees a class:

    loss = class CE(s(J(x)), class) + tv_l2 TV2 + tv_l1 TV1 + statistics R_f + l2 R_2 + competition R_adi

J shifts (and mirrors) the images at random. For segmentation the logits z are pooled to one score per class, as in the
report on MiB with DeepInversion ("LSE-LBA", `lse_lba`), or compared pixel by pixel with a drawn label map ("dense").
    TV2   sum over four directions of the norm of the differences of the whole batch; TV1: of their mean magnitude
    R_f   over normalisation layers: |running var - var| + |running mean - mean| of the layer's input; the first one
          counts `first_layer` times
    R_2   mean norm of an image
    R_adi 1 - the divergence of teacher and student, whose disagreement is wanted

Reproduced, of the authors' code: the reversed divergence and its clamps, the norm over the whole batch, the schedule.
Mended: "best" is the image that had the loss, not its successor, and losses of other resolutions are not compared;
background is no wanted class; classes of any number; PNG; sizes of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.errors import ConfigError
from networks.norm import is_norm

POOLINGS = ("lse_lba", "mean", "max", "dense")
TEMPERATURE, CLAMP = 3.0, (0.01, 0.99)  # of the competition, as in the authors' code
WARM_UP = 100  # iterations


@dataclass(frozen=True)
class Phase:
    """A part of the optimisation with an optimiser of its own.

    Attributes:
        iterations: updates.
        shrink: the network sees images of 1/shrink of the size (average pooling).
        betas: of Adam.
        clip: keep pixels in [0, 255].
    """

    iterations: int
    shrink: int = 1
    betas: tuple[float, float] = (0.5, 0.9)
    clip: bool = True


def phases(iterations: int, shrunk_iterations: int = 0, clip: bool = True) -> tuple[Phase, ...]:
    """Updates at half the resolution, where there are some, and at the full one; without `clip` with slower betas."""
    adam = {} if clip else {"betas": (0.9, 0.999), "clip": False}
    shrunk = [Phase(shrunk_iterations, shrink=2, **adam)] if shrunk_iterations else []
    return (*shrunk, Phase(iterations, **adam))


@dataclass(frozen=True)
class Recipe:
    """How images are made; defaults of the authors' command line.

    Attributes:
        phases: one after the other.
        lr: greatest learning rate.
        pooling: one of `POOLINGS`.
        jitter: greatest shift in pixels, divided by the phase's `shrink`.
        flip: mirror at random.
        classification, tv_l1, tv_l2, l2, statistics, first_layer, competition: weights, see the top of this file.
    """

    phases: tuple[Phase, ...] = (Phase(2000, shrink=2), Phase(1000))
    lr: float = 0.2
    pooling: str = "lse_lba"
    jitter: int = 30
    flip: bool = True
    classification: float = 1.0
    tv_l1: float = 0.0
    tv_l2: float = 1e-4
    l2: float = 1e-5
    statistics: float = 0.05
    first_layer: float = 10.0
    competition: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no recipe with a ConfigError."""
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling={self.pooling} is none of {', '.join(POOLINGS)}")
        if not self.phases or any(phase.iterations < 1 or phase.shrink not in (1, 2) for phase in self.phases):
            raise ConfigError("a phase of the inversion needs at least one iteration, and a shrink of 1 or 2")
        if self.lr <= 0 or not isinstance(self.jitter, int) or self.jitter < 0:
            raise ConfigError(f"lr={self.lr} must be above 0 and jitter={self.jitter} a whole number of at least 0")
        for weight in (f.name for f in fields(self) if f.type == "float" and f.name != "lr"):
            if getattr(self, weight) < 0:
                raise ConfigError(f"{weight}={getattr(self, weight)} must be at least 0")


@dataclass
class Draw:
    """Random numbers of one iteration.

    Attributes:
        offsets: rows and columns of the shift.
        flip: whether images are mirrored.
        beta: of the LSE-LBA pooling, in [0, 1).
    """

    offsets: tuple[int, int]
    flip: bool
    beta: float


def total_variation(x: Tensor) -> tuple[Tensor, Tensor]:
    """TV1 and TV2 of images N x 3 x H x W, over the whole batch."""
    differences = (
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    return sum(d.abs().mean() for d in differences), sum(torch.linalg.vector_norm(d) for d in differences)


def image_norm(x: Tensor) -> Tensor:
    """R_2: mean norm of the images."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).mean()


def lse_lba(logits: Tensor, beta: float, r0: float = 0.0) -> Tensor:
    """Scores N x C of logits N x C x H x W: 1/c (log sum exp(c z) - log HW) with c = r0 + e^beta."""
    c = r0 + math.exp(beta)
    pixels = logits.flatten(2)
    return (torch.logsumexp(c * pixels, dim=2) - math.log(pixels.shape[2])) / c


def pool(logits: Tensor, pooling: str, beta: float = 0.0) -> Tensor:
    """Scores N x C of an output: scores already, or logits N x C x H x W."""
    if logits.ndim == 2:
        return logits
    if pooling == "lse_lba":
        return lse_lba(logits, beta)
    return logits.amax(dim=(2, 3)) if pooling == "max" else logits.mean(dim=(2, 3))


def competition(student: Tensor, teacher: Tensor) -> Tensor:
    """R_adi = 1 - clamp(JS, 0, 1) of scores N x C, with the authors' reversed divergences and clamps."""
    p, q = (torch.softmax(scores / TEMPERATURE, dim=1) for scores in (student, teacher))
    m = ((p + q) / 2).clamp(*CLAMP)
    p, q = p.clamp(*CLAMP), q.clamp(*CLAMP)
    divergence = sum((m * (m.log() - r.log())).sum(dim=1).mean() for r in (p, q)) / 2
    return 1 - divergence.clamp(0, 1)


def learning_rate(base: float, iteration: int, total: int) -> float:
    """Linear over the first 100 iterations, then half a cosine."""
    if iteration < WARM_UP:
        return base * (iteration + 1) / WARM_UP
    return base / 2 * (1 + math.cos(math.pi * (iteration - WARM_UP) / (total - WARM_UP)))


def jitter(x: Tensor, draw: Draw) -> Tensor:
    """Images or label maps ... x H x W, shifted in a circle and mirrored."""
    x = torch.roll(x, draw.offsets, dims=(-2, -1))
    return x.flip(-1) if draw.flip else x


class FeatureStatistics:
    """R_f of the forward passes within `watch`."""

    def __init__(self, network: nn.Module, first_layer: float = 1.0) -> None:
        """Args: `network`: in evaluation mode; `first_layer`: factor of the first layer's term.

        Raises:
            ConfigError: it has no normalisation layer with running statistics, or one that overwrites its input.
        """
        self.layers = [m for m in network.modules() if is_norm(m)]
        self.first_layer = first_layer
        name = type(network).__name__
        if not self.layers:
            raise ConfigError(
                f"{name} has no batch normalisation, whose running statistics are what DeepInversion remembers images "
                "by: choose a network with it (deeplabv3, bisenet, erfnet, unet ...)"
            )
        if any(
            base.__name__ in ("InPlaceABN", "InPlaceABNSync") for layer in self.layers for base in type(layer).__mro__
        ):
            raise ConfigError(f"{name} has in-place ABN, which overwrites its input: train with network.norm=abn")
        self.terms: list[Tensor] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect the terms of one forward pass."""
        self.terms = []
        handles = [layer.register_forward_pre_hook(self._compare) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _compare(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float() if inputs[0].dtype in (torch.float16, torch.bfloat16) else inputs[0]
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        self.terms.append(
            torch.linalg.vector_norm(layer.running_var - var) + torch.linalg.vector_norm(layer.running_mean - mean)
        )

    def loss(self) -> Tensor:
        """R_f of what was collected; in the order in which the layers ran."""
        first, *others = self.terms
        return self.first_layer * first + sum(others)


@dataclass
class Dreams:
    """Synthesised images.

    Attributes:
        images: N x 3 x H x W, normalised: those of the lowest loss in the last phase.
        loss: that loss.
        terms: its parts by name, weighted.
    """

    images: Tensor
    loss: float
    terms: dict[str, float] = field(default_factory=dict)


Network = Callable[[Tensor], Tensor]  # images to scores N x C, or logits N x C x H x W


def synthesise(
    teacher: Network,
    statistics: FeatureStatistics,
    start: Tensor,
    targets: Tensor,
    recipe: Recipe,
    bounds: tuple[Tensor, Tensor],
    draws: Callable[[int], Draw],
    student: Network | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    record: Callable[[Tensor], None] | None = None,
) -> Dreams:
    """Optimise one batch of images.

    Args:
        teacher: the frozen network, in evaluation mode.
        statistics: of its layers.
        start: N x 3 x H x W.
        targets: N int64, or label maps N x H x W with `pooling="dense"` (255 = anything).
        recipe: weights and phases.
        bounds: least and greatest value of each channel, 3 x 1 x 1.
        draws: random numbers of an iteration; given the greatest shift.
        student: for the competition.
        watch: told the number of updates so far and the terms, now and then.
        record: given the images before each update.
    """
    x = start.clone().requires_grad_()
    best = Dreams(start, math.inf)
    done = 0
    for phase in recipe.phases:
        optimizer = torch.optim.Adam([x], lr=recipe.lr, betas=phase.betas, eps=1e-8)
        lowest = torch.full((), math.inf, device=x.device)
        kept, kept_terms = x.detach().clone(), None
        for iteration in range(phase.iterations):
            if record is not None:
                record(x.detach())
            optimizer.param_groups[0]["lr"] = learning_rate(recipe.lr, iteration, phase.iterations)
            optimizer.zero_grad(set_to_none=True)
            draw = draws(recipe.jitter // phase.shrink)
            terms = _terms(x, phase, draw, teacher, statistics, targets, recipe, student)
            total = torch.stack(list(terms.values())).sum()
            values = torch.stack([*(term.detach() for term in terms.values()), total.detach()])
            with torch.no_grad():  # on the device: nothing waits
                better = total < lowest
                lowest = torch.where(better, total.detach(), lowest)
                kept = torch.where(better, x.detach(), kept)
                kept_terms = values if kept_terms is None else torch.where(better, values, kept_terms)
            total.backward()
            optimizer.step()
            if phase.clip:
                with torch.no_grad():
                    x.copy_(torch.minimum(torch.maximum(x, bounds[0]), bounds[1]))
            done += 1
            if watch is not None and (iteration % 20 == 0 or iteration == phase.iterations - 1):
                watch(done, dict(zip([*terms, "loss"], values.tolist(), strict=True)))
        if record is not None:
            record(x.detach())
        numbers = dict(zip([*terms, "loss"], kept_terms.tolist(), strict=True))
        if not lowest.isfinite():
            raise FloatingPointError(f"the losses of the dreams are no numbers ({numbers}): lower their learning rate")
        best = Dreams(kept, numbers.pop("loss"), numbers)
    return best


def _terms(
    x: Tensor, phase: Phase, draw: Draw, teacher: Network, statistics: FeatureStatistics, targets: Tensor,
    recipe: Recipe, student: Network | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Weighted terms of one iteration, by name."""
    seen = jitter(F.avg_pool2d(x, phase.shrink) if phase.shrink > 1 else x, draw)
    with statistics.watch():
        output = teacher(seen)
    output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    dense = recipe.pooling == "dense"
    height, width = seen.shape[-2:]
    wanted = jitter(targets[..., :: phase.shrink, :: phase.shrink][..., :height, :width], draw) if dense else targets
    scores = output if dense else pool(output, recipe.pooling, draw.beta)
    terms = {"class": recipe.classification * F.cross_entropy(scores, wanted, ignore_index=255)}
    tv_l1, tv_l2 = total_variation(seen)
    for name, weight, value in (("tv_l1", recipe.tv_l1, tv_l1), ("tv_l2", recipe.tv_l2, tv_l2)):
        if weight:
            terms[name] = weight * value
    if recipe.l2:
        terms["l2"] = recipe.l2 * image_norm(seen)
    if recipe.statistics:
        terms["statistics"] = recipe.statistics * statistics.loss()
    if recipe.competition and student is not None:
        pooling = "mean" if dense else recipe.pooling
        ours = pool(student(seen).to(scores.dtype), pooling, draw.beta)
        theirs = pool(output, pooling, draw.beta)
        n = min(ours.shape[1], theirs.shape[1])
        terms["competition"] = recipe.competition * competition(ours[:, :n], theirs[:, :n])
    return terms


def random_draws(generator: torch.Generator, flip: bool) -> Callable[[int], Draw]:
    """Random numbers of one iteration after the other."""

    def draw(most: int) -> Draw:
        offsets = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        chance, beta = torch.rand(2, generator=generator).tolist()
        return Draw(tuple(offsets), flip and chance < 0.5, beta)

    return draw


def pixel_bounds(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised values of black and white, 3 x 1 x 1 each; `mean`, `std` per channel in [0, 1]."""
    mean, std = (torch.tensor(list(values), device=device).view(3, 1, 1) for values in (mean, std))
    return -mean / std, (1 - mean) / std


def dense_targets(classes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A label map for each wanted class, N x H x W: an ellipse of it somewhere, anything (255) around it."""
    height, width = size
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    maps = []
    for c in classes.tolist():
        centre = torch.rand(2, generator=generator) - 0.5
        radii = 0.4 + 0.4 * torch.rand(2, generator=generator)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        maps.append(torch.where(inside, c, 255))
    return torch.stack(maps)
