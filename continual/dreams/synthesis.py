"""Images that a trained network dreams: DeepInversion (Yin et al., CVPR 2020), and its use for segmentation.

Pixels x, at first N(0, 1) in the network's normalised space, are trained so that the frozen teacher sees a class:

    loss = class CE(s(J(x)), class) + tv_l2 TV2 + tv_l1 TV1 + statistics R_f + l2 R_2 + competition R_adi

J shifts (and mirrors) the images at random. For segmentation the logits z are pooled to one score per class, as in the
report on MiB with DeepInversion ("LSE-LBA", `lse_lba`), or compared pixel by pixel with a random label map ("dense").
    TV2   sum over four directions of the norm of the differences of the whole batch; TV1: of their mean magnitude
    R_f   over normalisation layers: |running var - var| + |running mean - mean| of the layer's input; the first one
          counts `first_layer` times
    R_2   mean norm of an image
    R_adi 1 - the divergence of teacher and student, whose disagreement is wanted

Reproduced, of the authors' code: the reversed divergence and its clamps, the norm over the whole batch, the schedule.
Corrected: "best" is the image that had the loss, not its successor, and losses at different resolutions are not
compared; background is not dreamed of; any number of classes; PNG; any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.dreams.recipe import Phase, Recipe
from continual.dreams.terms import (
    FeatureStatistics,
    RandomNumbers,
    competition,
    image_norm,
    jitter,
    pool,
    total_variation,
)

WARM_UP = 100  # iterations


def learning_rate(base: float, iteration: int, total: int) -> float:
    """Linear over the first 100 iterations, then half a cosine."""
    if iteration < WARM_UP:
        return base * (iteration + 1) / WARM_UP
    return base / 2 * (1 + math.cos(math.pi * (iteration - WARM_UP) / (total - WARM_UP)))


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
    random_numbers: Callable[[int], RandomNumbers],
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
        random_numbers: gives those of an iteration; called with the greatest shift.
        student: for the competition.
        watch: called now and then with the number of updates so far and the terms.
        record: called with the images before each update, and after each phase.
    """
    x = start.clone().requires_grad_()
    dreams, done = Dreams(start, math.inf), 0
    for phase in recipe.phases:
        optimizer = torch.optim.Adam([x], lr=recipe.lr, betas=phase.betas, eps=1e-8)
        best = _Best(x)
        for iteration in range(phase.iterations):
            if record is not None:
                record(x.detach())
            optimizer.param_groups[0]["lr"] = learning_rate(recipe.lr, iteration, phase.iterations)
            numbers = random_numbers(recipe.jitter // phase.shrink)
            terms = _terms(x, phase, numbers, teacher, statistics, targets, recipe, student)
            loss = torch.stack(list(terms.values())).sum()
            names, values = [*terms, "loss"], torch.stack([*terms.values(), loss]).detach()
            best.offer(x, values)
            _update(x, loss, optimizer, bounds if phase.clip else None)
            done += 1
            if watch is not None and (iteration % 20 == 0 or iteration == phase.iterations - 1):
                watch(done, dict(zip(names, values.tolist(), strict=True)))
        if record is not None:
            record(x.detach())
        dreams = best.dreams(names)
    return dreams


class _Best:
    """The images of a phase that had the lowest loss. All stays on the device, so that nothing waits for it."""

    def __init__(self, x: Tensor) -> None:
        """Args: `x`: the images at the beginning."""
        self.images = x.detach().clone()
        self.lowest = torch.full((), math.inf, device=x.device)
        self.values: Tensor | None = None

    @torch.no_grad()
    def offer(self, x: Tensor, values: Tensor) -> None:
        """Keep images where the loss is lower than any before; `values`: their terms, and last the loss."""
        better = values[-1] < self.lowest
        self.lowest = torch.where(better, values[-1], self.lowest)
        self.images = torch.where(better, x, self.images)
        self.values = values if self.values is None else torch.where(better, values, self.values)

    def dreams(self, names: Sequence[str]) -> Dreams:
        """The images with their numbers; `names`: of the values.

        Raises:
            FloatingPointError: no loss was a number.
        """
        assert self.values is not None  # a phase has at least one iteration
        numbers = dict(zip(names, self.values.tolist(), strict=True))
        if not self.lowest.isfinite():
            raise FloatingPointError(
                f"the losses of the dreams are no numbers ({numbers}): lower their learning rate or weights"
            )
        return Dreams(self.images, numbers.pop("loss"), numbers)


def _update(x: Tensor, loss: Tensor, optimizer: torch.optim.Optimizer, bounds: tuple[Tensor, Tensor] | None) -> None:
    """A step of the pixels, which stay between the bounds where there are some."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if bounds is not None:
        with torch.no_grad():
            x.copy_(torch.minimum(torch.maximum(x, bounds[0]), bounds[1]))


def _terms(
    x: Tensor, phase: Phase, numbers: RandomNumbers, teacher: Network, statistics: FeatureStatistics, targets: Tensor,
    recipe: Recipe, student: Network | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Weighted terms of one iteration, by name."""
    seen = jitter(F.avg_pool2d(x, phase.shrink) if phase.shrink > 1 else x, numbers)
    with statistics.watch():
        output = teacher(seen)
    output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    dense = recipe.pooling == "dense"
    height, width = seen.shape[-2:]
    wanted = jitter(targets[..., :: phase.shrink, :: phase.shrink][..., :height, :width], numbers) if dense else targets
    scores = output if dense else pool(output, recipe.pooling, numbers.beta)
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
        ours = pool(student(seen).to(scores.dtype), pooling, numbers.beta)
        theirs = pool(output, pooling, numbers.beta)
        n = min(ours.shape[1], theirs.shape[1])
        terms["competition"] = recipe.competition * competition(ours[:, :n], theirs[:, :n])
    return terms


def random_numbers_of(generator: torch.Generator, flip: bool) -> Callable[[int], RandomNumbers]:
    """A function that gives the random numbers of one iteration after the other."""

    def numbers(most: int) -> RandomNumbers:
        offsets = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        chance, beta = torch.rand(2, generator=generator).tolist()
        return RandomNumbers(tuple(offsets), flip and chance < 0.5, beta)

    return numbers


def pixel_bounds(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised values of black and white, 3 x 1 x 1 each; `mean`, `std` per channel in [0, 1]."""
    centre, deviation = (torch.tensor(list(values), device=device).view(3, 1, 1) for values in (mean, std))
    return -centre / deviation, (1 - centre) / deviation


def dense_targets(classes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A label map for each wanted class, N x H x W: a random ellipse of the class, and around it anything (255)."""
    height, width = size
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    maps = []
    for c in classes.tolist():
        centre = torch.rand(2, generator=generator) - 0.5
        radii = 0.4 + 0.4 * torch.rand(2, generator=generator)
        inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        maps.append(torch.where(inside, c, 255))
    return torch.stack(maps)
