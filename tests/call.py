"""`python tests/call.py <module> <function> <argument> ...`: calls a function of a test module, as one of several
processes of a test."""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    module, function, *arguments = sys.argv[1:]
    getattr(importlib.import_module(module), function)(*arguments)
