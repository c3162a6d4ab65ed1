"""Scheduler: which sequences compute how many tokens in the next step.

Running sequences come first, those that decode before those that prefill, so that a long prompt never stalls a stream.
Waiting ones are admitted in the order of FairQueue, which for a single tenant is that of arrival; one that waits for an
adapter slot is overtaken by those that need none, but only for a bounded number of steps. Not thread-safe: the
engine thread owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from loramux.adapters.slots import SlotTable
from loramux.batch import BASE_SLOT, ScheduledBatch, ScheduledSequence, SlotLoad
from loramux.engine.block_pool import BlockPool
from loramux.engine.fair_queue import FairQueue
from loramux.engine.request import Request, RequestStatus


class Scheduler:
    """Turns waiting and running requests into one ScheduledBatch per step.

    is_ready: whether an adapter that is in no slot can be put into one without holding up the step; while it is on its
    way to the device, others run without it.
    max_num_batched_tokens: tokens in one step. slot_wait_limit: steps that a request may be overtaken while all slots
    are held by other adapters; after that the least used adapter takes no new sequences until its slot is free.
    """

    def __init__(
        self,
        *,
        block_pool: BlockPool,
        slots: SlotTable,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        slot_wait_limit: int,
        enable_prefix_caching: bool = True,
        is_ready: Callable[[str], bool] = lambda _digest: True,
    ) -> None:
        self._is_ready = is_ready
        self.block_pool = block_pool
        self.slots = slots
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.slot_wait_limit = slot_wait_limit
        self.enable_prefix_caching = enable_prefix_caching
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.num_steps = 0
        self.num_computed_tokens = 0
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0
        self._draining: str | None = None

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request; it fits into the pool when it runs alone (the engine has checked)."""
        self.waiting.push(request)

    def finish(self, request: Request) -> None:
        """Free the blocks and the slot of a request, whatever state it is in; doing it twice is harmless."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._give_back(request)
        elif request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        request.status = RequestStatus.FINISHED

    def next_without_slot(self, limit: int) -> list[Request]:
        """Of the next `limit` waiting requests one for each adapter that is in no slot, in the order of their turn."""
        next_of: dict[str, Request] = {}
        for request in islice(self.waiting, limit):
            if request.digest is not None and not self.slots.is_resident(request.digest):
                next_of.setdefault(request.digest, request)
        return list(next_of.values())

    def schedule(self) -> ScheduledBatch | None:
        """Return the next step's work, or None when nothing can run."""
        planned: dict[str, tuple[Request, int]] = {}
        preempted = self._plan_running(planned)
        loads = [] if preempted else list(self._admit(planned))
        if not planned:
            return None
        self.num_steps += 1
        sequences = [self._sequence(request, num_new) for request, num_new in planned.values()]
        sequences.sort(key=lambda sequence: sequence.slot)
        return ScheduledBatch(tuple(sequences), tuple(loads))

    def complete(self, request: Request, num_new: int) -> None:
        """Record that the KV of the next `num_new` tokens of a request is in its blocks."""
        request.num_computed_tokens += num_new
        self.num_computed_tokens += num_new

    def forget_step(self, request: Request) -> None:
        """After a failed step: what this request was about to compute must never be reused."""
        first_unsure = request.num_computed_tokens // self.block_pool.block_size
        self.block_pool.forget(request.block_table[first_unsure:])

    def forget_all(self, request: Request) -> None:
        """After useless logits: nobody can tell which of this request's blocks made them so."""
        self.block_pool.forget(request.block_table)

    # --- running sequences

    def _plan_running(self, planned: dict[str, tuple[Request, int]]) -> bool:
        budget = self.max_num_batched_tokens
        preempted = False
        for request in sorted(self.running, key=lambda request: request.num_tokens - request.num_computed_tokens > 1):
            if budget == 0:
                break
            if request.status is not RequestStatus.RUNNING:
                continue  # preempted for a sequence before it
            num_new = min(request.num_tokens - request.num_computed_tokens, budget)
            while not self._grow(request, num_new):
                preempted = True
                victim = self._choose_victim(planned) or request
                self._preempt(victim)
                if victim is request:
                    break
            if request.status is RequestStatus.RUNNING:
                planned[request.request_id] = (request, num_new)
                budget -= num_new
        return preempted

    def _grow(self, request: Request, num_new: int) -> bool:
        """Give a request the blocks for `num_new` more tokens, if there are enough."""
        num_tokens = request.num_computed_tokens + num_new
        num_missing = self.block_pool.blocks_for(num_tokens) - len(request.block_table)
        if num_missing > 0:
            if not self.block_pool.can_allocate(num_missing):
                return False
            request.block_table += self.block_pool.allocate(num_missing)
        if self.enable_prefix_caching:
            first_new = request.num_computed_tokens // self.block_pool.block_size
            hashes = request.block_hashes(num_tokens, self.block_pool.block_size)
            for block, block_hash in zip(request.block_table[first_new:], hashes[first_new:], strict=False):
                self.block_pool.cache(block, block_hash)
        return True

    def _choose_victim(self, planned: dict[str, tuple[Request, int]]) -> Request | None:
        """The sequence admitted last, unless this step already counts on it."""
        return next((request for request in reversed(self.running) if request.request_id not in planned), None)

    def _preempt(self, request: Request) -> None:
        """Take a sequence's blocks and slot; it is computed again from its first token when there is room."""
        self.running.remove(request)
        self._give_back(request)
        request.status = RequestStatus.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push_front(request)

    def _give_back(self, request: Request) -> None:
        self.block_pool.release(request.block_table)
        request.block_table = []
        if request.digest is not None:
            self.slots.release(request.digest)

    # --- waiting sequences

    def _admit(self, planned: dict[str, tuple[Request, int]]) -> Iterator[SlotLoad]:
        budget = self.max_num_batched_tokens - sum(num_new for _request, num_new in planned.values())
        starving = self._find_starving()
        for request in list(self.waiting):
            if budget == 0 or len(self.running) >= self.max_num_seqs:
                return
            if not self._may_use_slot(request.digest, starving):
                request.slot_wait_steps += 1
                continue
            if planned and request.digest != starving and not self._has_arrived(request.digest):
                continue
            num_new = self._place(request, budget)
            if num_new == 0:
                return  # no blocks: nobody overtakes, or a long prompt would wait for ever
            planned[request.request_id] = (request, num_new)
            budget -= num_new
            if request.digest is not None:
                grant = self.slots.acquire(request.digest)
                if grant.needs_load:
                    yield SlotLoad(grant.slot, request.digest)
            self.waiting.admit(request)
            self.running.append(request)
            request.status = RequestStatus.RUNNING
            request.slot_wait_steps = 0

    def _find_starving(self) -> str | None:
        """Return the adapter whose turn it is, and choose which adapter makes room for it."""
        for request in self.waiting:
            digest = request.digest
            if digest is None or request.slot_wait_steps < self.slot_wait_limit or self.slots.is_resident(digest):
                continue
            users = {other: count for other, count in self.slots.users().items() if not self.slots.is_pinned(other)}
            if self.slots.can_acquire(digest):
                self._draining = None  # its slot is free and kept for it; something else is missing
            elif self._draining not in users:
                self._draining = min(users, key=users.__getitem__, default=None)
            return digest
        self._draining = None
        return None

    def _may_use_slot(self, digest: str | None, starving: str | None) -> bool:
        if digest is None:
            return True
        if starving is not None and digest != starving and not self._leaves_room(digest):
            return False
        return self.slots.can_acquire(digest)

    def _has_arrived(self, digest: str | None) -> bool:
        return digest is None or self.slots.is_resident(digest) or self._is_ready(digest)

    def _leaves_room(self, digest: str) -> bool:
        """Whether one more sequence of this adapter takes no slot that is, or is about to be, the starving one's."""
        if self.slots.is_pinned(digest):
            return self.slots.is_resident(digest)
        return digest != self._draining and digest in self.slots.users()

    def _place(self, request: Request, budget: int) -> int:
        """Give a waiting request the blocks for its first chunk; return the chunk's length, 0 when it must wait."""
        cached = self._cached_prefix(request)
        num_cached_tokens = len(cached) * self.block_pool.block_size
        num_new = min(request.num_tokens - num_cached_tokens, budget)
        num_missing = self.block_pool.blocks_for(num_cached_tokens + num_new) - len(cached)
        if not self.block_pool.can_allocate(num_missing + self.block_pool.num_free_among(cached)):
            return 0
        self.block_pool.share(cached)
        request.block_table = cached
        request.num_computed_tokens = num_cached_tokens
        if request.num_preemptions == 0:
            request.num_cached_tokens = num_cached_tokens
            self.num_prefix_query_tokens += request.num_prompt_tokens
            self.num_prefix_hit_tokens += num_cached_tokens
        grown = self._grow(request, num_new)
        assert grown
        return num_new

    def _cached_prefix(self, request: Request) -> list[int]:
        """Cached blocks of this request's tokens; at least its last token is always computed."""
        if not self.enable_prefix_caching or request.needs_prompt_logprobs:
            return []
        hashes = request.block_hashes(request.num_tokens - 1, self.block_pool.block_size)
        return self.block_pool.find_prefix(hashes)

    # --- the batch

    def _sequence(self, request: Request, num_new: int) -> ScheduledSequence:
        position = request.num_computed_tokens
        end = position + num_new
        return ScheduledSequence(
            request_id=request.request_id,
            token_ids=tuple(islice(request.token_ids, position, end)),
            position=position,
            block_table=tuple(request.block_table),
            slot=BASE_SLOT if request.digest is None else self.slots.slot_of(request.digest),
            num_logits=self._num_logits(request, position, end),
            samples=end == request.num_tokens,
        )

    @staticmethod
    def _num_logits(request: Request, position: int, end: int) -> int:
        samples = end == request.num_tokens
        if not request.needs_prompt_logprobs:
            return int(samples)
        first_owed = max(position, request.num_prompt_logprobs)  # after a preemption, some of them are there already
        return max(end - first_owed, int(samples))
