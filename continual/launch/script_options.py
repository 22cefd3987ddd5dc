"""Options that several scripts have."""

from __future__ import annotations

from argparse import ArgumentParser


def add_trust(parser: ArgumentParser) -> None:
    """Whether files may name classes that are no part of this project, see continual/models/trust.py."""
    parser.add_argument(
        "--trust", action="store_true", help="files may name classes of your own; of a stranger's file it runs any code"
    )


def add_device(parser: ArgumentParser) -> None:
    """What the network runs on."""
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 ...")
