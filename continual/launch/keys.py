"""All keys of the configuration with their defaults, what can be given and what they mean.

`python main.py --help <group>` and docs/keys.md show them; `python -m continual.launch.keys` writes the latter. What a
key means is said by the comments in conf/, what can be given by the signature of what reads it.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import initialize_config_dir
from hydra.core.default_element import ResultDefault
from hydra.types import RunMode
from omegaconf import OmegaConf

from continual.launch.checks import RUN_SCHEMAS
from continual.launch.composition import OF_HYDRA, check_what_is_composed, loader
from continual.launch.references import REFERENCE, absolute
from continual.launch.repository import CONF
from continual.launch.targets import INSTANTIATE_KEYS, TARGET, schema_at
from continual.launch.yaml_files import YamlFile, merged
from continual.models.configuration import plain
from protocol.files import write_atomically
from protocol.markdown import markdown_table
from protocol.schema import Parameter, Schema
from protocol.settings import flatten
from protocol.words import UnknownKey, shown

PAGE = CONF.parent / "docs" / "keys.md"
CONFIG = "config"  # the file that all others are added to
GROUPS = (
    "dataset", "dataset/augmentation", "dataset/evaluation", "dataset/saliency", "network", "loss", "optimizer",
    "scheduler", "training", "callbacks", "logger",
)  # fmt: skip
PRESETS = "experiment"  # the group whose choices set keys of the others
INTRODUCTION = """\
# All keys

`python -m continual.launch.keys` writes this page from the files in `conf/` and the signatures of what they name.
`python main.py --help <group>` shows the same, also `--help loss=mib` and `--help training.epochs`.

* A choice of a group is set as `loss=mib`, a key as `training.epochs=30`. A mistyped one, one that nothing reads, and a
  value that cannot be are errors before anything starts.
* 10 and 10.0 are the same number, and the same run. NaN and infinity are no numbers; yes, no, on and off are neither
  true nor false.
* `${...}` is the value of another key. `???` must be given.
* A key that a class takes and that stands in no file is added with a plus: `+optimizer.maximize=true`.
"""
COLUMNS = ("key", "default", "allowed", "meaning")


@dataclass(frozen=True)
class Key:
    """A key.

    Attributes:
        name: in full.
        default: its value in the files that it is looked up in.
        allowed: what can be given; empty where nothing says it.
        meaning: of the key.
        value: its value in the whole configuration.
        source: the choice that gives it that value instead of the default; empty where none does.
    """

    name: str
    default: str
    allowed: str
    meaning: str
    value: str
    source: str = ""


@dataclass(frozen=True)
class Choice:
    """A choice of a group.

    Attributes:
        name: as on the command line: "loss=mib".
        about: what its file says of it.
        keys: those that it has or sets.
        brings: choices of other groups that it makes.
    """

    name: str
    about: str
    keys: Sequence[Key]
    brings: Sequence[str]


def help_about(arguments: Sequence[str]) -> str | None:
    """The help on the groups, choices and keys that stand beside --help on a command line; None where none does.

    Raises:
        ConfigError: there is no such group, choice or key.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", "-cn", default=CONFIG)
    parser.add_argument("--config-path", "-cp", type=Path, default=CONF)
    parser.add_argument("--config-dir", "-cd", type=Path)
    options, rest = parser.parse_known_args(arguments)
    topics = [argument for argument in rest if not argument.startswith("-")]
    if not topics:
        return None
    chosen = [topic for topic in topics if "=" in topic and "." not in topic]
    own = [options.config_dir.resolve()] if options.config_dir else []
    with initialize_config_dir(str(options.config_path), version_base="1.3"):
        book = Book(options.config_name, chosen, own)
        return "\n".join(book.about(topic.partition("=")[0]) for topic in topics)


def all_names() -> list[str]:
    """The groups, and the keys of the configuration without overrides."""
    check_what_is_composed()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        book = Book(CONFIG, [])
    return [*book.chosen, *book.hydra, *(entry.key for file in book.files for entry in file.entries)]


def page() -> str:
    """The text of docs/keys.md."""
    check_what_is_composed()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choices = {group: loader().choices(group, GROUPS) for group in (*GROUPS, PRESETS)}
        sections = [_sections(group, choices[group]) for group in GROUPS]
    abouts = [YamlFile.read(CONF, f"{PRESETS}/{name}").about for name in choices[PRESETS]]
    rows = [(f"`{PRESETS}={name}`", _on_a_page(about)) for name, about in zip(choices[PRESETS], abouts, strict=True)]
    return "\n".join([INTRODUCTION, *sections, f"## {PRESETS}\n", _table(("preset", "what"), rows)])


