"""A web server on this machine that misbehaves as those of data sets do, and small data sets to put on it."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@dataclass
class Resource:
    """What the server gives at an address, and how badly."""

    content: bytes = b""
    status: int = 200
    location: str = ""  # where it redirects
    kind: str = "application/octet-stream"
    ranges: bool = True
    honest: bool = True  # ignores If-Range if not
    etag: str | None = None
    modified: str | None = None
    length: int | None = None  # the Content-Length that it claims, if another
    sized: bool = True  # gives a Content-Length
    drops: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    failures: int = 0  # answers 503 first
    delay: float = 0.0  # seconds for each 4 KiB
    silences: list[float] = field(default_factory=list)  # seconds after the first 4 KiB of the next answers
    members_only: bool = False  # needs the cookie of the login


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]


class LocalServer:
    """`files` maps paths to resources; `seen` lists the requests."""

    def __init__(self) -> None:
        self.files: dict[str, Resource] = {}
        self.seen: list[Seen] = []
        self.account = ("ada", "s3cret & ö")
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def ranges(self) -> list[str | None]:
        """The Range of each request for a file."""
        return [seen.headers.get("Range") for seen in self.seen if seen.method == "GET"]


LOGIN = '<html><form method="post"><input type="hidden" name="token" value="t0"><input name="password"></form></html>'


class _Handler(BaseHTTPRequestHandler):
    site: LocalServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.site.seen.append(Seen("GET", self.path, dict(self.headers)))
        # A proxy is asked for the whole address.
        path = self.path if self.path in self.site.files else self.path.removeprefix(self.site.url)
        if path == "/login/":
            return self._page(LOGIN, cookie="visitor=1")
        if path == "/downloads/":
            return self._page("<html>downloads</html>")
        resource = self.site.files.get(path)
        if resource is None:
            return self.send_error(404)
        if resource.failures:
            resource.failures -= 1
            return self.send_error(503)
        if resource.location:
            return self._redirect(resource.location)
        if resource.members_only and "member=1" not in self.headers.get("Cookie", ""):
            return self._redirect("/login/")
        if resource.status != 200:
            return self.send_error(resource.status)
        self._send(resource)

    def do_POST(self) -> None:
        self.site.seen.append(Seen("POST", self.path, dict(self.headers)))
        fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        given = tuple(fields.get(name, [""])[0] for name in ("username", "password"))
        valid = fields.get("token") == ["t0"] and "visitor=1" in self.headers.get("Cookie", "")
        if valid and given == self.site.account and urlsplit(self.path).path == "/login/":
            return self._redirect("/downloads/", cookie="member=1")
        self._page(LOGIN)

    def _page(self, text: str, cookie: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        if cookie:
            self.send_header("Set-Cookie", f"{cookie}; Path=/")
        self.end_headers()
        self.wfile.write(text.encode())

    def _redirect(self, location: str, cookie: str = "") -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        if cookie:
            self.send_header("Set-Cookie", f"{cookie}; Path=/")
        self.end_headers()

    def _send(self, resource: Resource) -> None:
        content, start = resource.content, 0
        asked = self.headers.get("Range") if resource.ranges else None
        condition = self.headers.get("If-Range")
        if condition and resource.honest and condition not in (resource.etag, resource.modified):
            asked = None
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", resource.kind)
        if resource.sized:
            self.send_header("Content-Length", str((resource.length or len(content)) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if resource.etag:
            self.send_header("ETag", resource.etag)
        if resource.modified:
            self.send_header("Last-Modified", resource.modified)
        self.end_headers()
        end = min(len(content), start + resource.drops.pop(0)) if resource.drops else len(content)
        silence = resource.silences.pop(0) if resource.silences else 0.0
        for position in range(start, end, 4096):
            try:
                self.wfile.write(content[position : min(position + 4096, end)])
                self.wfile.flush()
            except OSError:
                return
            time.sleep(resource.delay + silence)
            silence = 0.0


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pack_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pack_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def png(mask: np.ndarray) -> bytes:
    """A palette PNG, as VOC's masks are."""
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    image.putpalette(bytes(range(256)) * 3)
    image.save(buffer, "png")
    return buffer.getvalue()


VOC_TRAIN = ("2007_000001", "2007_000002")
VOC_VAL = ("2007_000003", "2007_000004")
SBD_TRAIN = ("2007_000001", "2008_000005", "2007_000004")  # one of VOC's train and one of VOC's val among them
SBD_VAL = ("2009_000006", "2010_000007")
VOC_COUNTS = {"train": 2, "val": 2, "train_aug": 5}


def voc_files(prefix: str = "VOCdevkit/VOC2012/") -> dict[str, bytes]:
    """VOC 2012 with four labelled images; the masks hold 255 at the border."""
    random = np.random.default_rng(0)
    lists = "ImageSets/Segmentation"
    files = {
        f"{lists}/train.txt": "".join(f"{name}\n" for name in VOC_TRAIN).encode(),
        f"{lists}/val.txt": "".join(f"{name}\n" for name in VOC_VAL).encode(),
    }
    for name in sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}):
        files[f"JPEGImages/{name}.jpg"] = random.bytes(20_000)
    for name in VOC_TRAIN + VOC_VAL:
        mask = random.integers(0, 21, (6, 8), dtype=np.uint8)
        mask[0] = 255
        files[f"SegmentationClass/{name}.png"] = png(mask)
    return {prefix + name: content for name, content in files.items()}


def write_tree(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
