"""Residency: where an adapter rests now, and whether it is to stay there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["slot", "host"]
"""In a slot of the device (and in host memory), or in host memory alone; everything else is on the disk."""


@dataclass(frozen=True, slots=True)
class Residency:
    """What the engine says of an adapter in host memory. One that has left it must be read again, slot or not."""

    tier: Tier
    is_pinned: bool
