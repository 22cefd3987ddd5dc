"""Importing this puts the clone that the script lies in on Python's path, before any clone that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
