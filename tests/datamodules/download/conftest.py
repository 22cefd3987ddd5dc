"""`import download` as scripts/download.py imports its parts: Python puts a script's folder on its path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "scripts"))
