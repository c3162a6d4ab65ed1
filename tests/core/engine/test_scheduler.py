"""Every request gets its turn: within the token budget, the blocks and the slots, and before it has waited too long."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux.adapters.slots import SlotTable
from loramux.batch import BASE_SLOT, ScheduledBatch, ScheduledSequence
from loramux.engine.block_pool import BlockPool
from loramux.engine.request import Request, RequestStatus
from loramux.engine.scheduler import Scheduler
from loramux.sampling_params import SamplingParams

BLOCK_SIZE = 4


class FakeEngine:
    """Drives a scheduler as the engine does; the model writes, for every block slot, what lies there.

    It fails when a sequence would read KV that is not its own tokens under its own adapter, when a slot holds another
    adapter, or when anything is out of balance.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 100,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_loras: int = 2,
        slot_wait_limit: int = 4,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.on_the_way: set[str] = set()  # adapters whose copy to the device is not done
        self.pool = BlockPool(num_blocks=num_blocks, block_size=BLOCK_SIZE)
        self.slots = SlotTable(max_loras)
        self.scheduler = Scheduler(
            block_pool=self.pool,
            slots=self.slots,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            slot_wait_limit=slot_wait_limit,
            enable_prefix_caching=enable_prefix_caching,
            is_ready=lambda digest: digest not in self.on_the_way,
        )
        self.requests: dict[str, Request] = {}
        self.num_answer_tokens: dict[str, int] = {}
        self.kv: dict[tuple[int, int], tuple[str | None, tuple[int, ...]]] = {}
        self.slot_contents: dict[int, str] = {}
        self.num_steps = 0
        self.admitted_at: dict[str, int] = {}
        self.finished: list[str] = []

    def add(
        self,
        name: str,
        *,
        prompt: int | Sequence[int] = 3,
        answer: int = 2,
        digest: str | None = None,
        prompt_logprobs: int | None = None,
        tenant: str | None = None,
    ) -> Request:
        """Queue a request; a prompt given as a length has tokens of its own."""
        tokens = (
            [crc32(name.encode()) % 4000 + place for place in range(prompt)]
            if isinstance(prompt, int)
            else list(prompt)
        )
        params = SamplingParams(max_tokens=answer, prompt_logprobs=prompt_logprobs)
        request = Request(name, tokens, params, digest=digest, max_total_tokens=10_000, tenant=tenant)
        self.requests[name] = request
        self.num_answer_tokens[name] = answer
        self.scheduler.add(request)
        return request

    def step(self) -> ScheduledBatch | None:
        """Schedule, execute and update once, and check everything."""
        self.num_steps += 1
        batch = self.scheduler.schedule()
        self.check()
        if batch is None:
            return None
        assert 0 < batch.num_tokens <= self.scheduler.max_num_batched_tokens
        assert len(batch.sequences) <= self.scheduler.max_num_seqs
        for load in batch.slot_loads:
            self.slot_contents[load.slot] = load.digest
        for sequence in batch.sequences:
            self.write(sequence)
        for sequence in batch.sequences:
            self.read(sequence)
        for sequence in batch.sequences:
            self.update(sequence)
        self.check()
        return batch

    def write(self, sequence: ScheduledSequence) -> None:
        request = self.requests[sequence.request_id]
        self.admitted_at.setdefault(sequence.request_id, self.num_steps)
        if request.digest is None:
            assert sequence.slot == BASE_SLOT
        else:
            assert self.slot_contents[sequence.slot] == request.digest
        for position in range(sequence.position, sequence.position + len(sequence.token_ids)):
            place = (sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE)
            self.kv[place] = (request.digest, tuple(request.token_ids[: position + 1]))

    def read(self, sequence: ScheduledSequence) -> None:
        request = self.requests[sequence.request_id]
        for position in range(sequence.position + len(sequence.token_ids)):
            place = (sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE)
            assert self.kv[place] == (request.digest, tuple(request.token_ids[: position + 1])), "wrong KV"

    def update(self, sequence: ScheduledSequence) -> None:
        request = self.requests[sequence.request_id]
        self.scheduler.complete(request, len(sequence.token_ids))
        if request.params.prompt_logprobs is not None:
            end = sequence.position + len(sequence.token_ids)
            owed = range(end - sequence.num_logits, min(end, request.num_prompt_tokens - 1))
            assert not owed or owed.start == request.num_prompt_logprobs, "a prompt logprob came twice, or never"
            request.num_prompt_logprobs += len(owed)
        if sequence.samples:
            request.append(9000 + len(request.output_token_ids))
            if len(request.output_token_ids) == self.num_answer_tokens[sequence.request_id]:
                self.scheduler.finish(request)
                self.finished.append(sequence.request_id)

    def run(self, max_steps: int = 2000) -> None:
        """Step until nothing is left."""
        for _ in range(max_steps):
            if not self.scheduler.has_work():
                return
            self.step()
        raise AssertionError(f"unfinished after {max_steps} steps: {[r.request_id for r in self.scheduler.waiting]}")

    def check(self) -> None:
        self.pool.check_integrity()
        self.slots.check_integrity()
        tables = [request.block_table for request in self.scheduler.running]
        assert all(not request.block_table for request in self.scheduler.waiting)
        assert self.pool.num_blocks - self.pool.num_free == len({block for table in tables for block in table})

    def assert_all_is_given_back(self) -> None:
        assert not self.scheduler.has_work()
        assert self.pool.num_free == self.pool.num_blocks
        assert self.slots.num_in_use == 0
        self.check()


