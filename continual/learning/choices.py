"""Choices that settings offer, apart from what they choose: to check a configuration needs no torch."""

from __future__ import annotations

from typing import Literal

ScheduleUnit = Literal["step", "epoch"]
Decaying = Literal["all", "new"]
