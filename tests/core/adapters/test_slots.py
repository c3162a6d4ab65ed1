"""A slot that sequences use, or that is pinned, is never given to another adapter."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loramux.adapters.slots import SlotGrant, SlotTable

DIGESTS = st.sampled_from("abcde")


def idle(table: SlotTable, *digests: str) -> None:
    """Bring adapters into slots, and let go of them."""
    for digest in digests:
        table.acquire(digest)
        table.release(digest)


def test_the_first_use_needs_a_load_and_the_next_does_not() -> None:
    table = SlotTable(2)

    assert table.acquire("a").needs_load
    assert table.acquire("a") == SlotGrant(table.slot_of("a"), needs_load=False)
    assert table.num_in_use == 1
    assert table.users() == {"a": 2}


def test_an_idle_adapter_stays_in_its_slot_until_another_needs_it() -> None:
    table = SlotTable(1)
    idle(table, "a")
    assert table.is_resident("a")
    assert table.num_in_use == 0

    assert table.acquire("b").needs_load
    assert not table.is_resident("a")


def test_the_least_recently_used_idle_adapter_leaves_first() -> None:
    table = SlotTable(3)
    idle(table, "a", "b", "c", "a")

    table.acquire("d")

    assert not table.is_resident("b")
    assert table.is_resident("a")
    assert table.is_resident("c")


def test_a_used_slot_is_never_given_away() -> None:
    table = SlotTable(1)
    table.acquire("a")

    assert not table.can_acquire("b")
    assert table.can_acquire("a")


def test_a_pinned_slot_is_never_given_away() -> None:
    table = SlotTable(2)
    assert table.pin("a")
    idle(table, "a", "b")

    table.acquire("c")

    assert table.is_resident("a")
    assert not table.can_acquire("b")


def test_the_last_slot_cannot_be_pinned() -> None:
    table = SlotTable(2)

    assert table.pin("a")
    assert table.pin("a"), "pinning twice is pinning once"
    assert not table.pin("b")
    assert not SlotTable(1).pin("a")


def test_an_unpinned_slot_can_be_given_away_again() -> None:
    table = SlotTable(2)
    table.pin("a")
    idle(table, "a")

    table.unpin("a")

    assert not table.is_pinned("a")
    assert table.pin("b")


def test_retiring_an_idle_adapter_frees_its_slot_now() -> None:
    table = SlotTable(2)
    idle(table, "a")
    slot = table.slot_of("a")

    table.retire("a")

    assert not table.is_resident("a")
    assert table.take_vacated() == [slot]
    assert table.take_vacated() == []


def test_retiring_a_used_adapter_frees_its_slot_at_the_last_release() -> None:
    table = SlotTable(2)
    table.acquire("a")
    slot = table.acquire("a").slot
    table.retire("a")

    table.release("a")
    assert table.is_resident("a")
    assert table.take_vacated() == []
    table.release("a")
    assert not table.is_resident("a")
    assert table.take_vacated() == [slot]


def test_a_vacated_slot_that_was_filled_again_is_not_reported() -> None:
    """Its memory belongs to the new adapter by then."""
    table = SlotTable(1)
    idle(table, "a")
    table.retire("a")
    table.acquire("b")

    assert table.take_vacated() == []


def test_retiring_an_adapter_that_is_in_no_slot_does_nothing() -> None:
    table = SlotTable(1)
    table.retire("a")

    table.check_integrity()
    assert table.can_acquire("b")


def test_an_adapter_acquired_again_after_it_was_retired_stays() -> None:
    table = SlotTable(1)
    table.acquire("a")
    table.retire("a")
    table.acquire("a")

    table.release("a")
    table.release("a")

    assert table.is_resident("a")


@pytest.mark.parametrize("num_slots", [1, 3])
def test_every_slot_can_be_used_at_once(num_slots: int) -> None:
    table = SlotTable(num_slots)

    slots = {table.acquire(str(index)).slot for index in range(num_slots)}

    assert slots == set(range(num_slots))
    assert table.num_in_use == num_slots


class SlotTableMachine(RuleBasedStateMachine):
    """Adapters are used, released, pinned and retired; who must still be where is kept beside the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(3)
        self.used: dict[str, list[int]] = {}  # digest → the slot that each of its users was told
        self.filled: dict[int, str] = {}  # what a runner would have loaded into each slot
        self.pinned: set[str] = set()

    @rule(digest=DIGESTS)
    def acquire(self, digest: str) -> None:
        if not self.table.can_acquire(digest):
            held = set(self.used) | {pinned for pinned in self.pinned if self.table.is_resident(pinned)}
            assert len(held) == self.table.num_slots, "refused although a slot was idle"
            return
        pinned_at = {pinned: self.table.slot_of(pinned) for pinned in self.pinned if self.table.is_resident(pinned)}
        grant = self.table.acquire(digest)
        if grant.needs_load:
            assert grant.slot not in pinned_at.values()
            assert all(grant.slot not in slots for slots in self.used.values())
            self.filled[grant.slot] = digest
        assert self.filled[grant.slot] == digest
        self.used.setdefault(digest, []).append(grant.slot)

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        if digest in self.used:
            self.table.release(digest)
            self.used[digest].pop()
            if not self.used[digest]:
                del self.used[digest]

    @rule(digest=DIGESTS)
    def pin(self, digest: str) -> None:
        if self.table.pin(digest):
            self.pinned.add(digest)
        assert len(self.pinned) < self.table.num_slots

    @rule(digest=DIGESTS)
    def unpin(self, digest: str) -> None:
        self.table.unpin(digest)
        self.pinned.discard(digest)

    @rule(digest=DIGESTS)
    def retire(self, digest: str) -> None:
        self.table.retire(digest)
        assert digest in self.used or not self.table.is_resident(digest)

    @rule()
    def clear_vacated(self) -> None:
        for slot in self.table.take_vacated():
            del self.filled[slot]

    @invariant()
    def users_find_their_adapter_where_they_were_told(self) -> None:
        self.table.check_integrity()
        assert self.table.users() == {digest: len(slots) for digest, slots in self.used.items()}
        assert self.table.num_in_use == len(self.used)
        for digest, slots in self.used.items():
            assert set(slots) == {self.table.slot_of(digest)}
            assert self.filled[slots[0]] == digest


TestSlotTableMachine = SlotTableMachine.TestCase
TestSlotTableMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
