from __future__ import annotations

import re
from html.parser import HTMLParser

from report.page import page
from report.published import PublishedRow
from report.runs import Benchmark, DamagedRun, read_run
from report.tables import build_tables
from tests.report.fake_runs import entry, settings, write_run

EVIL = "<script>alert('x')</script>\"&{{script}}"


class Elements(HTMLParser):
    """Names of all elements, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.names, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag not in ("meta", "link", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made(tmp_path):
    folder = write_run(tmp_path / "<i>run", [entry(0, {"a": 1.0}), entry(1, {"a": 0.5, EVIL: 0.5})],
                       settings(dataset=EVIL, loss={"x": EVIL}), method=EVIL, error=EVIL)  # fmt: skip
    other = write_run(tmp_path / "other", [entry(0, {"a": 1.0})], settings(dataset=EVIL, loss={"x": 1}), method=EVIL)
    runs = [read_run(folder), read_run(other)]
    paper = PublishedRow(Benchmark(EVIL, "2-1", "overlap"), EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, True, {"miou": 50.0})
    return build_tables(runs, [paper]), runs, [DamagedRun(tmp_path / EVIL.replace("/", "_"), EVIL)]


def test_all_text_is_escaped(tmp_path):
    text = page(*made(tmp_path))
    elements = Elements(text)
    assert not elements.open
    assert elements.names.count("script") == 1
    assert not {"i", "alert"} & set(elements.names)
    assert "{{script}}" in text  # as text


def test_nothing_is_asked_of_a_network(tmp_path):
    text = page(*made(tmp_path))
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_equal_runs_make_an_equal_page(tmp_path):
    tables = made(tmp_path)
    assert page(*tables) == page(*tables)


def test_a_page_without_a_finished_run(tmp_path):
    run = read_run(write_run(tmp_path / "run", []))
    assert not Elements(page(build_tables([run]), [run], [])).open
    assert not Elements(page([], [], [DamagedRun(tmp_path, "bad")])).open
