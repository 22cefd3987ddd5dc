"""One report of many runs: tables over seeds beside the papers' numbers, and a page to sort, filter and look at.

python scripts/report.py [outputs ...] [--output outputs/report] [--images 4] [--published] [--watch 60]

Writes report.md, report.csv and report.html. Runs may be at work meanwhile; nothing in their folders is changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import clone  # noqa: F401
from rich.console import Console
from rich.text import Text

from continual.launch.script_options import ArgumentParser, named_path
from continual.launch.user_errors import one_line_exit
from protocol.errors import ConfigError
from protocol.files import write_atomically
from report.page import page
from report.published import read_published
from report.runs import DamagedRun, Run, find_runs, holds_run
from report.tables import ReportTable, build_tables
from report.text import long_csv, markdown, summary, terminal_table

LONGEST_WAIT = 1_000_000  # seconds
PLAIN_WIDTH = 160  # of a table that goes into a file or pipe


def main() -> None:
    """Write the report; print the tables, or with `--watch` one line each time."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folders", nargs="*", type=named_path, metavar="FOLDER", help="with runs in or below; else outputs"
    )
    parser.add_argument("--output", type=named_path, default=Path("outputs/report"), help="folder of the report")
    parser.add_argument("--images", type=int, default=4, help="most images per table and task; 0 = none")
    parser.add_argument("--published", action="store_true", help="the papers' tables without a run of ours, too")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="make it anew so often, until interrupted")
    arguments = parser.parse_args()
    with one_line_exit():
        report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """Make the report once, or again and again.

    Raises:
        ConfigError: a folder holds no run, the output cannot be written, or an option has an impossible value.
    """
    if arguments.images < 0:
        raise ConfigError(f"--images={arguments.images} must be at least 0")
    if arguments.watch is not None and not 0 < arguments.watch <= LONGEST_WAIT:
        raise ConfigError(f"--watch={arguments.watch} must be a number of seconds above 0 and at most {LONGEST_WAIT}")
    folders = arguments.folders or [Path("outputs")]
    try:
        while True:
            if arguments.watch is not None and not any(map(holds_run, folders)):
                print("no run yet", flush=True)
                time.sleep(arguments.watch)
                continue
            runs, damaged, tables = make(folders, arguments.output, arguments.images, arguments.published)
            if arguments.watch is None:
                break
            print(f"{arguments.output / 'report.html'}: {summary(runs, damaged)}", flush=True)
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return
    show(runs, damaged, tables)
    print(f"written to {arguments.output / 'report.html'}, report.md, report.csv")


def make(
    folders: Sequence[Path], output: Path, images: int, all_published: bool
) -> tuple[list[Run], list[DamagedRun], list[ReportTable]]:
    """Read everything and write the three files."""
    runs, damaged = find_runs(folders)
    tables = build_tables(runs, read_published(), all_published)
    texts = {
        "report.md": markdown(tables, runs, damaged),
        "report.csv": long_csv(tables),
        "report.html": page(tables, runs, damaged, images),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(output / name, text.encode("utf-8", "replace").decode("utf-8"))  # paths may be no UTF-8
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {error.filename or output} ({error.strerror}); give another --output"
        ) from error
    return runs, damaged, tables


def show(runs: Sequence[Run], damaged: Sequence[DamagedRun], tables: Sequence[ReportTable]) -> None:
    """Print the tables of our runs."""
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    for table in (table for table in tables if table.groups or table.unfinished):
        console.print(terminal_table(table))
    for run in damaged:
        console.print(Text(f"damaged: {run.folder}: {run.error}"))
    console.print(Text(summary(runs, damaged)))


if __name__ == "__main__":
    main()