class Book:
    """What is known of the keys of one configuration."""

    def __init__(self, config_name: str, overrides: list[str], own_folders: Sequence[Path] = ()) -> None:
        """Read its files.

        Args:
            config_name: of the primary file.
            overrides: choices of groups.
            own_folders: of the user's own configuration.
        """
        self.own_choices = overrides
        search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in own_folders)}]"] if own_folders else []
        self.config_name, self.overrides = config_name, [*search, *overrides]
        listed = loader().compute_defaults_list(config_name, self.overrides, RunMode.RUN)
        choices = {key.partition("@")[0]: choice for key, choice in listed.overrides.known_choices.items()}
        self.chosen = {group: choice for group, choice in choices.items() if not group.startswith("hydra/")}
        self.hydra = {group: choices[group] for group in OF_HYDRA}
        main = next(Path(source.path) for source in loader().get_sources() if source.provider == "main")
        self.files = list(_files(listed.defaults, (main, *own_folders, CONF)))
        self.content = merged(file.content for file in self.files)
        self.own_folders = own_folders

    def about(self, topic: str) -> str:
        """The help on a group, or on a key and those below it, with the choices that have it where this one does not.

        Raises:
            ConfigError: there is none.
        """
        try:
            return self._about_own(topic)
        except UnknownKey:
            owners = loader().owners(topic, [*self.chosen, *self.hydra])
            made = [f"{group}={choice}" for group, choice in {**self.chosen, **self.hydra}.items()]
            if not owners or set(owners) & set(made):
                raise
        books = {owner: Book(self.config_name, [*self.own_choices, owner], self.own_folders) for owner in owners}
        return "\n\n".join(f"With {owner}:\n{book._about_own(topic)}" for owner, book in books.items())

    def _about_own(self, topic: str) -> str:
        """The help on what this configuration has.

        Raises:
            UnknownKey: it does not have it.
        """
        for group in self.hydra:
            if f"{topic.replace('.', '/')}/".startswith(f"{group}/"):
                return self._about_hydra(group, topic)
        group = topic.partition(".")[0]
        if group == topic and group in self.chosen:
            return self._about_group(group)
        keys = self._keys(self._own_files(topic), below=topic)
        if keys:
            return "\n".join(map(_lines, keys))
        all_keys = dict.fromkeys(entry.key for file in self.files for entry in file.entries)
        if group in self.chosen:
            raise UnknownKey(topic, [], all_keys)
        raise UnknownKey(topic, [*self.chosen, *self.hydra], all_keys, group="", said="is neither a group nor a key")

    def _own_files(self, key: str) -> list[YamlFile]:
        """The files of the group that a key belongs to, if they have it; else all."""
        fitting = [group for group in self.chosen if f"{key}.".startswith(f"{group.replace('/', '.')}.")]
        group = max(fitting, key=len, default="")
        own = [file for file in self.files if self._group_of(file) == group]
        has = any(f"{entry.key}.".startswith(f"{key}.") for file in own for entry in file.entries)
        return own if has else self.files

    def _about_hydra(self, group: str, topic: str) -> str:
        """The help on a group of Hydra's own, or on a key of it and those below."""
        choice, place = self.hydra[group], group.replace("/", ".")
        is_ours = (CONF / group / f"{choice}.yaml").exists()
        file = YamlFile.read(CONF, f"{group}/{choice}", place) if is_ours else None
        keys = list(self._hydra_keys(place, file))
        if topic == group:
            lines = [f"{group}=... is one of {', '.join(loader().choices(group, self.hydra))}", ""]
            return "\n".join([*lines, f"{group}={choice}{f': {file.about}' if file else ''}", "", *map(_lines, keys)])
        found = [_lines(key) for key in keys if f"{key.name}.".startswith(f"{topic}.")]
        if not found:
            names = [key.name[len(place) + 1 :] for key in keys]
            raise UnknownKey(topic, names, group=place)
        return "\n".join(found)

    def _hydra_keys(self, place: str, file: YamlFile | None) -> Iterator[Key]:
        """Keys of a part of Hydra's configuration; `file`: of ours, which explains some."""
        node = OmegaConf.select(loader().compose(self.config_name, self.overrides), place)
        meanings = {entry.key: entry.comment for entry in file.entries} if file else {}
        types = get_type_hints(OmegaConf.get_type(node))
        for name, value in flatten(plain(node)):
            if not set(name.split(".")) & set(INSTANTIATE_KEYS):
                full, allowed = f"{place}.{name}", Parameter(types[name]).allowed if name in types else ""
                yield Key(full, shown(value), allowed, meanings.get(full, ""), shown(value))

    def _about_group(self, group: str) -> str:
        own = (file for folder in self.own_folders for file in sorted((folder / group).glob("*.yaml")))
        names = dict.fromkeys([*loader().choices(group, self.chosen), *(file.stem for file in own)])
        lines = [f"{group}=... is one of {', '.join(names)}", ""]
        if self.chosen[group] is not None:
            choice = self.choice(group)
            lines += [f"{choice.name}: {choice.about}", *(f"  with {other}" for other in choice.brings), ""]
            lines += map(_lines, choice.keys)
        return "\n".join(lines)

    def choice(self, group: str) -> Choice:
        """The choice that is made of a group, with the files of the group that it builds on."""
        files: list[YamlFile] = []
        paths = {f"{group}/{self.chosen[group]}"}
        for file in reversed(self.files):  # a file comes after those that it builds on
            if file.path in paths or (file.parent in paths and self._group_of(file) == group):
                paths.add(file.path)
                files.insert(0, file)
        brings = dict.fromkeys(other for file in files for other in file.brings if not other.startswith(f"{group}="))
        return Choice(f"{group}={self.chosen[group]}", files[-1].about, self._keys(files), list(brings))

    def _group_of(self, file: YamlFile) -> str:
        return max((group for group in self.chosen if file.path.startswith(f"{group}/")), key=len, default="")

    def _keys(self, files: Sequence[YamlFile], below: str = "") -> list[Key]:
        """The keys in some files; a key and those below it, if one is named.

        The last file that names a key says its default; the last one of all that explains it says what it means.
        """
        meanings = {entry.key: entry.comment for file in self.files for entry in file.entries if entry.comment}
        last = {entry.key: (entry.written, file) for file in self.files for entry in file.entries}
        place = f"{below}." if below else ""
        entries = [entry for file in files for entry in file.entries if f"{entry.key}.".startswith(place)]
        written = {entry.key: entry.written for entry in entries}
        groups = {name.partition(".")[0] for name in written}  # of others the classes need not be imported
        readers = dict(_readers({group: value for group, value in self.content.items() if group in groups}))
        return [
            Key(
                name,
                default,
                readers[name].allowed if name in readers else "",
                meanings.get(name, ""),
                value=last[name][0],
                source=self._choice_of(last[name][1]) if last[name][0] != default else "",
            )
            for name, default in written.items()
            if not name.rpartition(".")[2].startswith("_") and (name in meanings or not REFERENCE.fullmatch(default))
        ]

    def _choice_of(self, file: YamlFile) -> str:
        """A file as the choice of its group."""
        group = self._group_of(file)
        return f"{group}={file.path[len(group) + 1 :]}" if group else file.path


