"""LLMEngine: requests in, outputs out, one `step` at a time: schedule, execute, update.

Not thread-safe: one thread owns an engine. Adapters are read and checked by the host cache's own threads while the
steps go on; a request enters the scheduler when its adapter is in host memory.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from loramux.adapters.lease import Lease, give_up
from loramux.batch import ScheduledBatch
from loramux.config import EngineArgs, StartupSummary
from loramux.engine.adapter_loader import LoadListener
from loramux.engine.adapter_pool import AdapterPool, EventListener
from loramux.engine.answers import Answer, RequestGroup
from loramux.engine.block_pool import BlockPool
from loramux.engine.engine_state import look_at
from loramux.engine.prompts import Prompt, checked_salt, tokenize_prompt
from loramux.engine.scheduler import Scheduler
from loramux.engine.startup import log_start, summarize
from loramux.errors import ContextLengthExceeded, EngineDead, LoramuxError, RequestFailed, RequestInvalid
from loramux.garbage import without_collection
from loramux.lora.request import LoRARequest
from loramux.metrics.state import EngineState
from loramux.model.loader import load_model, locate
from loramux.model.runner import ModelRunner
from loramux.model.sampler import Unchosen
from loramux.model.step_results import SequenceResult
from loramux.model.warm_up import warm_up
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.text.bad_words import encode_bad_words
from loramux.text.grammar import Grammar
from loramux.text.grammar_compiler import GrammarCompiler
from loramux.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3  # in a row; after that the engine is taken to be broken, not its requests
ADAPTER_WAIT_SECONDS = 1.0
PREFETCH_LOOK_AHEAD = 64  # waiting requests whose adapters are looked at in each step


class LLMEngine:
    """One base model, its KV memory, its adapters, and the requests under way."""

    @without_collection()
    def __init__(
        self,
        args: EngineArgs,
        *,
        on_adapter_event: EventListener | None = None,
        on_adapter_ready: Callable[[], None] | None = None,
        on_adapter_load: LoadListener | None = None,
    ) -> None:
        self.args = args
        self._on_adapter_ready = on_adapter_ready
        loaded = load_model(args)
        self.runner = ModelRunner(loaded, args)
        warm_up(self.runner, args)
        source = locate(args.tokenizer or args.model)
        self.tokenizer = Tokenizer.load(source.location, gguf_file=source.gguf_file)
        self.eos_token_ids = loaded.eos_token_ids | frozenset(self.tokenizer.eos_token_ids)
        self.grammars = GrammarCompiler(self.tokenizer, vocab_size=loaded.vocab_size, eos_token_ids=self.eos_token_ids)
        self.max_model_len = self.runner.max_model_len
        self.adapters = AdapterPool(self.runner, args, on_event=on_adapter_event, on_load=on_adapter_load)
        self.slots = self.adapters.slots
        self.block_pool = BlockPool(num_blocks=self.runner.kv_cache.num_blocks, block_size=args.block_size)
        self.scheduler = Scheduler(
            block_pool=self.block_pool,
            slots=self.slots,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            slot_wait_limit=args.slot_wait_limit,
            enable_prefix_caching=args.enable_prefix_caching,
            is_ready=self.adapters.is_ready,
        )
        self._random = random.Random(args.seed)
        self._groups: dict[str, RequestGroup] = {}
        self._sequences: dict[str, tuple[RequestGroup, Answer]] = {}
        self._awaiting_adapter: dict[str, Future[Lease]] = {}
        self._num_failed_steps = 0
        log_start(self.summary())

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        """Load the model and size its memory. Raises ConfigInvalid or ModelUnsupported."""
        return cls(engine_args)

    def summary(self) -> StartupSummary:
        """Say what the arguments came to."""
        return summarize(self.runner, self.args)

    # --- requests

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        lora_request: LoRARequest | None = None,
        *,
        cache_salt: str | None = None,
        grammar: Grammar | None = None,
        arrival_time: float | None = None,
        tenant: str | None = None,
    ) -> None:
        """Queue a request. Raises RequestInvalid when it can never be answered.

        Requests share cached prefixes only within one `cache_salt` (the argument, or else the prompt's own).
        `grammar` is that of the parameters' structured outputs, where it was compiled before.
        `arrival_time` is when the caller asked, on the monotonic clock; now, unless it had to wait to get here. Tenants
        with requests waiting take turns, so that none is held up by how much another has queued. An adapter that turns
        out to be invalid ends the request with an output whose `error` says why.
        """
        arrival_time = time.monotonic() if arrival_time is None else arrival_time
        params = sampling_params or SamplingParams()
        if request_id in self._groups:
            raise RequestInvalid(f"request_id {request_id!r} is already in use", param="request_id")
        vocab_size = self.runner.loaded.vocab_size
        tokenized = tokenize_prompt(prompt, self.tokenizer, vocab_size=vocab_size, context=self.max_model_len)
        self._check_length(len(tokenized.token_ids), params)
        params.check_vocabulary(vocab_size)
        if params.structured_outputs is not None and grammar is None:
            grammar = self.grammars.compile(params.structured_outputs)
        group = RequestGroup(
            request_id,
            tokenized.text,
            tokenized.token_ids,
            params,
            lora_request,
            arrival_time,
            tenant=tenant,
            cache_salt=checked_salt(cache_salt) or tokenized.cache_salt,
            bad_words=encode_bad_words(params.bad_words or (), self.tokenizer),
            grammar=grammar,
        )
        if lora_request is None:
            self._start(group)
        else:
            future = self._awaiting_adapter[request_id] = self.adapters.acquire(lora_request)
            if self._on_adapter_ready is not None:
                wake = self._on_adapter_ready
                future.add_done_callback(lambda _future: wake())
        self._groups[request_id] = group

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now and free everything it holds; None when it is not under way."""
        group = self._groups.get(request_id)
        if group is None:
            return None
        for answer in group.answers:
            if answer.finish_reason is None:
                answer.abort()
                self._finish_sequence(answer)
        self._close(group)
        return group.output()

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything left to do."""
        return bool(self._groups)

    def step(self) -> list[RequestOutput]:
        """Run one step; return the outputs that changed. Waits for an adapter only when nothing else runs."""
        outputs = self.advance()
        if not outputs and self._awaiting_adapter and not self.scheduler.has_work():
            wait(list(self._awaiting_adapter.values()), timeout=ADAPTER_WAIT_SECONDS, return_when="FIRST_COMPLETED")
        return outputs

    def advance(self) -> list[RequestOutput]:
        """Like `step`, but never waits for an adapter."""
        outputs = self._admit_loaded()
        self._prefetch()
        batch = self.scheduler.schedule()
        return outputs if batch is None else outputs + self._run(batch)

    def can_advance(self) -> bool:
        """Whether `advance` has something to compute or to report now."""
        return self.scheduler.has_work() or any(future.done() for future in self._awaiting_adapter.values())

    # --- adapters

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Bring an adapter into host memory; False when it was there. Raises AdapterInvalid."""
        return self.adapters.add(lora_request)

    def remove_lora(self, lora_int_id: int) -> bool:
        """Unload an adapter; requests that use it finish first. False when the id is unknown."""
        return self.adapters.remove(lora_int_id)

    def list_loras(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        return self.adapters.ids()

    def pin_lora(self, lora_int_id: int) -> bool:
        """Keep a loaded adapter in host memory, and in its slot once it is there. False when it is not loaded.

        Raises RequestInvalid when pinning it would leave no slot, or no place in host memory, for the others.
        """
        return self.adapters.pin(lora_int_id)

    def unpin_lora(self, lora_int_id: int) -> bool:
        """Undo `pin_lora`; False when the adapter was not pinned."""
        return self.adapters.unpin(lora_int_id)

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for their turn, and requests for their adapter; may be asked from any thread."""
        return len(self.scheduler.waiting) + len(self._awaiting_adapter)

    def counters(self) -> dict[str, int]:
        """What is held right now; all but free_blocks are 0 when nothing runs."""
        return {
            "free_blocks": self.block_pool.num_free,
            "used_blocks": self.block_pool.num_blocks - self.block_pool.num_free,
            "slots_in_use": self.slots.num_in_use,
            "leases": self.adapters.host_cache.num_leases,
            "running": len(self.scheduler.running),
            "waiting": self.num_waiting,
        }

    def state(self) -> EngineState:
        """Look at all of it, from any thread; the engine does not stop for that."""
        awaiting = [self._groups.get(request_id) for request_id in list(self._awaiting_adapter)]
        return look_at(
            self.args,
            self.scheduler,
            self.adapters,
            sequences=list(self._sequences.values()),
            awaiting_adapter=[group for group in awaiting if group is not None],
        )

    def shutdown(self) -> None:
        """End every request and stop the loader threads."""
        try:
            for request_id in list(self._groups):
                self.abort_request(request_id)
        finally:
            self.adapters.close()

    # --- inside a step

    def _admit_loaded(self) -> list[RequestOutput]:
        """Hand the requests whose adapter has arrived to the scheduler; end those whose adapter is invalid."""
        outputs = []
        for request_id, future in list(self._awaiting_adapter.items()):
            if not future.done():
                continue
            del self._awaiting_adapter[request_id]
            group = self._groups[request_id]
            try:
                group.lease = future.result(timeout=0)
            except LoramuxError as error:
                outputs.append(self._fail(group, error))
            else:
                self._start(group)
        return outputs

    def _prefetch(self) -> None:
        """Bring the adapters that are wanted next on their way to the device, while this step and the next ones run."""
        waiting = self.scheduler.next_without_slot(PREFETCH_LOOK_AHEAD)
        self.adapters.prefetch(self._sequences[request.request_id][0].lease for request in waiting)

    def _start(self, group: RequestGroup) -> None:
        params = group.params
        first = self._random.getrandbits(63) if params.seed is None else params.seed
        seeds = [(first + index) % 2**64 for index in range(params.n)]  # Random(-1) is Random(1)
        group.start(self.tokenizer, max_total_tokens=self.max_model_len, seeds=seeds, eos=self.eos_token_ids)
        for answer in group.answers:
            self._sequences[answer.request.request_id] = (group, answer)
            self.scheduler.add(answer.request)

    def _run(self, batch: ScheduledBatch) -> list[RequestOutput]:
        try:
            now = time.monotonic()
            under_way = [self._sequences[sequence.request_id] for sequence in batch.sequences]
            for group, _answer in under_way:
                group.note_scheduled(now)
            self.adapters.place(batch.slot_loads, (group.lease for group, _answer in under_way))
            rows = {answer.request.request_id: answer.sampling for _group, answer in under_way}
            results = self.runner.execute(batch, rows)
        except Exception as exc:
            # the border: a step that fails ends the requests in it, and no other
            logger.exception("step failed requests=%s", [s.request_id for s in batch.sequences])
            return self._fail_batch(batch, exc)
        except BaseException:  # an interrupt: the caller may go on with this engine
            self._forget_batch(batch)
            raise
        self._num_failed_steps = 0
        return self._update(batch, results)

    def _update(self, batch: ScheduledBatch, results: dict[str, SequenceResult]) -> list[RequestOutput]:
        now = time.monotonic()
        changed: dict[str, RequestGroup] = {}
        for sequence in batch.sequences:
            group, answer = self._sequences[sequence.request_id]
            self.scheduler.complete(answer.request, len(sequence.token_ids))
            try:
                self._update_answer(group, answer, results[sequence.request_id], now)
            except RequestInvalid as error:
                group.error = error
            except Exception:  # the border: what one request's tokens break ends that request alone
                logger.exception("update failed request=%s", group.request_id, extra=group.log_fields())
                group.error = RequestFailed(f"request {group.request_id!r}: its tokens could not be turned into text")
            if answer.finish_reason is not None:
                self._finish_sequence(answer)
            if sequence.samples or group.error is not None:
                changed[group.request_id] = group
        return [self._collect(group) for group in changed.values()]

    def _update_answer(self, group: RequestGroup, answer: Answer, result: SequenceResult, now: float) -> None:
        if result.failed is Unchosen.NOTHING_LEFT:
            raise answer.no_token_left()
        if result.failed is Unchosen.NO_NUMBERS:
            self.scheduler.forget_all(answer.request)
            group.error = RequestFailed(f"request {group.request_id!r}: {result.failed.value}")
            return
        if result.prompt_logprobs:
            group.take_prompt_logprobs(result.prompt_logprobs, self.tokenizer)
            answer.request.num_prompt_logprobs += len(result.prompt_logprobs)
        if result.sampled is not None:
            group.note_token(now)
            answer.take(result.sampled, self.tokenizer, self.eos_token_ids)

    def _collect(self, group: RequestGroup) -> RequestOutput:
        if group.error is not None:
            return self._fail(group, group.error)
        if group.is_finished:
            self._close(group)
        return group.output()

    def _fail(self, group: RequestGroup, error: LoramuxError) -> RequestOutput:
        group.error = error
        self.abort_request(group.request_id)
        return group.output()

    def _fail_batch(self, batch: ScheduledBatch, exc: Exception) -> list[RequestOutput]:
        self._num_failed_steps += 1
        groups = {group.request_id: group for group in self._forget_batch(batch)}
        outputs = [
            self._fail(group, RequestFailed(f"request {group.request_id!r}: the engine step failed"))
            for group in groups.values()
        ]
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            raise EngineDead(f"{MAX_FAILED_STEPS} steps failed in a row") from exc
        return outputs

    def _forget_batch(self, batch: ScheduledBatch) -> list[RequestGroup]:
        """Take nothing for computed or placed that a broken step was to compute or place; return who was in it."""
        groups = []
        for sequence in batch.sequences:
            group, answer = self._sequences[sequence.request_id]
            self.scheduler.forget_step(answer.request)
            groups.append(group)
        self.adapters.forget(batch.slot_loads)
        return groups

    def _finish_sequence(self, answer: Answer) -> None:
        self.scheduler.finish(answer.request)
        self._sequences.pop(answer.request.request_id, None)
        self.adapters.clear_vacated()

    def _close(self, group: RequestGroup) -> None:
        """Forget a request that has ended, and let go of its adapter."""
        del self._groups[group.request_id]
        future = self._awaiting_adapter.pop(group.request_id, None)
        if future is not None:
            give_up(future)
        if group.lease is not None:
            self.adapters.release(group.lease)

    def _check_length(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        if num_prompt_tokens >= self.max_model_len:
            num_answer = 1 if params.max_tokens is None else params.max_tokens
            raise ContextLengthExceeded.of_tokens(
                self.max_model_len, num_prompt=num_prompt_tokens, num_answer=num_answer
            )
