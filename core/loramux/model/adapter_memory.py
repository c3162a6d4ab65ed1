"""AdapterMemory: where adapters lie on a GPU, and how they get there while steps go on.

There is a buffer per slot and one to spare, all taken at the start. An adapter comes in one copy, on a stream of its
own, from memory that its loader has pinned. A step that uses the adapter begins after the copy; the copy begins after
the last step that read what was in the buffer before. The engine thread waits for neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from loramux.adapters.packed import ALIGNMENT, PackedAdapter
from loramux.adapters.weights import LoRATarget

NUM_SPARES = 1


class Event(Protocol):
    """A place in the work of a stream."""

    def query(self) -> bool:
        """Whether the work before it is done."""
        ...


class Streams(Protocol):
    """The two streams of a device: steps are computed on one, adapters are copied on the other."""

    def copy(self, source: torch.Tensor, target: torch.Tensor, *, after: Event | None) -> Event:
        """Begin a copy once `after` is reached; returns its end."""
        ...

    def mark(self) -> Event:
        """The end of all steps that were launched."""
        ...

    def wait(self, event: Event) -> None:
        """Let the steps that are launched from now on begin after it."""
        ...


class CudaStreams:
    """The Streams of the current CUDA device; steps are on the current stream."""

    def __init__(self) -> None:
        self._copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def copy(self, source: torch.Tensor, target: torch.Tensor, *, after: Event | None) -> Event:
        with torch.cuda.stream(self._copies):
            if after is not None:
                self._copies.wait_event(after)  # type: ignore[arg-type]  # what record_event made
            target.copy_(source, non_blocking=True)  # torch keeps the pinned source until this is done
            done: Event = self._copies.record_event()
        return done

    def mark(self) -> Event:
        event: Event = torch.cuda.current_stream().record_event()
        return event

    def wait(self, event: Event) -> None:
        torch.cuda.current_stream().wait_event(event)  # type: ignore[arg-type]  # what record_event made


@dataclass(slots=True)
class _Buffer:
    memory: torch.Tensor
    last_use: Event | None = None


@dataclass(frozen=True, slots=True)
class _Arrival:
    adapter: PackedAdapter
    buffer: _Buffer
    copied: Event


class AdapterMemory:
    """Buffers for `num_slots` adapters in slots, and for those on their way there. Owned by the engine thread.

    max_numel: elements of the largest slab.
    """

    def __init__(
        self, streams: Streams, *, num_slots: int, max_numel: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._streams = streams
        self._free = deque(
            _Buffer(torch.empty(max_numel, dtype=dtype, device=device)) for _ in range(num_slots + NUM_SPARES)
        )
        self._num_buffers = len(self._free)
        self._arrivals: dict[str, _Arrival] = {}  # by digest
        self._placed: dict[int, _Buffer] = {}  # by slot
        self.num_copies = 0

    def prefetch(self, adapters: Sequence[PackedAdapter]) -> None:
        """Begin to copy the adapters that are waited for, in this order, as far as there are buffers.

        What was begun for one that is not among them any more is given up.
        """
        wanted = {adapter.digest for adapter in adapters}
        for digest in [digest for digest in self._arrivals if digest not in wanted]:
            self._give_up(digest)
        for adapter in adapters:
            if not self._free:
                return
            if adapter.digest not in self._arrivals:
                self._begin(adapter)

    def is_ready(self, digest: str) -> bool:
        """Whether an adapter has arrived: it can be taken without a step waiting for its copy."""
        return digest in self._arrivals and self._arrivals[digest].copied.query()

    def take(self, slot: int, adapter: PackedAdapter) -> torch.Tensor:
        """Return an adapter's slab on the device, for steps that are launched from now on; the slot was released.

        It need not have been prefetched: there is a buffer for every slot.
        """
        assert slot not in self._placed
        if adapter.digest not in self._arrivals:
            if not self._free:
                self._give_up(next(reversed(self._arrivals)))
            self._begin(adapter)
        arrival = self._arrivals.pop(adapter.digest)
        self._streams.wait(arrival.copied)
        self._placed[slot] = arrival.buffer
        return arrival.buffer.memory[: adapter.slab.numel()]

    def release(self, slot: int) -> None:
        """Let go of a slot's adapter; its buffer is written again when the steps launched so far are done."""
        buffer = self._placed.pop(slot)
        buffer.last_use = self._streams.mark()
        self._free.append(buffer)

    def check_integrity(self) -> None:
        """Raise AssertionError when a buffer is lost or has two owners."""
        arriving = [arrival.buffer for arrival in self._arrivals.values()]
        addresses = [buffer.memory.data_ptr() for buffer in (*self._free, *arriving, *self._placed.values())]
        assert len(set(addresses)) == len(addresses), f"a buffer has two owners: {addresses}"
        assert len(addresses) == self._num_buffers, f"{len(addresses)} of {self._num_buffers} buffers"

    def _begin(self, adapter: PackedAdapter) -> None:
        buffer = self._free.popleft()  # the one that has not been used for longest
        target = buffer.memory[: adapter.slab.numel()]
        copied = self._streams.copy(adapter.slab, target, after=buffer.last_use)
        self._arrivals[adapter.digest] = _Arrival(adapter, buffer, copied)
        self.num_copies += 1

    def _give_up(self, digest: str) -> None:
        """The next copy into this buffer comes after this one, on the same stream; no step has read it."""
        self._free.append(self._arrivals.pop(digest).buffer)


def max_slab_numel(targets: Mapping[str, LoRATarget], *, max_rank: int, dtype: torch.dtype) -> int:
    """Elements of the slab of an adapter that changes every target with the highest rank."""
    step = ALIGNMENT // dtype.itemsize
    sizes = [max_rank * size for target in targets.values() for size in (target.in_features, target.out_features)]
    return sum(-(-size // step) * step for size in sizes)