def ids(batch: ScheduledBatch | None) -> list[str]:
    return [] if batch is None else [sequence.request_id for sequence in batch.sequences]


def lengths(batch: ScheduledBatch | None) -> dict[str, int]:
    return {} if batch is None else {sequence.request_id: len(sequence.token_ids) for sequence in batch.sequences}


# --- the budget


def test_nothing_to_do_is_none() -> None:
    assert FakeEngine().step() is None


def test_a_short_prompt_is_computed_in_one_step_and_decoded_in_the_next() -> None:
    engine = FakeEngine()
    engine.add("a", prompt=5)

    assert lengths(engine.step()) == {"a": 5}
    assert lengths(engine.step()) == {"a": 1}
    engine.assert_all_is_given_back()


def test_a_long_prompt_is_cut_into_chunks_of_the_budget() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=4)
    engine.add("a", prompt=20, answer=1)

    chunks = [engine.step() for _ in range(3)]

    assert [lengths(chunk)["a"] for chunk in chunks] == [8, 8, 4]
    assert [chunk.sequences[0].samples for chunk in chunks if chunk] == [False, False, True]
    assert [chunk.sequences[0].num_logits for chunk in chunks if chunk] == [0, 0, 1]


def test_decodes_come_before_prefills() -> None:
    """A long prompt never stalls a stream that is under way."""
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=4)
    engine.add("stream", prompt=2, answer=10)
    engine.step()
    engine.add("long", prompt=40)

    for _ in range(5):
        assert lengths(engine.step()) == {"stream": 1, "long": 7}


def test_a_stream_admitted_after_a_long_prompt_is_not_stalled_by_it() -> None:
    engine = FakeEngine(max_num_batched_tokens=4, max_num_seqs=4)
    long = engine.add("long", prompt=6, answer=2)
    engine.step()
    engine.add("stream", prompt=2, answer=9)
    engine.step()
    assert {request.request_id for request in engine.scheduler.running} == {"long", "stream"}
    for token in range(20):
        long.append(token)  # as if its prompt went on

    assert lengths(engine.step()) == {"stream": 1, "long": 3}


def test_no_more_sequences_run_than_allowed() -> None:
    engine = FakeEngine(max_num_seqs=2, max_num_batched_tokens=100)
    for name in "abc":
        engine.add(name)

    assert ids(engine.step()) == ["a", "b"]


def test_requests_start_in_order_of_arrival() -> None:
    engine = FakeEngine(max_num_seqs=2)
    for name in "abcdef":
        engine.add(name, prompt=3, answer=3)

    engine.run()

    assert sorted(engine.admitted_at, key=lambda name: (engine.admitted_at[name], name)) == list("abcdef")


def test_nobody_overtakes_a_prompt_that_waits_for_blocks() -> None:
    engine = FakeEngine(num_blocks=6, max_num_batched_tokens=100)
    engine.add("first", prompt=12, answer=3)
    engine.step()
    engine.add("large", prompt=16, answer=1)
    engine.add("small", prompt=1, answer=1)

    assert ids(engine.step()) == ["first"]
    engine.run()
    assert engine.admitted_at["small"] >= engine.admitted_at["large"]


