from __future__ import annotations

import builtins
import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import download
import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.sparse import csc_matrix

from datamodules.download import inventory, sbd
from tests.datamodules.download.local_server import (
    SBD_TRAIN,
    SBD_VAL,
    SCRIPTS,
    VOC_COUNTS,
    VOC_TRAIN,
    VOC_VAL,
    LocalServer,
    Resource,
    md5,
    pack_tar,
    pack_zip,
    voc_files,
    write_tree,
)

TRAIN_AUG = sorted({*SBD_TRAIN, *SBD_VAL, *VOC_TRAIN} - {*VOC_VAL})
ALL = sorted({*SBD_TRAIN, *SBD_VAL, *VOC_TRAIN, *VOC_VAL})


def mask_of(name: str) -> np.ndarray:
    return np.random.default_rng(int(name.replace("_", ""))).integers(0, 21, (6, 8), dtype=np.uint8)


def mat(mask: np.ndarray) -> bytes:
    """A cls/*.mat as SBD's: a struct with a cell of sparse boundaries, the mask, and the classes that are present."""
    boundaries = np.empty((20, 1), dtype=object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix(mask == index + 1)
    present = np.setdiff1d(mask, 0)[:, None]
    buffer = io.BytesIO()
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    scipy.io.savemat(buffer, {"GTcls": content}, do_compression=True)
    return buffer.getvalue()


def sbd_files(prefix: str = "benchmark_RELEASE/dataset/") -> dict[str, bytes]:
    """The lists come after some masks, as the order in an archive is anyone's."""
    files = {f"cls/{name}.mat": mat(mask_of(name)) for name in SBD_TRAIN}
    files["train.txt"] = "".join(f"{name}\n" for name in SBD_TRAIN).encode()
    files["val.txt"] = "".join(f"{name}\n" for name in SBD_VAL).encode()
    files |= {f"cls/{name}.mat": mat(mask_of(name)) for name in SBD_VAL}
    files["inst/2008_000005.mat"] = files["img/2008_000005.jpg"] = b"not read"
    return {prefix + name: content for name, content in files.items()}


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    monkeypatch.setattr(inventory, "COUNTS", {"voc": VOC_COUNTS})
    monkeypatch.setattr(sbd, "COUNTS", {"voc": VOC_COUNTS})
    monkeypatch.setattr(inventory, "LISTS", {})
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def voc(tmp_path) -> Path:
    write_tree(tmp_path / "VOC2012", voc_files(""))
    return tmp_path / "VOC2012"


def run(capsys, root: Path, *arguments: object) -> tuple[int, str, str]:
    if "--sbd" in arguments and (source := arguments[arguments.index("--sbd") + 1]).is_file():
        arguments += ("--md5", md5(source.read_bytes()))
    code = download.main(["sbd", "--root", str(root), "--workers", "1", *map(str, arguments)])
    return code, *capsys.readouterr()


def put(tmp_path: Path, form: str, files: dict[str, bytes]) -> Path:
    if form == "folder":
        write_tree(tmp_path / "sbd", files)
        return tmp_path / "sbd"
    path = tmp_path / f"benchmark.{form}"
    path.write_bytes(pack_zip(files) if form == "zip" else pack_tar(files, "w:gz" if form == "tgz" else "w"))
    return path


def check_masks(voc: Path) -> None:
    masks = voc / "SegmentationClassAug"
    assert sorted(path.name for path in masks.glob("[!.]*")) == [f"{name}.png" for name in ALL]
    for name in ALL:
        with Image.open(masks / f"{name}.png") as image:
            assert image.mode == "P"
            found = np.asarray(image)
        if name in VOC_TRAIN + VOC_VAL:  # VOC's own wins, with its border
            with Image.open(voc / "SegmentationClass" / f"{name}.png") as image:
                np.testing.assert_array_equal(found, np.asarray(image))
            assert (found[0] == 255).all()
        else:
            np.testing.assert_array_equal(found, mask_of(name))
    assert (voc / "ImageSets/Segmentation/train_aug.txt").read_text().split() == TRAIN_AUG


@pytest.mark.parametrize("form", ["folder", "tar", "tgz", "zip"])
def test_masks_and_list(form, voc, tmp_path, capsys):
    source = put(tmp_path, form, sbd_files())
    code, out, _ = run(capsys, voc, "--sbd", source)
    assert code == 0
    assert "train_aug has 5 images" in out
    check_masks(voc)
    assert source.exists()
    assert download.main(["check", "voc", "--root", str(voc)]) == 0


@pytest.mark.parametrize("prefix", ["", "dataset/"])
def test_folders_that_people_have(prefix, voc, tmp_path, capsys):
    assert run(capsys, voc.parent, "--sbd", put(tmp_path, "folder", sbd_files(prefix)))[0] == 0
    check_masks(voc)


def test_in_several_processes(voc, tmp_path, capsys):
    assert run(capsys, voc, "--sbd", put(tmp_path, "tgz", sbd_files()), "--workers", 2)[0] == 0
    check_masks(voc)


def test_the_archive_is_downloaded_and_removed(voc, tmp_path, capsys):
    content = pack_tar(sbd_files(), "w:gz")
    server = LocalServer()
    server.files["/benchmark.tgz"] = Resource(content, drops=[1000])
    arguments = ["--url", server.url + "/benchmark.tgz", "--md5", md5(content)]
    assert run(capsys, voc, *arguments)[0] == 0
    check_masks(voc)
    assert not list(voc.glob("benchmark*"))
    server.seen.clear()
    assert run(capsys, voc, *arguments)[0] == 0  # nothing to do
    assert server.seen == []
    server.close()


def test_an_archive_on_disk_must_have_the_sum(voc, tmp_path, capsys):
    source = put(tmp_path, "tgz", sbd_files())
    code, _, err = run(capsys, voc, "--archive", source)
    assert code == 1
    assert "--md5" in err
    assert run(capsys, voc, "--archive", source, "--md5", md5(source.read_bytes()))[0] == 0
    check_masks(voc)
    assert source.exists()


def test_finished_masks_are_not_made_again(voc, tmp_path, capsys):
    source = put(tmp_path, "tgz", sbd_files())
    done = voc / "SegmentationClassAug" / "2008_000005.png"
    write_tree(voc, {"SegmentationClassAug/2008_000005.png": b"as it was"})
    write_tree(voc, {"SegmentationClassAug/.2009_000006.png.5e1f": b"half of a mask, by a run that was killed"})
    assert run(capsys, voc, "--sbd", source)[0] == 0
    assert done.read_bytes() == b"as it was"
    done.unlink()
    assert run(capsys, voc, "--sbd", source)[0] == 0
    check_masks(voc)


def test_kill_9_while_masks_are_made(voc, tmp_path, capsys, monkeypatch):
    source = put(tmp_path, "tgz", sbd_files())
    # A child that stops for ever at the second mask of SBD.
    program = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
import download
from datamodules.download import inventory, sbd
inventory.COUNTS["voc"] = sbd.COUNTS["voc"] = {VOC_COUNTS!r}
inventory.LISTS.clear()
convert = sbd.convert
def slow(job):
    if job[0].stem == "2009_000006":
        time.sleep(600)
    convert(job)
sbd.convert = slow
download.main(["sbd", "--root", {str(voc)!r}, "--workers", "1",
               "--sbd", {str(source)!r}, "--md5", {md5(source.read_bytes())!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (voc / "SegmentationClassAug" / "2008_000005.png").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()  # the list comes last
    assert run(capsys, voc, "--sbd", source)[0] == 0
    check_masks(voc)


def broken(files: dict[str, bytes], **changes: bytes | None) -> dict[str, bytes]:
    prefix = "benchmark_RELEASE/dataset/"
    for name, content in changes.items():
        path = prefix + (f"cls/{name[1:]}.mat" if name.startswith("_2") else f"{name}.txt")
        if content is None:
            del files[path]
        else:
            files[path] = content
    return files


ERRORS = {
    "no list": ({"val": None}, "dataset/val.txt"),
    "no mask": ({"_2009_000006": None}, "cls/2009_000006.mat"),
    "no .mat": ({"_2009_000006": b"not a mat file at all"}, "cls/2009_000006.mat"),
    "empty": ({"_2009_000006": b""}, "cls/2009_000006.mat"),
    "a class too many": ({"_2009_000006": mat(np.full((4, 4), 21, np.uint8))}, "from 0 to 20"),
    "real numbers": ({"_2009_000006": mat(np.ones((4, 4)))}, "from 0 to 20"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_masks_are_named(name, voc, tmp_path, capsys):
    changes, words = ERRORS[name]
    code, _, err = run(capsys, voc, "--sbd", put(tmp_path, "tgz", broken(sbd_files(), **changes)))
    assert code == 1
    assert err.count("error: ") == 1
    assert words in err
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()


def test_a_mask_whose_name_leads_out_is_not_written(voc, tmp_path, capsys):
    files = sbd_files() | {"benchmark_RELEASE/dataset/cls/..mat": b"", "../cls/evil.mat": b""}
    assert run(capsys, voc, "--sbd", put(tmp_path, "tgz", files))[0] == 0
    check_masks(voc)
    assert not list(tmp_path.rglob("*evil*"))


def test_voc_comes_first(tmp_path, capsys):
    code, out, err = run(capsys, tmp_path / "VOC2012", "--sbd", put(tmp_path, "tgz", sbd_files()))
    assert code == 1
    assert "`download.py voc`" in err
    assert "train.txt: 0 of 2" in out


def test_another_list_is_not_overwritten(voc, tmp_path, capsys):
    write_tree(voc, {"ImageSets/Segmentation/train_aug.txt": b"2007_000001\n"})
    code, _, err = run(capsys, voc, "--sbd", put(tmp_path, "tgz", sbd_files()))
    assert code == 1
    assert "train_aug.txt holds 1 other ids" in err
    assert (voc / "ImageSets/Segmentation/train_aug.txt").read_text() == "2007_000001\n"


@pytest.mark.parametrize("content", [b"hello", pack_tar({"x": b"y" * 99999}, "w:gz")[:60]], ids=["text", "cut"])
def test_what_is_no_archive(content, voc, tmp_path, capsys):
    path = tmp_path / "b.tgz"
    path.write_bytes(content)
    code, _, err = run(capsys, voc, "--sbd", path)
    assert code == 1
    assert "b.tgz is damaged" in err


def test_a_folder_without_masks(voc, tmp_path, capsys):
    code, _, err = run(capsys, voc, "--sbd", voc)
    assert code == 1
    assert "holds no folder cls" in err


def test_without_scipy_the_extra_is_named(voc, capsys, monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = run(capsys, voc)  # no --sbd: it fails before it would download
    assert code == 1
    assert '".[sbd]"' in err


def test_the_palette_is_voc_s():
    colors = sbd.color_map()
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for value, color in (published | {255: (224, 224, 192)}).items():
        assert tuple(colors[value]) == color


@pytest.mark.data
def test_the_palette_of_the_real_masks(real_data):
    with tarfile.open(real_data / "voc2012" / "SegmentationClassAug.tar") as tar:
        info = next(member for member in tar if member.name.endswith(".png"))
        with Image.open(tar.extractfile(info)) as image:
            palette = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette, sbd.color_map()[: len(palette)])
