"""Import this first: the scripts then use the clone that they lie in, even where another clone is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