def test_rows_of_one_slot_are_neighbours() -> None:
    engine = FakeEngine(max_num_batched_tokens=100)
    for index, digest in enumerate(["a", None, "b", "a", None, "b"]):
        engine.add(str(index), digest=digest)

    batch = engine.step()

    assert batch is not None
    slots = [sequence.slot for sequence in batch.sequences]
    assert slots == sorted(slots)
    assert len(slots) == 6


# --- blocks and preemption


def test_too_few_blocks_preempt_the_last_one_and_everybody_finishes() -> None:
    engine = FakeEngine(num_blocks=6, max_num_batched_tokens=64)
    for name in "abcd":
        engine.add(name, prompt=4, answer=12)

    engine.run()

    assert engine.scheduler.num_preemptions > 0
    assert engine.requests["a"].num_preemptions == 0, "the oldest is never set back"
    assert sorted(engine.finished) == list("abcd")
    assert engine.finished[0] == "a"
    engine.assert_all_is_given_back()


def test_a_preempted_request_is_the_next_to_be_admitted() -> None:
    engine = FakeEngine(num_blocks=4, max_num_batched_tokens=64)
    engine.add("a", prompt=7, answer=8)
    engine.add("b", prompt=7, answer=8)
    engine.step()
    engine.add("c", prompt=1, answer=1)
    while not engine.scheduler.num_preemptions:
        engine.step()

    assert [request.request_id for request in engine.scheduler.waiting] == ["b", "c"]
    while "c" not in engine.admitted_at:
        batch = engine.step()
    assert "b" in ids(batch)


def test_a_preempted_request_gives_its_slot_back() -> None:
    engine = FakeEngine(num_blocks=4, max_num_batched_tokens=64, max_loras=1)
    engine.add("a", prompt=7, answer=8)
    engine.add("b", prompt=7, answer=8, digest="x")
    while not engine.scheduler.num_preemptions:
        engine.step()

    assert engine.slots.num_in_use == 0
    engine.run()
    engine.assert_all_is_given_back()


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    engine = FakeEngine(num_blocks=5, max_num_batched_tokens=64)
    engine.add("a", prompt=7, answer=6)
    late = engine.add("b", prompt=7, answer=8)
    while not late.num_preemptions:
        engine.step()
    engine.scheduler.finish(engine.requests["a"])

    batch = engine.step()

    assert batch is not None
    assert batch.sequences[0].position > 0
    assert late.num_cached_tokens == 0, "what a request reports is what it found when it arrived"


def test_a_long_prompt_is_not_set_back_for_ever_by_short_ones() -> None:
    engine = FakeEngine(num_blocks=12, max_num_batched_tokens=8, max_num_seqs=4)
    for step in range(300):
        if step == 5:
            engine.add("long", prompt=40, answer=4)
        engine.add(f"short{step}", prompt=6, answer=5)
        engine.step()
        if "long" in engine.finished:
            return
    raise AssertionError("the long prompt never finished")


def test_finishing_frees_everything_in_every_state_and_twice_is_harmless() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=2)
    decoding = engine.add("decoding", prompt=2, answer=9, digest="x")
    engine.step()
    prefilling = engine.add("prefilling", prompt=30, digest="y")
    waiting = engine.add("waiting")
    engine.step()
    assert [r.status for r in (decoding, prefilling, waiting)] == [
        RequestStatus.RUNNING,
        RequestStatus.RUNNING,
        RequestStatus.WAITING,
    ]

    for request in (decoding, prefilling, waiting) * 2:
        engine.scheduler.finish(request)

    engine.assert_all_is_given_back()


# --- the prefix cache


def test_the_same_prompt_is_computed_once() -> None:
    engine = FakeEngine()
    engine.add("first", prompt=range(11), answer=1)
    engine.run()

    second = engine.add("second", prompt=range(11), answer=1)

    assert lengths(engine.step()) == {"second": 3}
    assert second.num_cached_tokens == 8


def test_the_last_token_is_always_computed() -> None:
    engine = FakeEngine()
    engine.add("first", prompt=range(8), answer=1)
    engine.run()
    engine.add("second", prompt=range(8), answer=1)

    assert lengths(engine.step()) == {"second": 4}


def test_an_answer_can_be_the_prefix_of_the_next_prompt() -> None:
    engine = FakeEngine()
    first = engine.add("first", prompt=range(6), answer=7)
    engine.run()

    second = engine.add("second", prompt=[*first.token_ids, 1, 2])
    engine.step()

    assert second.num_cached_tokens == 12


