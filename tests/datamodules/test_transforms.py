from __future__ import annotations

import pickle
import random

import albumentations as A
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.base import DataError
from datamodules.geometry import Window, sample_window, scale_crop_layout
from datamodules.transforms import (
    Augmentation,
    CenterCrop,
    Identity,
    RandomResizedCrop,
    ResizeImage,
    ScaleCrop,
    ShrinkCrop,
    resize_image,
    resize_mask,
)
from tests.conftest import ROOT
from tests.vectors import cases, golden_files, variants

MIB = ((0.5, 2.0), (3 / 4, 4 / 3))  # scale, ratio
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))


class Draws:
    """A source of random numbers that were drawn before."""

    def __init__(self, uniform, integers):
        self.uniforms, self.integers = list(uniform), list(integers)

    def uniform(self, low, high):
        assert low <= self.uniforms[0] <= high
        return self.uniforms.pop(0)

    def randint(self, low, high):
        assert low <= self.integers[0] <= high
        return self.integers.pop(0)

    def used_up(self):
        return not self.uniforms and not self.integers


def normalised(image):
    return ((image / 255 - MEAN) / STD).transpose(2, 0, 1)


def picture(height, width, seed=0):
    """A smooth image and a mask in patches of the labels 0-5 and 255."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    patches = rng.choice(np.array([0, 1, 2, 3, 4, 5, 255], np.uint8), (5, 6))
    return image, np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


def interleaved(v):
    """Area and aspect of each attempt, in the order in which they are drawn."""
    areas = v["area_fraction"] if "area_fraction" in v else v["area_frac"]
    return np.stack((areas, v["log_ratio"]), 1).ravel()


def test_window_from_given_draws_is_mibs(golden):
    """Also where no attempt fits, and no integers are drawn."""
    for v in cases(golden("mib_crop")):
        draws = Draws(interleaved(v), v["offsets_ij"])
        width, height = map(int, v["size_wh"])
        assert sample_window(height, width, draws, *MIB) == tuple(v["ijhw"])
        assert draws.used_up()


def test_window_and_flip_from_a_seed_are_those_of_the_papers_code(golden):
    for seed, width, height, top, left, h, w, flip in golden("bacs_augment")["params"].tolist():
        source = random.Random(seed)
        assert sample_window(height, width, source, *MIB) == (top, left, h, w)
        assert (source.random() < 0.5) == flip


@pytest.mark.parametrize("name", golden_files("mib_valtf*", "mbs_transforms*", "dkd_transforms*"))
def test_center_crop_is_the_papers_evaluation(golden, name):
    for v in cases(golden(name)):
        image, label = CenterCrop(int(v["crop"]))(v["image"], v["label"])
        want, want_label = (v["val_out"], v["val_label"]) if "val_out" in v else (v["out"], v["out_label"])
        np.testing.assert_allclose(normalised(image), want, atol=2e-6)
        np.testing.assert_array_equal(label, want_label)


def test_center_crop_takes_the_same_mask_pixels_as_the_papers_code(golden):
    vectors = golden("bacs_augment")
    for name in variants(vectors, r"mask_val(\d+_\d+x\d+)"):
        crop, size = name.split("_")
        mask = vectors[f"mask_in_{size}"]
        _, label = CenterCrop(int(crop))(np.zeros((*mask.shape, 3), np.uint8), mask)
        np.testing.assert_array_equal(label, vectors[f"mask_val{name}"])


def test_random_resized_crop_with_pils_filter_is_dkds(golden):
    for v in cases(golden("dkd_transforms")):
        crop = RandomResizedCrop(int(v["crop"]), interpolation="pil")
        crop.py_random = Draws(interleaved(v), v["offsets"])
        window = crop.get_params_dependent_on_data({"shape": v["image"].shape}, {})["window"]
        assert window == tuple(v["box_ijhw"])
        compare_training(v, crop.apply(v["image"], window), crop.apply_to_mask(v["label"], window))


@pytest.mark.parametrize("name", golden_files("mbs_transforms*", "ssul_transforms*"))
def test_scale_crop_with_pils_filter_is_that_of_mbs_and_ssul(golden, name):
    for v in cases(golden(name)):
        crop = ScaleCrop(int(v["crop"]), resize_short=name.startswith("mbs"), pad_label=0, interpolation="pil")
        crop.py_random = Draws([float(v["scale"])], v["top_left"])
        layout = crop.get_params_dependent_on_data({"shape": v["image"].shape}, {})["layout"]
        compare_training(v, crop.apply(v["image"], layout), crop.apply_to_mask(v["label"], layout))
        if "sal" in v:
            np.testing.assert_array_equal(flipped(v, crop.apply_to_mask(v["sal"], layout)), v["out_sal"])


def flipped(v, pixels):
    return pixels[:, ::-1] if v["flip_u"] < 0.5 else pixels


def compare_training(v, image, label):
    np.testing.assert_allclose(normalised(flipped(v, image)), v["out"], atol=2e-6)
    np.testing.assert_array_equal(flipped(v, label), v["out_label"])


sides = st.integers(1, 90)


@given(sides, sides, sides, sides, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_masks_take_the_pixels_that_pil_takes(height, width, new_height, new_width, seed):
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    want = Image.fromarray(mask).resize((new_width, new_height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_mask(mask, new_height, new_width), want)


def test_enlarging_with_opencv_is_within_one_grey_level_of_pil():
    image, _ = picture(37, 50)
    a, b = (resize_image(image, 64, 77, kind).astype(int) for kind in ("cv2", "pil"))
    assert 0 < np.abs(a - b).max() <= 1


def test_shrinking_with_opencv_averages():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checks[..., None], 3, 2).astype(np.uint8)
    assert set(np.unique(resize_image(image, 16, 16, "cv2"))) <= {127, 128}


TRAINING = {
    "random_resized_crop": lambda size: Augmentation(crop=RandomResizedCrop(size), flip=A.HorizontalFlip(p=0.5)),
    "scale_crop": lambda size: Augmentation(crop=ScaleCrop(size), flip=A.HorizontalFlip(p=0.5)),
    "scale_crop from the native size": lambda size: Augmentation(crop=ScaleCrop(size, resize_short=False)),
}


@pytest.mark.parametrize("name", TRAINING)
@given(sides, sides, st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_any_size_gives_a_square_without_new_labels(name, height, width, size, seed):
    image, mask = picture(height, width, seed)
    before = image.copy(), mask.copy()
    new_image, new_mask = TRAINING[name](size)(image, mask, seed)
    assert new_image.shape == (size, size, 3)
    assert new_mask.shape == (size, size)
    assert new_image.dtype == new_mask.dtype == np.uint8  # trap 5: int64 masks come back as int32
    assert set(np.unique(new_mask)) <= set(np.unique(mask)) | {255}
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_image_and_mask_move_together():
    mask = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((20, 20), np.uint8)) * 20
    image = np.repeat(mask[..., None], 3, 2)
    for build in TRAINING.values():
        for seed in range(10):
            new_image, new_mask = build(48)(image, mask, seed)
            inside = new_mask != 255
            agree = np.abs(new_image[inside][:, 0].astype(int) - new_mask[inside]) <= 10  # half a step of the labels
            assert agree.mean() > 0.9


@given(sides, sides, st.integers(2, 70), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_scale_crop_of_the_visible_part_is_that_of_the_whole(height, width, size, resize_short, seed):
    rows = np.linspace(0, 250, height)[:, None].repeat(width, 1)
    image = np.repeat(rows[..., None], 3, 2).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    crops = [ScaleCrop(size, resize_short=resize_short, interpolation=kind) for kind in ("cv2", "pil")]
    fast, exact = (Augmentation(crop=crop)(image, mask, seed) for crop in crops)
    np.testing.assert_array_equal(fast[1], exact[1])  # the same padding
    heights = [h for h, _ in crops[0].params["layout"].sizes]
    step = 250 / max(min(height, *heights) - 1, 1)  # grey levels between neighbours
    assert np.abs(fast[0].astype(int) - exact[0]).max() <= 1.5 * step + 3


def test_padding_is_ignored_and_has_the_given_colour():
    image, mask = np.full((20, 30, 3), 200, np.uint8), np.zeros((20, 30), np.uint8)
    crop = ScaleCrop(64, scale=(1.0, 1.0), resize_short=False, pad_image=(0.485, 0.456, 0.406))
    new_image, new_mask = Augmentation(crop=crop)(image, mask, 0)
    padded = new_mask == 255
    assert (~padded).sum() == 20 * 30
    assert np.unique(new_image[padded], axis=0).tolist() == [[124, 116, 104]]
    assert (new_image[~padded] == 200).all()


def test_scale_of_both_crops_is_as_documented():
    source = random.Random(0)
    windows = [sample_window(375, 500, source, *MIB) for _ in range(500)]
    fractions = [w.height * w.width / (375 * 500) for w in windows]
    assert min(fractions) < 0.52
    assert max(fractions) > 0.98  # areas above 1, which RandomResizedCrop of albumentations rejects (trap 3)
    heights = [scale_crop_layout(375, 500, 512, source, (0.5, 2.0), True).sizes[-1][0] for _ in range(500)]
    assert min(heights) in range(256, 270)
    assert max(heights) in range(1000, 1025)


def test_the_same_seed_gives_the_same_sample_whatever_came_before():
    image, mask = picture(60, 80)
    for build in TRAINING.values():
        one, other = build(32), build(32)
        for seed in (1, 2, 3):
            other(image, mask, seed)
        for a, b in zip(one(image, mask, 7), other(image, mask, 7), strict=True):
            np.testing.assert_array_equal(a, b)
        assert len({one(image, mask, seed)[0].tobytes() for seed in range(8)}) == 8


def test_global_random_numbers_are_neither_read_nor_drawn():
    image, mask = picture(60, 80)
    transform = TRAINING["scale_crop"](32)
    outputs = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        states = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
        outputs.append(transform(image, mask, 5)[0].tobytes())
        assert states == (random.getstate(), np.random.get_state()[1].tobytes())  # noqa: NPY002
    assert outputs[0] == outputs[1]


def test_transforms_of_one_pipeline_draw_independently():
    """`Compose.set_random_seed` gives every transform the same numbers: both flips or none."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    flips = Augmentation(horizontal=A.HorizontalFlip(p=0.5), vertical=A.VerticalFlip(p=0.5))
    corners = [int(flips(image, mask, seed)[1][0, 0]) for seed in range(200)]
    assert all(corners.count(c) > 25 for c in range(4))


