"""Commands in the documentation are real: every override of every `main.py` line composes."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.conftest import ROOT
from tests.test_configurations import composed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Lines of shell blocks that start main.py, without comments."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python main.py")]


def jobs(overrides: list[str]) -> list[list[str]]:
    """A sweep's jobs, one choice varied at a time."""
    choices = [[f"{key}={value}" for value in values.split(",")] if "," in values and "[" not in values else [whole]
               for whole in overrides for key, _, values in [whole.partition("=")]]  # fmt: skip
    first = [options[0] for options in choices]
    return [[*first[:i], option, *first[i + 1 :]] for i, options in enumerate(choices) for option in options] or [first]


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_composes(command):
    arguments = [a for a in shlex.split(command)[2:] if not a.startswith("hydra") and "(" not in a]
    if "--help" in arguments or "--cfg" in arguments:
        return
    sweep = arguments[:1] == ["-m"]
    for job in jobs(arguments[1:]) if sweep else [arguments]:
        assert composed(*job).training is not None


def test_every_page_and_picture_that_is_linked_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