def test_requests_of_one_step_share_what_the_first_of_them_computes() -> None:
    """The FakeEngine checks that every position read was written: blocks are registered before they are computed."""
    engine = FakeEngine(max_num_batched_tokens=64)
    engine.add("first", prompt=range(10))
    second = engine.add("second", prompt=[*range(10), 77])

    assert lengths(engine.step()) == {"first": 10, "second": 3}
    assert second.num_cached_tokens == 8
    engine.run()
    engine.assert_all_is_given_back()


def test_a_chunk_shares_only_the_blocks_that_are_complete() -> None:
    engine = FakeEngine(max_num_batched_tokens=10, max_num_seqs=4)
    engine.add("first", prompt=range(16))
    engine.step()
    second = engine.add("second", prompt=range(16))

    engine.step()

    assert second.num_cached_tokens == 12, "two blocks of the first step, one of this one"
    engine.run()


@pytest.mark.parametrize(("one", "other"), [("x", "y"), ("x", None), (None, "x")])
def test_another_adapters_prefix_is_never_used(one: str | None, other: str | None) -> None:
    engine = FakeEngine()
    engine.add("first", prompt=range(11), answer=1, digest=one)
    engine.run()

    second = engine.add("second", prompt=range(11), answer=1, digest=other)
    engine.run()

    assert second.num_cached_tokens == 0


def test_without_prefix_caching_nothing_is_shared() -> None:
    engine = FakeEngine(enable_prefix_caching=False)
    engine.add("first", prompt=range(11), answer=1)
    engine.run()
    second = engine.add("second", prompt=range(11), answer=1)

    assert lengths(engine.step()) == {"second": 11}
    assert second.num_cached_tokens == 0


def test_what_a_failed_step_was_to_compute_is_never_found() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=4)
    failed = engine.add("failed", prompt=range(20))
    engine.step()
    assert engine.scheduler.schedule() is not None  # … and the model raises
    engine.scheduler.forget_step(failed)
    engine.scheduler.finish(failed)

    second = engine.add("second", prompt=range(20))
    engine.run()

    assert second.num_cached_tokens == 8


def test_nothing_of_a_request_with_useless_numbers_is_ever_found() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=4)
    failed = engine.add("failed", prompt=range(20))
    engine.step()
    engine.step()
    engine.scheduler.forget_all(failed)
    engine.scheduler.finish(failed)

    second = engine.add("second", prompt=range(20))
    engine.run()

    assert second.num_cached_tokens == 0


# --- prompt logprobs


def test_prompt_logprobs_need_every_position_even_of_a_cached_prompt() -> None:
    engine = FakeEngine(max_num_batched_tokens=8, max_num_seqs=4)
    engine.add("first", prompt=range(12), answer=1)
    engine.run()
    second = engine.add("second", prompt=range(12), answer=2, prompt_logprobs=0)

    batches = [engine.step() for _ in range(3)]

    assert [batch.sequences[0].num_logits for batch in batches if batch] == [8, 4, 1]
    assert second.num_prompt_logprobs == 11


def test_prompt_logprobs_come_once_though_the_prompt_is_computed_twice() -> None:
    engine = FakeEngine(num_blocks=9, max_num_batched_tokens=8, max_num_seqs=4)
    engine.add("older", prompt=4, answer=26)
    asked = engine.add("asked", prompt=30, answer=2, prompt_logprobs=0)

    while not asked.num_preemptions:
        assert not asked.output_token_ids
        engine.step()
    engine.run()

    assert asked.num_prompt_logprobs == 29


# --- adapter slots


def test_more_adapters_than_slots_take_turns() -> None:
    engine = FakeEngine(max_loras=2, max_num_batched_tokens=64)
    for index in range(12):
        engine.add(str(index), digest=f"adapter{index % 6}", answer=5)

    engine.run()

    assert len(engine.finished) == 12
    engine.assert_all_is_given_back()


def test_an_adapter_is_loaded_once_for_all_its_sequences() -> None:
    engine = FakeEngine(max_num_batched_tokens=64)
    for index in range(4):
        engine.add(str(index), digest="x")

    batch = engine.step()

    assert batch is not None
    assert [load.digest for load in batch.slot_loads] == ["x"]


def test_requests_that_need_no_slot_overtake_one_that_waits_for_its_own() -> None:
    engine = FakeEngine(max_loras=1, max_num_batched_tokens=64)
    engine.add("holder", digest="x", answer=20)
    engine.step()
    engine.add("blocked", digest="y")
    engine.add("base")
    engine.add("same", digest="x")

    assert set(ids(engine.step())) == {"holder", "base", "same"}