def test_half_of_the_images_are_flipped_whatever_the_window():
    columns = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    image = np.repeat(columns[..., None], 3, 2)
    transform = TRAINING["random_resized_crop"](16)
    flips, lefts = [], []
    for seed in range(300):
        _, mask = transform(image, columns, seed)
        flips.append(mask[0, 0] > mask[0, -1])
        lefts.append(min(mask[0, 0], mask[0, -1]))
    assert 110 < sum(flips) < 190
    assert abs(np.corrcoef(flips, lefts)[0, 1]) < 0.2


def test_a_transform_that_fills_masks_with_a_class_is_refused():
    with pytest.raises(DataError, match=r"dataset\.augmentation\.turn fills masks with 0.*fill_mask=255"):
        Augmentation(turn=A.Rotate(limit=20))
    Augmentation(turn=A.Rotate(limit=20, fill_mask=255))


def test_an_unknown_interpolation_is_refused():
    for crop in (RandomResizedCrop, ScaleCrop):
        with pytest.raises(DataError, match=r"interpolation=lanczos in dataset\.augmentation is neither cv2 nor pil"):
            crop(8, interpolation="lanczos")


def test_identity_changes_nothing():
    image, mask = picture(20, 30)
    new_image, new_mask = Identity()(image, mask, 3)
    assert new_image is image
    assert new_mask is mask


