"""Reads the .wandb file of an offline run back: a log of records in 32 KiB blocks, each a protobuf message."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """Protobuf records in file order; a torn tail ends the iteration."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, message = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(content):
        room = BLOCK - position % BLOCK
        if room < RECORD_HEADER:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        chunk = content[position + RECORD_HEADER : position + RECORD_HEADER + length]
        position += RECORD_HEADER + length
        if len(chunk) < length:
            return
        message = chunk if kind in (FULL, FIRST) else message + chunk
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(message)


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_run(directory: Path) -> dict[str, Any]:
    """Config, history, run record and exit code of the newest offline run below a folder."""
    path = max(directory.glob("**/*.wandb"), key=lambda p: p.stat().st_mtime)
    run: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "exit": None, "files": path.parent / "files"}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run["id"], run["group"], run["job_type"] = record.run.run_id, record.run.run_group, record.run.job_type
            run["tags"] = list(record.run.tags)
            run["config"] |= _values(record.run.config.update)
        elif kind == "config":
            run["config"] |= _values(record.config.update)
        elif kind == "summary":
            run["summary"] |= _values(record.summary.update)
        elif kind == "history":
            run["history"].append(_values(record.history.item))
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run