def _crowd(engine: FakeEngine, *, rare_at: int, max_steps: int, popular: Sequence[str]) -> int:
    """Popular adapters' requests arrive in every step; return how many steps the rare one waited."""
    for step in range(max_steps):
        for digest in popular:
            engine.add(f"{digest}{step}", digest=digest, prompt=2, answer=4)
        if step == rare_at:
            engine.add("rare", digest="rare", prompt=2, answer=2)
        engine.step()
        if "rare" in engine.admitted_at:
            return step - rare_at
    raise AssertionError(f"the rare adapter was not admitted within {max_steps} steps")


@pytest.mark.parametrize("popular", [["a"], ["a", "b"], ["a", "a", "a", "b"]])
def test_a_rare_adapter_gets_a_slot_although_popular_ones_never_pause(popular: list[str]) -> None:
    engine = FakeEngine(max_loras=len(set(popular)), max_num_batched_tokens=64, max_num_seqs=64, slot_wait_limit=4)

    waited = _crowd(engine, rare_at=6, max_steps=100, popular=popular)

    assert waited <= 4 + 4 + 2, "the limit, the longest answer under way, and the step that starts it"


def test_a_rare_adapter_gets_a_slot_beside_pinned_ones() -> None:
    engine = FakeEngine(max_loras=2, max_num_batched_tokens=64, max_num_seqs=64, slot_wait_limit=4)
    assert engine.slots.pin("a")

    assert _crowd(engine, rare_at=6, max_steps=100, popular=["a", "b"]) <= 10
    assert engine.slots.is_resident("a")


def test_a_rare_adapter_gets_a_slot_under_preemption() -> None:
    """Preempted requests come back at the head of the queue, before the rare one; they must not take its slot."""
    engine = FakeEngine(num_blocks=8, max_loras=2, max_num_batched_tokens=16, max_num_seqs=8, slot_wait_limit=4)
    for step in range(200):
        for digest in "ab":
            if len(engine.scheduler.waiting) < 30:
                engine.add(f"{digest}{step}", digest=digest, prompt=5, answer=9)
        if step == 10:
            engine.add("rare", digest="rare", prompt=2, answer=2)
            ahead = len(engine.scheduler.waiting)
        engine.step()
    assert engine.scheduler.num_preemptions > 0
    assert "rare" in engine.finished
    assert engine.finished.index("rare") <= ahead + 8, "overtaken by more than those that ran or stood before it"


def test_the_slot_freed_for_a_starving_adapter_is_taken_by_nobody_else() -> None:
    """b is made to drain; a request of b that stands before the rare one must not get b's slot back."""
    engine = FakeEngine(max_loras=2, max_num_batched_tokens=64, max_num_seqs=64, slot_wait_limit=1)
    engine.add("a0", digest="a", answer=50)
    engine.add("a1", digest="a", answer=50)
    engine.add("b0", digest="b", answer=4)
    engine.step()
    rare = engine.add("rare", digest="rare", answer=2)
    engine.step()
    engine.step()
    ahead = Request("b1", [1, 2], SamplingParams(), digest="b", max_total_tokens=100)
    engine.requests["b1"] = ahead
    engine.num_answer_tokens["b1"] = 50
    engine.scheduler.waiting.push_front(ahead)

    while rare.status is RequestStatus.WAITING:
        assert engine.num_steps < 10
        engine.step()

    assert ahead.status is RequestStatus.WAITING


def test_everybody_gets_a_turn_when_every_adapter_is_rare() -> None:
    engine = FakeEngine(max_loras=2, max_num_batched_tokens=64, max_num_seqs=64, slot_wait_limit=2)
    for step in range(60):
        for digest in "abcdefgh":
            if step % 2 == 0:
                engine.add(f"{digest}{step}", digest=digest, prompt=2, answer=3)
        engine.step()

    assert {name[0] for name in engine.finished} == set("abcdefgh")
    engine.run()
    engine.assert_all_is_given_back()


# --- tenants


def test_a_thousand_requests_of_one_tenant_delay_another_by_one_admission() -> None:
    engine = FakeEngine(max_num_seqs=1, max_num_batched_tokens=8)
    for index in range(1000):
        engine.add(f"crowd{index}", prompt=2, answer=2, tenant="crowd")
    for _ in range(20):
        engine.step()
    engine.add("single", prompt=2, answer=2, tenant="other")
    before = len(engine.finished)

    while "single" not in engine.finished:
        engine.step()

    assert engine.finished[before:][-1] == "single"
    assert len(engine.finished) - before <= 2, "the one that ran, and the single request itself"