def test_transforms_travel_to_loader_processes():
    image, mask = picture(40, 40)
    transform = TRAINING["scale_crop"](16)
    copy = pickle.loads(pickle.dumps(transform))
    np.testing.assert_array_equal(copy(image, mask, 1)[0], transform(image, mask, 1)[0])


@pytest.fixture
def configured():
    def build(group, choice):
        with initialize_config_dir(str(ROOT / "conf" / "dataset"), version_base="1.3"):
            config = compose(
                overrides=[f"+{group}@dataset.{group}={choice}", "+dataset.crop_size=24", "+dataset.mean=[0.5,0.4,0.3]"]
            )
        return instantiate(config.dataset[group], _convert_="all")

    return build


@pytest.mark.parametrize("choice", ["random_resized_crop", "scale_crop", "flip", "none"])
def test_configured_augmentations(configured, choice):
    image, mask = picture(40, 50)
    new_image, new_mask = configured("augmentation", choice)(image, mask, 3)
    assert new_mask.shape == ((24, 24) if "crop" in choice else (40, 50))
    assert new_image.shape[:2] == new_mask.shape


def test_configured_ratio_is_exactly_mibs(configured):
    crop = configured("augmentation", "random_resized_crop").pipeline.transforms[0]
    assert (crop.scale, crop.ratio) == MIB
    assert sample_window(375, 500, random.Random(1), crop.scale, crop.ratio) == sample_window(
        375, 500, random.Random(1), *MIB
    )


