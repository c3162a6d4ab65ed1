"""SlotTable: which adapter is in which of the device's `max_loras` slots, and how many sequences use it.

A slot that is in use or pinned is never given away. Identity is the content digest: a reload under the same name is
another adapter. Not thread-safe: the engine thread owns it; others may ask `is_resident`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """A slot that holds, or must first be filled with, the adapter asked for."""

    slot: int
    needs_load: bool


class SlotTable:
    """Assigns adapters to slots, least recently used first out."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._users: dict[str, int] = {}
        self._pinned: set[str] = set()
        self._retired: set[str] = set()
        self._empty = list(range(num_slots))[::-1]
        self._vacated: list[int] = []
        self.num_evictions = 0

    @property
    def num_in_use(self) -> int:
        return sum(users > 0 for users in list(self._users.values()))  # a copy: other threads read this number

    @property
    def num_pinned(self) -> int:
        return len(self._pinned)

    def residents(self) -> list[str]:
        """The adapters that are in slots now; other threads may ask, too."""
        return list(self._slot_of)

    def is_resident(self, digest: str) -> bool:
        """Whether this content is in a slot; one look-up, so any thread may ask."""
        return digest in self._slot_of

    def digests(self) -> set[str]:
        """Every adapter that is in a slot, or that would keep one."""
        return self._slot_of.keys() | self._pinned

    def users(self) -> dict[str, int]:
        """How many sequences use each adapter that is in use."""
        return {digest: users for digest, users in self._users.items() if users > 0}

    def is_pinned(self, digest: str) -> bool:
        return digest in self._pinned

    def can_acquire(self, digest: str) -> bool:
        return digest in self._slot_of or bool(self._empty) or self._idle() is not None

    def acquire(self, digest: str) -> SlotGrant:
        """Count one more user of this adapter. The caller asks `can_acquire` first, and releases exactly once."""
        assert self.can_acquire(digest)
        self._retired.discard(digest)
        needs_load = digest not in self._slot_of
        if needs_load:
            self._slot_of[digest] = self._take_slot()
            self._users[digest] = 0
        self._users[digest] += 1
        self._slot_of.move_to_end(digest)
        return SlotGrant(self._slot_of[digest], needs_load)

    def release(self, digest: str) -> None:
        """Count one user less; the adapter stays in its slot until another one needs it."""
        self._users[digest] -= 1
        assert self._users[digest] >= 0
        if self._users[digest] == 0 and digest in self._retired:
            self._vacate(digest)

    def slot_of(self, digest: str) -> int:
        return self._slot_of[digest]

    def pin(self, digest: str) -> bool:
        """Keep this adapter in its slot once it gets there; False when that would leave no slot for the others."""
        if digest not in self._pinned and len(self._pinned) + 1 >= self.num_slots:
            return False
        self._pinned.add(digest)
        return True

    def unpin(self, digest: str) -> None:
        """Undo `pin`."""
        self._pinned.discard(digest)

    def retire(self, digest: str) -> None:
        """Free the slot of an unloaded adapter: now, or when its last sequence has finished."""
        if digest not in self._slot_of:
            return
        if self._users[digest]:
            self._retired.add(digest)
        else:
            self._vacate(digest)

    def take_vacated(self) -> list[int]:
        """Return the slots that unloaded adapters left since the last call: their memory can be freed."""
        vacated, self._vacated = [slot for slot in self._vacated if slot in self._empty], []
        return vacated

    def _take_slot(self) -> int:
        if self._empty:
            return self._empty.pop()
        idle = self._idle()
        assert idle is not None
        self._drop(idle)
        self.num_evictions += 1
        return self._empty.pop()

    def _idle(self) -> str | None:
        for digest in self._slot_of:
            if self._users[digest] == 0 and digest not in self._pinned:
                return digest
        return None

    def _drop(self, digest: str) -> None:
        self._empty.append(self._slot_of.pop(digest))
        del self._users[digest]
        self._retired.discard(digest)

    def _vacate(self, digest: str) -> None:
        self._vacated.append(self._slot_of[digest])
        self._drop(digest)

    def check_integrity(self) -> None:
        """Raise AssertionError when a slot is lost or held twice."""
        slots = sorted([*self._slot_of.values(), *self._empty])
        assert slots == list(range(self.num_slots)), f"slots {slots}"
        assert self._users.keys() == self._slot_of.keys()
        assert self._retired <= self._slot_of.keys()
