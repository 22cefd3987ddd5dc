from __future__ import annotations

import getpass
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import download
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import voc as voc2012
from datamodules.download import inventory, session, transfer
from tests.datamodules.download.local_server import (
    SCRIPTS,
    VOC_COUNTS,
    VOC_TRAIN,
    LocalServer,
    Resource,
    md5,
    pack_tar,
    pack_zip,
    voc_files,
    write_tree,
)
from tests.datamodules.trees import NO_FILE, put, voc_tree

TAR = pack_tar(voc_files())
NAME = "VOCtrainval_11-May-2012.tar"


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """Small data sets, no waiting, no proxy, no account of the machine."""
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    monkeypatch.setattr(session, "TIMEOUT", 5.0)
    counts = {"voc": VOC_COUNTS, "ade20k": {"training": 2, "validation": 1}, "cityscapes": {"train": 2, "val": 1}}
    monkeypatch.setattr(inventory, "COUNTS", counts)
    monkeypatch.setattr(inventory, "LISTS", {})
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("CITYSCAPES"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    local = LocalServer()
    yield local
    local.close()


@pytest.fixture
def voc(server, tmp_path, capsys):
    """Run `download.py voc` against the server: exit code, stdout, stderr."""

    def run(*arguments: str, paths: tuple[str, ...] = ("/voc.tar",), content: bytes = TAR):
        urls = [server.url + path for path in paths]
        code = download.main(["voc", "--root", str(tmp_path), "--url", *urls, "--md5", md5(content), *arguments])
        return code, *capsys.readouterr()

    return run


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


COMPLETE = voc_files("VOC2012/")


def one_error(result, *words: str) -> str:
    """The error is one line on stderr and names what it must."""
    code, _, stderr = result
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 1
    assert len(lines) == 1
    assert "Traceback" not in stderr
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_voc_arrives_whole_and_nothing_else_is_left(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    code, stdout, _ = voc()
    assert code == 0
    assert f"dataset.root={tmp_path / 'VOC2012'}" in stdout
    assert tree(tmp_path) == COMPLETE
    server.seen.clear()
    assert voc()[0] == 0
    assert server.seen == []  # what is there is not downloaded again


@pytest.mark.parametrize("nested", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_in_the_layouts_that_people_have(server, voc, tmp_path, nested):
    write_tree(tmp_path / nested, voc_files(""))
    assert voc()[0] == 0
    assert server.seen == []


def test_a_root_that_carries_the_name_is_filled_itself(server, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    root = tmp_path / "VOC2012"
    assert download.main(["voc", "--root", str(root), "--url", server.url + "/voc.tar", "--md5", md5(TAR)]) == 0
    assert tree(tmp_path) == COMPLETE


def test_an_archive_that_was_kept_is_used_again(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    assert voc("--keep-archive")[0] == 0
    assert (tmp_path / NAME).read_bytes() == TAR
    shutil.rmtree(tmp_path / "VOC2012")
    server.seen.clear()
    assert voc()[0] == 0
    assert server.seen == []


def test_an_incomplete_folder_is_completed_and_own_files_stay(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    mine = {"VOC2012/SegmentationClass/2007_000001.png": b"mine", "VOC2012/note": b"x"}
    write_tree(tmp_path, mine)
    assert voc()[0] == 0
    assert tree(tmp_path) == COMPLETE | mine


def test_a_broken_connection_is_taken_up_where_it_broke(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, etag='"1"', drops=[70_000, 10, 30_000])
    assert voc()[0] == 0
    assert tree(tmp_path) == COMPLETE
    starts = [int((text or "bytes=0-")[6:-1]) for text in server.ranges()]
    assert starts == [0, 70_000, 70_010, 100_010]
    assert [seen.headers.get("If-Range") for seen in server.seen] == [None, '"1"', '"1"', '"1"']


def test_without_ranges_it_starts_again(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, ranges=False, drops=[70_000, 30_000])
    assert voc()[0] == 0
    assert tree(tmp_path) == COMPLETE


def test_a_server_that_always_breaks_off_is_given_up(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, ranges=False, drops=[5000] * 50)
    one_error(voc(), "sent 5000 of", "attempts", "--url", "--archive")
    assert not (tmp_path / "VOC2012").exists()


def test_progress_resets_the_count_of_failures(server, voc):
    server.files["/voc.tar"] = Resource(TAR, drops=[1000] * 3 * transfer.ATTEMPTS)
    assert voc()[0] == 0


def interrupted_download(server, voc, **traits) -> Resource:
    """Leave a piece of 70,000 bytes on the disk."""
    server.files["/voc.tar"] = Resource(TAR, drops=[70_000] + [0] * transfer.ATTEMPTS, **traits)
    one_error(voc())
    server.seen.clear()
    server.files["/voc.tar"].drops = []
    return server.files["/voc.tar"]


CHANGED = pack_tar({**voc_files(), "VOCdevkit/VOC2012/more": b"more" * 9999})


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("traits", [{"etag": '"1"'}, {"modified": "Fri, 11 May 2012 00:00:00 GMT"}])
def test_a_changed_file_starts_again(server, voc, tmp_path, traits, honest):
    resource = interrupted_download(server, voc, **traits)
    resource.content, resource.honest = CHANGED, honest
    for name in traits:
        setattr(resource, name, '"2"' if name == "etag" else "Sat, 12 May 2012 00:00:00 GMT")
    assert voc(content=CHANGED)[0] == 0
    assert (tmp_path / "VOC2012" / "more").exists()
    assert server.ranges()[0] == "bytes=70000-"
    assert not list(tmp_path.glob("*.bad"))


def test_a_changed_file_is_found_by_its_length(server, voc):
    resource = interrupted_download(server, voc)
    resource.content = CHANGED
    assert voc(content=CHANGED)[0] == 0
    assert server.ranges() == ["bytes=70000-", None]


def test_a_changed_file_of_the_same_length_is_found_by_the_sum(server, voc, tmp_path):
    other = TAR.replace(b"2007_000001\n2007_000002", b"2007_000002\n2007_000001")
    assert len(other) == len(TAR)
    assert other != TAR
    resource = interrupted_download(server, voc)
    resource.content = other
    assert voc(content=other)[0] == 0
    assert server.ranges() == ["bytes=70000-", None]


def test_a_file_that_shrank_starts_again(server, voc):
    resource = interrupted_download(server, voc)
    small = pack_tar({k: v[:5000] for k, v in voc_files().items()})
    assert len(small) < 70_000
    resource.content = small
    assert voc(content=small)[0] == 0
    assert server.ranges() == ["bytes=70000-", None]  # 416 first


def test_a_piece_goes_on_at_another_server(server, voc):
    interrupted_download(server, voc)
    server.files["/voc.tar"].status = 403
    server.files["/mirror.tar"] = Resource(TAR)
    assert voc(paths=("/voc.tar", "/mirror.tar"))[0] == 0
    assert server.ranges() == ["bytes=70000-", "bytes=70000-"]


def test_a_piece_without_a_record_is_not_trusted(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    (tmp_path / f"{NAME}.part").write_bytes(b"what is this")
    assert voc()[0] == 0
    assert server.ranges() == [None]


def test_kill_9_in_the_middle_then_the_same_command(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, etag='"1"', delay=0.05)
    command = [sys.executable, str(SCRIPTS / "download.py"), "voc", "--root", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--url", server.url + "/voc.tar", "--md5", md5(TAR)], stderr=subprocess.DEVNULL, text=True
    )
    part = tmp_path / f"{NAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 20_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    size = part.stat().st_size
    assert size < len(TAR)
    assert not (tmp_path / "VOC2012").exists()
    server.files["/voc.tar"].delay = 0
    server.seen.clear()
    assert voc()[0] == 0
    assert server.ranges() == [f"bytes={size}-"]
    assert tree(tmp_path) == COMPLETE


def test_what_a_killed_unpacking_left_is_swept_away(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    write_tree(tmp_path, {".VOC2012.unpacking/JPEGImages/half.jpg": b"half"})
    assert voc()[0] == 0
    assert tree(tmp_path) == COMPLETE


@settings(max_examples=25, deadline=None)
@given(
    drops=st.lists(st.integers(0, 60_000), max_size=8),
    ranges=st.booleans(),
    etag=st.sampled_from([None, '"1"', 'W/"1"']),
)
def test_whatever_breaks_the_bytes_are_right_or_none_are_given(drops, ranges, etag):
    server = LocalServer()
    content = bytes(range(256)) * 600
    server.files["/f"] = Resource(content, drops=list(drops), ranges=ranges, etag=etag)
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "f"
            try:
                transfer.download([server.url + "/f"], target, md5=md5(content), session=session.Session())
            except transfer.AcquisitionError:
                assert not target.exists()
                assert len(drops) >= transfer.ATTEMPTS
            else:
                assert target.read_bytes() == content
                assert os.listdir(folder) == ["f"]
    finally:
        server.close()


def test_a_wrong_length_is_an_error(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, length=len(TAR) + 10, ranges=False)
    one_error(voc(), f"of {len(TAR) + 10} bytes")
    assert not (tmp_path / "VOC2012").exists()
    (tmp_path / f"{NAME}.part").unlink()
    server.files["/voc.tar"] = Resource(TAR, length=len(TAR) - 10)
    one_error(voc(), "md5")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_goes_to_the_next_server_at_once(server, voc, tmp_path, status):
    server.files["/a"] = Resource(status=status)
    server.files["/b"] = Resource(TAR)
    assert voc(paths=("/a", "/b"))[0] == 0
    assert [seen.path for seen in server.seen] == ["/a", "/b"]


def test_a_web_page_is_no_file(server, voc):
    server.files["/blocked"] = Resource(b"<html>blocked by firewall policy</html>", kind="text/html")
    server.files["/b"] = Resource(TAR)
    assert voc(paths=("/blocked", "/b"))[0] == 0
    assert [seen.path for seen in server.seen] == ["/blocked", "/b"]


def test_when_all_servers_fail_each_is_named(server, voc):
    server.files["/page"] = Resource(b"<html>", kind="text/html")
    one_error(voc(paths=("/gone", "/page")), "/gone: HTTP 404", "/page: it sent a web page", "--url", "--archive")


def test_a_server_that_falls_silent_is_asked_again(server, voc, monkeypatch):
    monkeypatch.setattr(session, "TIMEOUT", 0.3)
    server.files["/voc.tar"] = Resource(TAR, silences=[2.0])
    assert voc()[0] == 0
    assert server.ranges() == [None, "bytes=4096-"]


def test_a_server_that_does_not_say_how_long_the_file_is(server, voc):
    server.files["/voc.tar"] = Resource(TAR, sized=False, ranges=False)
    assert voc()[0] == 0


def test_a_busy_server_is_asked_again(server, voc):
    server.files["/voc.tar"] = Resource(TAR, failures=transfer.ATTEMPTS - 1)
    assert voc()[0] == 0


def test_a_server_that_is_not_there(voc, tmp_path, capsys):
    code = download.main(["voc", "--root", str(tmp_path), "--url", "http://127.0.0.1:9/voc.tar"])
    one_error((code, *capsys.readouterr()), "refused", "attempts")


def test_redirects_are_followed(server, voc):
    server.files["/voc.tar"] = Resource(location="/moved.tar")
    server.files["/moved.tar"] = Resource(TAR, drops=[5000])
    assert voc()[0] == 0


def test_a_wrong_sum_keeps_the_file_under_another_name(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    one_error(voc(content=b"other"), md5(TAR), md5(b"other"), f"{NAME}.bad")
    assert tree(tmp_path) == {f"{NAME}.bad": TAR}
    assert len(server.seen) == 1  # a file that came in one piece is not fetched twice


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "nope", "", "http://", "http://[::1", "http://a:99999/x", "http://a/é", "http://a\n/"]
)
def test_only_web_addresses(tmp_path, capsys, monkeypatch, url):
    """Before anything is asked or written."""
    said = "is no http or https address"
    code = download.main(["voc", "--root", str(tmp_path), "--url", url])
    captured = capsys.readouterr()
    line = one_error((code, *captured), url.replace("\n", "\\n") or "an empty name", said, "--archive")
    assert captured.err == f"{line}\n"
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("CITYSCAPES_USERNAME", "u")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "p")
    code = download.main(["cityscapes", "--root", str(tmp_path), "--site", url or "x"])
    one_error((code, *capsys.readouterr()), said)


def test_a_server_that_leads_to_no_address_is_passed_over(server, voc, tmp_path):
    server.files["/moved"] = Resource(location="http://[::1")
    server.files["/voc.tar"] = Resource(TAR)
    assert voc(paths=("/moved", "/voc.tar"))[0] == 0
    assert tree(tmp_path) == COMPLETE


@pytest.mark.parametrize("option", ["--archive", "--root"])
@pytest.mark.parametrize("kind", [kind for kind in NO_FILE if kind != "folder"])
def test_what_is_neither_archive_nor_folder_is_named(tmp_path, capsys, option, kind):
    """A pipe has no end."""
    put(kind, tmp_path / "odd")
    (tmp_path / "archive").write_bytes(TAR)
    places = {"--root": tmp_path / "data", "--archive": tmp_path / "archive", option: tmp_path / "odd"}
    code = download.main(["voc", "--md5", md5(TAR), *(str(text) for pair in places.items() for text in pair)])
    assert "Errno" not in one_error((code, *capsys.readouterr()), "odd")


def test_the_proxy_of_the_environment_is_used(server, voc, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.files["http://voc.invalid/voc.tar"] = Resource(TAR)
    url = "http://voc.invalid/voc.tar"
    assert download.main(["voc", "--root", str(tmp_path), "--url", url, "--md5", md5(TAR)]) == 0


def test_a_full_disk_is_an_error_before_the_first_byte(server, voc, tmp_path, monkeypatch):
    server.files["/voc.tar"] = Resource(TAR)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, len(TAR) * 3 // 2))
    one_error(voc(), "free", "needed")  # room for the archive, not for its contents
    assert tree(tmp_path) == {}


def test_two_at_once_do_not_write_one_file(server, voc, tmp_path):
    server.files["/voc.tar"] = Resource(TAR)
    with FileLock(tmp_path / f".{NAME}.lock"):
        one_error(voc(), "another process")
    assert voc()[0] == 0


def test_an_archive_on_disk_needs_no_server(tmp_path, capsys):
    file = tmp_path / "mine.tar"
    file.write_bytes(TAR)
    arguments = ["voc", "--root", str(tmp_path / "data"), "--archive", str(file)]
    one_error((download.main(arguments), *capsys.readouterr()), str(file), f"--md5 {md5(TAR)}")
    assert download.main([*arguments, "--md5", md5(TAR)]) == 0
    assert tree(tmp_path / "data") == COMPLETE
    assert file.exists()
    capsys.readouterr()
    missing = download.main(["voc", "--root", str(tmp_path / "b"), "--archive", str(tmp_path / "no.tar")])
    one_error((missing, *capsys.readouterr()), "no.tar")


def test_ade20k_from_a_zip_file(server, tmp_path):
    parts = [("training", "a"), ("training", "b"), ("validation", "c")]
    files = {f"ADEChallengeData2016/images/{s}/{n}.jpg": b"jpg" for s, n in parts}
    files |= {f"ADEChallengeData2016/annotations/{s}/{n}.png": b"png" for s, n in parts}
    content = pack_zip(files)
    server.files["/ade.zip"] = Resource(content, drops=[100])
    arguments = ["ade20k", "--root", str(tmp_path), "--url", server.url + "/ade.zip", "--md5", md5(content)]
    assert download.main(arguments) == 0
    assert tree(tmp_path) == files


def tar_with(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        good = tarfile.TarInfo("VOCdevkit/VOC2012/good")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return tar_with(info, b"evil" if kind == tarfile.REGTYPE else b"")


def zip_member(name: str, mode: int = stat.S_IFREG | 0o644) -> bytes:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name  # as it stands: ZipInfo would mend some names
    info.external_attr = mode << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("VOCdevkit/VOC2012/good", b"good")
        archive.writestr(info, b"../../evil")
    return buffer.getvalue()


EVIL_NAMES = [
    "/evil",
    "//evil",
    "../evil",
    "VOCdevkit/VOC2012/../../../evil",
    "VOCdevkit/VOC2012/..",
    "..\\evil",
    "VOCdevkit/VOC2012/..\\..\\..\\evil",
    "C:evil",
    "C:/evil",
    "\\\\server\\evil",
]
EVIL = {
    **{f"tar {name}": tar_member(name) for name in EVIL_NAMES},
    **{f"zip {name}": zip_member(name) for name in EVIL_NAMES},
    "tar symlink out": tar_member("VOCdevkit/VOC2012/x", tarfile.SYMTYPE, "/etc"),
    "tar symlink up": tar_member("VOCdevkit/VOC2012/x", tarfile.SYMTYPE, "../../.."),
    "tar symlink in": tar_member("VOCdevkit/VOC2012/x", tarfile.SYMTYPE, "good"),
    "tar hard link out": tar_member("VOCdevkit/VOC2012/x", tarfile.LNKTYPE, "/etc/passwd"),
    "tar character device": tar_member("VOCdevkit/VOC2012/x", tarfile.CHRTYPE),
    "tar block device": tar_member("VOCdevkit/VOC2012/x", tarfile.BLKTYPE),
    "tar fifo": tar_member("VOCdevkit/VOC2012/x", tarfile.FIFOTYPE),
    "tar evil folder": tar_member("../evil", tarfile.DIRTYPE),
    "zip symlink": zip_member("VOCdevkit/VOC2012/x", stat.S_IFLNK | 0o777),
    "zip device": zip_member("VOCdevkit/VOC2012/x", stat.S_IFBLK | 0o666),
}


def unpack_here(tmp_path: Path, content: bytes, capsys):
    file = tmp_path / "deep" / "archive"
    write_tree(tmp_path, {"deep/archive": content})
    root = tmp_path / "deep" / "root"
    code = download.main(["voc", "--root", str(root), "--archive", str(file), "--md5", md5(content)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_with_one_evil_member_writes_nothing(name, tmp_path, capsys):
    one_error(unpack_here(tmp_path, EVIL[name], capsys), "archive is refused", "member")
    assert list(tree(tmp_path)) == ["deep/archive"]


NAMES = st.lists(st.sampled_from(["..", ".", "", "a", "b", "VOCdevkit", "VOC2012", "\\", "C:"]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES.map("/".join), max_size=3), kind=st.sampled_from(["tar", "zip"]))
def test_no_name_leads_out_of_the_target(names, kind):
    files = {f"VOCdevkit/VOC2012/{name}": b"x" for name in names} | {name: b"x" for name in names if name}
    content = pack_tar(files) if kind == "tar" else pack_zip(files)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        archive.write_bytes(content)
        root = Path(folder) / "in" / "root"
        download.main(["voc", "--root", str(root), "--archive", str(archive), "--md5", md5(content)])
        outside = [name for name in tree(Path(folder)) if not name.startswith("in/root/VOC2012/")]
        assert outside == ["archive"]


DAMAGED = {
    "cut tar": TAR[: len(TAR) // 2],
    "cut gz": pack_tar(voc_files(), "w:gz")[:30_000],
    "cut xz": pack_tar(voc_files(), "w:xz")[:30_000],
    "cut zip": pack_zip(voc_files())[:-30],
    "flipped zip": pack_zip(voc_files()).replace(b"2007_000001\n", b"2007_000009\n"),  # fails its CRC
    "no archive": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_leaves_nothing(name, tmp_path, capsys):
    result = unpack_here(tmp_path, DAMAGED[name], capsys)
    assert result[2].endswith(one_error(result, "deep/archive", "damaged") + "\n")
    assert list(tree(tmp_path)) == ["deep/archive"]


def test_a_name_that_is_file_and_folder(tmp_path, capsys):
    content = pack_tar({"VOCdevkit/VOC2012/a": b"", "VOCdevkit/VOC2012/a/b": b""})
    one_error(unpack_here(tmp_path, content, capsys), "deep/archive", "twice")
    assert list(tree(tmp_path)) == ["deep/archive"]


def test_another_archive_than_the_one_meant(tmp_path, capsys):
    one_error(unpack_here(tmp_path, pack_tar({"readme": b"x"}), capsys), "holds no folder VOCdevkit/VOC2012")


def test_contents_that_do_not_fit(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    one_error(unpack_here(tmp_path, TAR, capsys), "free", "needed")


FRAMES = {"train": ["aachen/aachen_000000_000019", "bremen/bremen_000000_000019"], "val": ["munster/munster_0_0"]}


def city_files(tree_name: str, suffix: str) -> dict[str, bytes]:
    files = {f"{tree_name}/{split}/{name}{suffix}": b"png" for split, names in FRAMES.items() for name in names}
    return files


GT = pack_zip({**city_files("gtFine", "_gtFine_labelIds.png"), "license.txt": b"x", "README": b"x"})
LEFT = pack_zip({**city_files("leftImg8bit", "_leftImg8bit.png"), "license.txt": b"x", "README": b"x"})
CITY = {**city_files("gtFine", "_gtFine_labelIds.png"), **city_files("leftImg8bit", "_leftImg8bit.png")}


@pytest.fixture
def cityscapes(server, tmp_path, capsys):
    server.files["/file-handling/?packageID=1"] = Resource(GT, members_only=True)
    server.files["/file-handling/?packageID=3"] = Resource(LEFT, members_only=True, drops=[200], etag='"3"')

    def run(*arguments: str):
        sums = ["--md5", md5(GT), md5(LEFT)]
        code = download.main(["cityscapes", "--root", str(tmp_path / "city"), "--site", server.url, *sums, *arguments])
        out, err = capsys.readouterr()
        for secret in ("s3cret", "wr0ng"):
            assert secret not in out + err
        for seen in server.seen:
            assert "s3cret" not in seen.path
        return code, out, err

    return run


def test_cityscapes_with_the_account_of_the_environment(server, cityscapes, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", server.account[0])
    monkeypatch.setenv("CITYSCAPES_PASSWORD", server.account[1])
    assert cityscapes()[0] == 0
    assert tree(tmp_path / "city") == CITY
    assert not any(b"s3cret" in content for content in tree(tmp_path).values())
    server.seen.clear()
    assert cityscapes()[0] == 0
    assert server.seen == []
    shutil.rmtree(tmp_path / "city" / "gtFine")
    assert cityscapes()[0] == 0
    assert [seen.path for seen in server.seen if "packageID" in seen.path] == ["/file-handling/?packageID=1"]


def test_cityscapes_with_a_prompt(server, cityscapes, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: server.account[0])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: server.account[1])
    assert cityscapes()[0] == 0
    assert tree(tmp_path / "city") == CITY


def test_cityscapes_with_a_wrong_password(server, cityscapes, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", server.account[0])
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "wr0ng")
    one_error(cityscapes(), "refused", "CITYSCAPES_PASSWORD")
    assert not [seen for seen in server.seen if "packageID" in seen.path]


def test_cityscapes_without_account_or_terminal(server, cityscapes):
    one_error(cityscapes(), "CITYSCAPES_USERNAME", "register")
    assert server.seen == []


def test_cityscapes_without_the_right_to_download(server, cityscapes, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", server.account[0])
    monkeypatch.setenv("CITYSCAPES_PASSWORD", server.account[1])
    server.files["/file-handling/?packageID=1"] = Resource(b"<html>no</html>", kind="text/html")
    one_error(cityscapes(), "web page instead of the file")


def test_cityscapes_site_that_is_down(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_USERNAME", "a")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "b")
    code = download.main(["cityscapes", "--root", str(tmp_path), "--site", "http://127.0.0.1:9"])
    one_error((code, *capsys.readouterr()), "/login/", "refused")


def test_cityscapes_from_files_on_disk_needs_no_account(server, cityscapes, tmp_path):
    names = ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"]
    write_tree(tmp_path, dict(zip(names, (LEFT, GT), strict=True)))
    assert cityscapes("--archive", *(str(tmp_path / name) for name in names))[0] == 0
    assert tree(tmp_path / "city") == CITY
    assert server.seen == []
    write_tree(tmp_path, {"other.zip": GT})
    one_error(cityscapes("--archive", str(tmp_path / "other.zip")), "other.zip", "gtFine_trainvaltest.zip")


def check(capsys, *arguments: str) -> tuple[int, str]:
    code = download.main(["check", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "lines"),
    [
        ("voc", ["train.txt: 0 of 2", "JPEGImages: 0 of 4", "train_aug.txt: 0 of 5", "SegmentationClassAug: 0 of 5"]),
        ("ade20k", ["images/training: 0 of 2", "annotations/validation: 0 of 1", "data.csail.mit.edu"]),
        ("cityscapes", ["leftImg8bit/train: 0 of 2", "gtFine/val: 0 of 1", "cityscapes-dataset.com"]),
    ],
)
def test_check_of_an_empty_folder_says_all_that_is_missing(dataset, lines, tmp_path, capsys):
    code, out = check(capsys, dataset, "--root", str(tmp_path))
    assert code == 1
    for line in lines:
        assert line in out
    assert f"`download.py {dataset}`" in out


def test_check_names_the_first_missing_file(tmp_path, capsys):
    files = voc_files("")
    del files[f"JPEGImages/{VOC_TRAIN[1]}.jpg"]
    write_tree(tmp_path, files)
    code, out = check(capsys, "voc", "--root", str(tmp_path))
    assert code == 1
    assert f"missing  JPEGImages: 3 of 4 ({VOC_TRAIN[1]}.jpg)" in out
    assert "ok       SegmentationClass: 4" in out
    assert "`download.py sbd`" in out


def test_check_reads_lists_of_paths_wherever_they_lie(tmp_path, capsys):
    files = voc_files("")
    for name in ("train", "val"):
        ids = files.pop(f"ImageSets/Segmentation/{name}.txt").decode().split()
        lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in ids]
        files[f"splits/{name}.txt"] = "".join(lines).encode()
    write_tree(tmp_path / "VOC2012", files)
    (tmp_path / "VOC2012" / "ImageSets" / "Segmentation").mkdir(parents=True)
    _, out = check(capsys, "voc", "--root", str(tmp_path))
    assert "ok       JPEGImages: 4" in out


@pytest.mark.parametrize("home", voc2012.HOMES)
@pytest.mark.parametrize("folder", voc2012.LIST_FOLDERS)
@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_check_sees_what_training_reads(tmp_path, capsys, home, folder, name, encoding):
    root = voc_tree(tmp_path / home, ["a.1", "b", "c"])
    (root / "JPEGImages/._x.jpg").touch()
    (root / "SegmentationClassAug/._x.png").touch()
    (root / folder).mkdir(parents=True, exist_ok=True)
    lines = "/JPEGImages/a.1.jpg /SegmentationClassAug/a.1.png\r\nb"
    (root / folder / f"{name}.txt").write_text(lines, encoding=encoding)
    (root / folder / "val.txt").write_text("c")
    source = voc2012.VOC2012(str(tmp_path), None, list(voc2012.TRAIN_LISTS), list(voc2012.VAL_LISTS))
    _, out = check(capsys, "voc", "--root", str(tmp_path))
    assert out.splitlines()[0] == str(source.root)
    assert f"  missing  {Path(folder, name).as_posix()}.txt: {len(source.split('train'))} of 5" in out
    assert f"  missing  {Path(folder, 'val').as_posix()}.txt: {len(source.split('val'))} of 2" in out
    assert "  ok       JPEGImages of train_aug: 2" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no image"),
        ("ä\n".encode("latin-1"), "is not in UTF-8 (line 1)"),
        (b"a\0\n", "holds the control character '\\x00' (line 1)"),
    ],
)
def test_check_of_a_list_that_is_none(tmp_path, capsys, content, message):
    write_tree(tmp_path, {"JPEGImages/a.jpg": b"", "list/val.txt": content})
    one_error((download.main(["check", "voc", "--root", str(tmp_path)]), *capsys.readouterr()), "list/val.txt", message)


@pytest.mark.parametrize("kind", NO_FILE)
def test_check_of_a_list_that_is_no_file(tmp_path, capsys, kind):
    write_tree(tmp_path, {"JPEGImages/a.jpg": b"", "list/train.txt": b"a"})
    put(kind, tmp_path / "list/val.txt")
    assert "ImageSets/Segmentation/val.txt: 0 of 2" in check(capsys, "voc", "--root", str(tmp_path))[1]


@pytest.mark.parametrize("root", ["nowhere", "/" + "a" * 300, "a\0b", "~nobody_of_that_name", __file__])
def test_check_of_what_is_no_folder(capsys, root):
    one_error((download.main(["check", "voc", "--root", root]), *capsys.readouterr()), "there is no such folder")


def test_an_empty_root_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        download.main(["check", "voc", "--root", ""])
    assert "argument --root: it is empty" in capsys.readouterr().err


def test_check_knows_a_list_with_other_ids(tmp_path, capsys, monkeypatch):
    write_tree(tmp_path, voc_files(""))
    monkeypatch.setattr(inventory, "LISTS", {"val": md5(b"2007_000003\n2007_000005")})
    code, out = check(capsys, "voc", "--root", str(tmp_path))
    assert code == 1
    assert "val.txt: 2 of 2 (other ids than the published list)" in out


def test_check_pairs_the_frames_of_cityscapes(tmp_path, capsys):
    files = dict(CITY)
    del files["gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"]
    write_tree(tmp_path, files)
    code, out = check(capsys, "cityscapes", "--root", str(tmp_path))
    assert code == 1
    assert "gtFine/train: 1 of 2 (aachen_000000_000019)" in out
    assert "ok       leftImg8bit/train: 2" in out


def test_check_of_whole_data_sets(tmp_path, capsys):
    write_tree(tmp_path, CITY)
    assert check(capsys, "cityscapes", "--root", str(tmp_path))[0] == 0


@pytest.mark.data
def test_the_published_lists(real_data, monkeypatch):
    monkeypatch.undo()
    for name, digest in inventory.LISTS.items():
        ids = inventory.read_ids(real_data / "voc2012" / f"{name}.txt")
        assert len(ids) == inventory.COUNTS["voc"][name]
        assert md5("\n".join(sorted(ids)).encode()) == digest


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["voc"], ["imagenet"], ["check", "coco", "--root", "x"], ["voc", "--root", "x", "--md5", "word"],
        ["sbd", "--root", "x", "--workers", "0"], ["sbd", "--root", "x", "--workers", "nan"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_code:
        download.main(arguments)
    assert exit_code.value.code == 2


def test_interruption_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download", interrupt)
    assert download.main(["voc", "--root", str(tmp_path)]) == 130
    assert "goes on" in capsys.readouterr().err


def test_from_the_shell(server, tmp_path):
    server.files["/voc.tar"] = Resource(TAR, status=404)
    command = [sys.executable, str(SCRIPTS / "download.py")]
    url = server.url + "/voc.tar"
    result = subprocess.run(
        [*command, "voc", "--root", "data", "--url", url], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.count("error: ") == 1
    assert "404" in result.stderr
    assert "Traceback" not in result.stderr
    result = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "CITYSCAPES_PASSWORD" in result.stdout