def _files(defaults: Iterable[ResultDefault], folders: Sequence[Path]) -> Iterator[YamlFile]:
    """The files of Hydra's list of defaults, but for its own."""
    for default in defaults:
        path = str(default.config_path)
        if not path.startswith("hydra/"):
            folder = next(folder for folder in folders if (folder / f"{path}.yaml").exists())
            yield YamlFile.read(folder, path, default.package or "", default.parent or "")


def _readers(node: Any, key: str = "", schema: Schema | None = None) -> Iterator[tuple[str, Parameter]]:
    """What can be given to each key, from the signatures of what reads it."""
    if not isinstance(node, Mapping):
        return
    target = node.get(TARGET, "???")
    if schema is None:
        schema = RUN_SCHEMAS.get(key, Schema()) if target == "???" else schema_at(key, node)
    for name, value in node.items():
        full = f"{key}.{name}" if key else str(name)
        if name in schema.parameters:
            yield full, schema.parameters[name]
            if reference := REFERENCE.fullmatch(str(value)):
                yield absolute(reference, full.split(".")), schema.parameters[name]
        parameter = schema.parameters.get(name)
        yield from _readers(value, full, parameter.nested if parameter else None)


def _lines(key: Key) -> str:
    """A key in the terminal."""
    origin = key.source and f"{key.source} sets {key.value} instead of {key.default}"
    about = "; ".join(filter(None, (key.meaning, key.allowed and f"allowed: {key.allowed}", origin)))
    return "\n".join([f"{key.name}={key.value}", *(f"    {line}" for line in textwrap.wrap(about, 110))])


def _sections(group: str, names: Sequence[str]) -> str:
    """A group in docs/keys.md."""
    return "\n".join([f"## {group}\n", *(_section(Book(CONFIG, [f"{group}={name}"]).choice(group)) for name in names)])


def _section(choice: Choice) -> str:
    """A choice in docs/keys.md."""
    brings = f"With {', '.join(f'`{other}`' for other in choice.brings)}.\n" if choice.brings else ""
    rows = [(f"`{key.name}`", f"`{key.default}`", key.allowed, key.meaning) for key in choice.keys]
    parts = (f"### {choice.name}\n", f"{_on_a_page(choice.about)}\n", brings, _table(COLUMNS, rows) if rows else "")
    return "\n".join(filter(None, parts))


def _on_a_page(about: str) -> str:
    """A description in one line, with its commands as code."""
    return " ".join(f"`{line.strip()}`" if line.startswith(" ") else line for line in about.splitlines())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, in which <name> is no HTML."""
    return markdown_table(headings, [[re.sub(r"([<>])", r"\\\1", cell) for cell in row] for row in rows]) + "\n"


if __name__ == "__main__":
    write_atomically(PAGE, page())
