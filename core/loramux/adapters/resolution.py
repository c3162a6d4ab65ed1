"""What a search for one name comes to: where the adapter was found, and what each resolver said on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from loramux.lora.request import LoRARequest

Verdict = Literal["found", "stored", "not found", "denied", "failed", "not asked", "invalid", "loaded"]


class Hold(Protocol):
    """Keeps stored files on the disk until it is released, which is idempotent."""

    def release(self) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter in a local folder, not read yet.

    `lora_request` has the id that the resolver put there: the registry gives its own. `revision` is what the source
    calls this version; for a local folder, the fingerprint of its files. `hold` must be released once it is read.
    `is_new` is false for what the store had already. After `revalidate_seconds` its source is asked again (None =
    never). `confirm` blocks; it is called once the adapter has proved to be valid, so that the name is known by it.
    `defaults` has the texts that a fetched adapter brings besides its weights, by file name; None where they lie in the
    folder.
    """

    lora_request: LoRARequest
    resolver: str
    root: str
    revision: str
    hold: Hold | None = None
    is_new: bool = True
    revalidate_seconds: float | None = None
    confirm: Callable[[], None] | None = None
    defaults: Mapping[str, str] | None = None

    def release(self) -> None:
        """Let the stored files go."""
        if self.hold is not None:
            self.hold.release()


@dataclass(frozen=True, slots=True)
class TraceStep:
    """What one resolver said, why, and how long it took."""

    resolver: str
    verdict: Verdict
    reason: str
    milliseconds: float


@dataclass(slots=True)
class Trace:
    """The steps of one search, in order; for operators only, since reasons may name places."""

    name: str
    steps: list[TraceStep] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter

    def add(self, resolver: str, verdict: Verdict, reason: str = "", *, since: float | None = None) -> None:
        """Add a step that took from `since`, a reading of `clock`, to now."""
        elapsed = 0.0 if since is None else self.clock() - since
        self.steps.append(TraceStep(resolver, verdict, reason, elapsed * 1000))