def test_tenants_share_tokens_and_not_requests() -> None:
    engine = FakeEngine(max_num_seqs=1, max_num_batched_tokens=64)
    for index in range(40):
        engine.add(f"long{index}", prompt=28, answer=2, tenant="long")
    for index in range(400):
        engine.add(f"short{index}", prompt=1, answer=2, tenant="short")

    while len(engine.finished) < 110:
        engine.step()

    num_long = sum(name.startswith("long") for name in engine.finished)
    assert abs(num_long * 30 - (len(engine.finished) - num_long) * 3) <= 30 + 3


# --- anything


arrivals = st.lists(
    st.tuples(
        st.integers(1, 22),  # prompt tokens, the beginning of one and the same text
        st.integers(1, 8),  # answer tokens
        st.sampled_from([None, "a", "b", "c", "d"]),
        st.integers(0, 3),  # steps before it arrives
        st.sampled_from([None, None, 0]),  # prompt_logprobs
        st.sampled_from([None, None, None, 2, 5]),  # steps after its arrival at which it is aborted
    ),
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(
    arrivals=arrivals,
    num_blocks=st.integers(8, 16),
    budget=st.integers(4, 24),
    max_num_seqs=st.integers(1, 4),
    max_loras=st.integers(1, 3),
    caching=st.booleans(),
)
def test_any_workload_finishes_with_right_kv_and_everything_given_back(
    arrivals: list[tuple[int, int, str | None, int, int | None, int | None]],
    num_blocks: int,
    budget: int,
    max_num_seqs: int,
    max_loras: int,
    caching: bool,
) -> None:
    engine = FakeEngine(
        num_blocks=num_blocks,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        max_loras=max_loras,
        slot_wait_limit=2,
        enable_prefix_caching=caching,
    )
    aborts: list[tuple[int, Request]] = []
    for index, (prompt, answer, digest, delay, logprobs, abort_after) in enumerate(arrivals):
        for _ in range(delay):
            engine.step()
        request = engine.add(str(index), prompt=range(prompt), answer=answer, digest=digest, prompt_logprobs=logprobs)
        if abort_after is not None:
            aborts.append((engine.num_steps + abort_after, request))
        for when, doomed in aborts:
            if engine.num_steps >= when:
                engine.scheduler.finish(doomed)
    engine.run()

    assert all(request.status is RequestStatus.FINISHED for request in engine.requests.values())
    engine.assert_all_is_given_back()


# --- adapters on their way to the device


def test_a_request_whose_adapter_is_on_its_way_is_overtaken_until_it_is_there() -> None:
    engine = FakeEngine()
    engine.on_the_way = {"sql"}
    engine.add("running", answer=20)
    engine.step()
    engine.add("first", digest="sql")
    engine.add("second", digest="json")
    engine.add("third")
    engine.step()
    assert engine.admitted_at.keys() == {"running", "second", "third"}
    assert engine.requests["first"].slot_wait_steps == 0

    engine.on_the_way = set()
    engine.step()

    assert "first" in engine.admitted_at
    engine.run()


def test_nobody_waits_for_a_copy_when_nothing_else_can_run() -> None:
    engine = FakeEngine()
    engine.on_the_way = {"sql"}
    engine.add("only", digest="sql")

    engine.step()

    assert "only" in engine.admitted_at


def test_a_starving_adapter_is_not_held_up_by_its_copy() -> None:
    engine = FakeEngine(max_loras=1, slot_wait_limit=3)
    engine.on_the_way = {"rare"}
    engine.add("a0", digest="a", answer=4)
    engine.step()
    engine.add("rare", digest="rare")
    for number in range(1, 30):
        engine.add(f"base{number}", answer=3)
        engine.step()

    assert "rare" in engine.admitted_at
    engine.run()


def test_the_adapters_wanted_next_come_in_the_order_of_their_turn_and_once() -> None:
    engine = FakeEngine(max_loras=1)
    engine.add("a", digest="a", answer=9)
    engine.step()
    for name, digest in (("b", "b"), ("base", None), ("a2", "a"), ("c", "c"), ("b2", "b"), ("d", "d")):
        engine.add(name, digest=digest)

    assert [request.request_id for request in engine.scheduler.next_without_slot(5)] == ["b", "c"]
    engine.run()