@pytest.mark.parametrize(("choice", "shape"), [("center_crop", (24, 24)), ("full", (40, 50))])
def test_configured_evaluations(configured, choice, shape):
    image, mask = picture(40, 50)
    new_image, new_mask = configured("evaluation", choice)(image, mask, 0)
    assert new_mask.shape == shape
    assert new_image.shape[:2] == shape


def test_windows_of_images_smaller_than_the_crop():
    assert sample_window(1, 1, random.Random(0), *MIB) == Window(0, 0, 1, 1)


@pytest.mark.parametrize("interpolation", ["pil", "cv2"])
def test_shrunk_windows(interpolation):
    """Window of the wanted size, labels where the image has them, every place and factor reached."""
    image = np.zeros((60, 120, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(120), 4 * np.arange(60)[:, None]
    mask = (np.arange(120) // 2).astype(np.uint8)[None].repeat(60, 0)
    crop = ShrinkCrop(48, 96, (1.0, 1.5), 20, 40, interpolation)
    lefts, widths = set(), set()
    for seed in range(40):
        got, label = Augmentation(crop=crop)(image, mask, seed)
        assert (got.shape, label.shape) == ((20, 40, 3), (20, 40))
        np.testing.assert_allclose(got[:, 2:-2, 0] // 2, label[:, 2:-2], atol=2)
        lefts.add(int(label[0, 0]))
        widths.add(int(label[0, -1]) - int(label[0, 0]))
    assert len(lefts) > 10
    assert min(widths) <= 26  # 40 of 96 pixels are 25 labels, 40 of 64 are 37
    assert max(widths) >= 33


def test_the_interpolations_of_shrunk_windows_agree():
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 255, (4, 8, 3), dtype=np.uint8), 32, 0), 32, 1)
    mask = np.ascontiguousarray(image[..., 0])
    fast, slow = (Augmentation(crop=ShrinkCrop(96, 192, (1.0, 1.5), 40, 80, kind)) for kind in ("cv2", "pil"))
    for seed in range(5):
        (image_a, mask_a), (image_b, mask_b) = fast(image, mask, seed), slow(image, mask, seed)
        assert (mask_a == mask_b).mean() > 0.9  # borders may lie a pixel apart
        assert np.abs(image_a.astype(int) - image_b).mean() < 8


def test_windows_that_do_not_fit_are_refused():
    for arguments in ((48, 96, (1.0, 1.5), 33, 40), (48, 96, (1.0, 1.5), 20, 65), (48, 96, (0.5, 1.0), 20, 40)):
        with pytest.raises(DataError, match=r"dataset\.augmentation: a window of .* does not fit into 48 x 96"):
            ShrinkCrop(*arguments)


def test_the_jitter_of_cil_has_an_order_and_its_ranges():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["dataset=cityscapes", "dataset.root=x", "dataset/augmentation=shrink_crop"])
    pipeline = instantiate(config.dataset.augmentation, _convert_="all").pipeline
    assert list(config.dataset.augmentation)[1:] == ["flip", "crop", "brightness", "contrast", "saturation", "hue"]
    ranges = [
        {name: tuple(getattr(t, name)) for name in ("brightness", "contrast", "saturation", "hue")}
        for t in pipeline.transforms[2:]
    ]
    assert [{k: v for k, v in r.items() if v not in ((1, 1), (0, 0))} for r in ranges] == [
        {"brightness": (0.8, 1.2)}, {"contrast": (0.8, 1.2)}, {"saturation": (0.8, 1.2)}, {"hue": (-0.1, 0.1)},
    ]  # fmt: skip


def test_images_at_one_size_and_masks_as_they_are():
    image, mask = np.zeros((30, 40, 3), np.uint8), np.arange(1200, dtype=np.uint16).astype(np.uint8).reshape(30, 40)
    got, label = ResizeImage(16, 24)(image, mask)
    assert got.shape == (16, 24, 3)
    assert label is mask
