"""The two streams of a device, simulated: what was launched is done when a test says so, in any order events allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loramux.model.adapter_memory import Event


@dataclass
class Reached:
    """An event that is reached when its stream comes to it."""

    is_reached: bool = False

    def query(self) -> bool:
        return self.is_reached


class SimulatedStream:
    """Work in its order; a piece may have to wait for an event of the other stream."""

    def __init__(self) -> None:
        self._work: deque[tuple[Event | None, Callable[[], object]]] = deque()

    def launch(self, work: Callable[[], object], *, after: Event | None = None) -> None:
        self._work.append((after, work))

    def advance(self) -> bool:
        """Do the next piece; False when there is none, or it has to wait."""
        if not self._work or not (self._work[0][0] is None or self._work[0][0].query()):
            return False
        self._work.popleft()[1]()
        return True

    def record(self) -> Reached:
        event = Reached()
        self.launch(lambda: setattr(event, "is_reached", True))
        return event


class SimulatedStreams:
    """`loramux.model.adapter_memory.Streams` on a CPU."""

    def __init__(self) -> None:
        self.steps = SimulatedStream()
        self.copies = SimulatedStream()

    def copy(self, source: torch.Tensor, target: torch.Tensor, *, after: Event | None) -> Event:
        self.copies.launch(lambda: target.copy_(source), after=after)
        return self.copies.record()

    def mark(self) -> Event:
        return self.steps.record()

    def wait(self, event: Event) -> None:
        self.steps.launch(lambda: None, after=event)

    def finish(self) -> None:
        """Do all that was launched."""
        while self.copies.advance() or self.steps.advance():
            pass
