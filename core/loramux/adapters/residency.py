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


def shown_residency(residency: Residency | None) -> dict[str, object]:
    """Say it to operators; what is not in memory is on the disk, and is not pinned."""
    if residency is None:
        return {"tier": "disk", "pinned": False}
    return {"tier": residency.tier, "pinned": residency.is_pinned}
