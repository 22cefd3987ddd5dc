"""What the documentation says is real: links, files, classes and functions exist; its commands are run elsewhere."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import yaml

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


GROWTH = ROOT / "docs" / "grow.md"  # its lines need one another's files: see tests/test_grow_documented.py


def lines() -> list[str]:
    """Lines of shell blocks, without comments; those of each page can be run by themselves."""
    pages = [page.read_text() for page in PAGES if page != GROWTH]
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]


def commands() -> list[str]:
    """Those that start main.py with a network of its own."""
    return [line for line in lines() if line.startswith("python main.py") and "start_from" not in line]


def growths() -> list[str]:
    """Those that start main.py with a network that exists."""
    return [line for line in lines() if line.startswith("python main.py") and "start_from" in line]


def jobs(overrides: list[str]) -> list[list[str]]:
    """A sweep's jobs, one choice varied at a time."""
    choices = [[f"{key}={value}" for value in values.split(",")] if "," in values and "[" not in values else [whole]
               for whole in overrides for key, _, values in [whole.partition("=")]]  # fmt: skip
    first = [options[0] for options in choices]
    return [[*first[:i], option, *first[i + 1 :]] for i, options in enumerate(choices) for option in options] or [first]


def test_there_are_commands():
    assert len(commands()) > 10


def jobs_of(command: str) -> list[list[str]]:
    """The overrides of each job of a command but for Hydra's own; none where it asks for help."""
    arguments = [a for a in shlex.split(command)[2:] if not a.startswith("hydra") and "(" not in a]
    if arguments[:1] == ["-m"]:
        return jobs(arguments[1:])
    return [] if {"--help", "--cfg", "--config-name"} & set(arguments) else [arguments]


def test_every_page_and_picture_that_is_linked_exists():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    files = [(page, target) for page, target in links if "://" not in target]
    assert len(files) > 10
    for page, target in files:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


ROOMS = ("protocol", "datamodules", "networks", "loss", "continual", "callbacks", "report")
FOLDERS = "|".join((*ROOMS, "scripts", "conf", "docs", "tests"))
FILE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/]+\.(?:py|yaml|md))\b")
NAME = re.compile(rf"(?:`|_target_: )((?:{'|'.join(ROOMS)})(?:\.[a-z_]+)*\.\w+)\b")
OUTPUTS = (".md", ".csv", ".html")  # report.html is no module


def texts() -> list[Path]:
    """Pages, code and configuration; CHANGES.md names what is no more, docs/keys.md is written from the rest."""
    pages = [page for page in PAGES if page.name != "keys.md"]
    code = [path for room in (*ROOMS, "scripts", "conf") for path in (ROOT / room).rglob("*.[py]*")]
    return [*pages, *(path for path in code if path.suffix in (".py", ".yaml"))]


def is_setting(name: str) -> bool:
    """Whether a dotted name is a key of the configuration, such as `loss.kd_weight`."""
    room, second = name.split(".")[:2]
    in_no_module = room in ("loss", "callbacks") and not (ROOT / room / f"{second}.py").exists()
    return in_no_module or f"`{name}`" in (ROOT / "docs/keys.md").read_text()


def test_every_file_that_is_named_exists():
    named = {(path, name) for path in texts() for name in FILE.findall(path.read_text())}
    assert len(named) > 50
    missing = [f"{path}: {name}" for path, name in named if Path(name).stem != "x" and not (ROOT / name).exists()]
    assert not missing


def test_every_class_function_and_module_that_is_named_exists():
    names = {name for path in texts() for name in NAME.findall(path.read_text()) if not name.endswith(OUTPUTS)}
    code = sorted(name for name in names if not is_setting(name))
    assert len(code) > 50
    missing = []
    for name in code:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_the_citation_names_the_version():
    pyproject = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pyproject[1]
