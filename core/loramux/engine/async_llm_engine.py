"""AsyncLLMEngine: the engine in its own thread, an async iterator per request on the event loop.

The two sides meet here and nowhere else: calls go into an inbox that the engine thread empties between steps; outputs
come back with one hop to the loop per step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from loramux.adapters.lease import give_up
from loramux.adapters.residency import Residency, Tier
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.config import EngineArgs, StartupSummary
from loramux.engine.adapter_loader import LoadListener
from loramux.engine.adapter_pool import EventListener
from loramux.engine.llm_engine import LLMEngine
from loramux.engine.prompts import Prompt
from loramux.errors import AdapterNotFound, EngineDead, LoramuxError
from loramux.lora.request import LoRARequest
from loramux.metrics.state import EngineState
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.structured_outputs import StructuredOutputsParams
from loramux.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Stream:
    """The outputs of one request on their way to its reader; a slow reader finds only the latest one, cumulative."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._latest: RequestOutput | None = None
        self._error: LoramuxError | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the one reader; cheaper than an Event

    def put(self, output: RequestOutput) -> None:
        self._latest = output
        self._wake()

    def fail(self, error: LoramuxError) -> None:
        self._error = error
        self._wake()

    async def get(self) -> RequestOutput:
        while self._latest is None and self._error is None:
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        output, self._latest = self._latest, None
        assert output is not None
        if output.error is not None:
            raise output.error
        return output

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # done: its reader has been cancelled
            waiter.set_result(None)


class AsyncLLMEngine:
    """One engine for many tasks. Methods may be called from any event loop; `shutdown` from any thread."""

    def __init__(
        self,
        args: EngineArgs,
        *,
        on_adapter_event: EventListener | None = None,
        on_adapter_load: LoadListener | None = None,
    ) -> None:
        self.config = args
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._streams: dict[str, _Stream] = {}
        self._is_stopping = False
        self._dead: EngineDead | None = None
        self._busy_since: float | None = None
        load = partial(
            LLMEngine,
            args,
            on_adapter_event=on_adapter_event,
            on_adapter_ready=self._notify,
            on_adapter_load=on_adapter_load,
        )
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name="loramux-engine", daemon=True)
        self._thread.start()
        loaded.result()

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        *,
        on_adapter_event: EventListener | None = None,
        on_adapter_load: LoadListener | None = None,
    ) -> AsyncLLMEngine:
        """Load the model and start the engine thread. Blocks; raises ConfigInvalid or ModelUnsupported."""
        return cls(engine_args, on_adapter_event=on_adapter_event, on_adapter_load=on_adapter_load)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._engine.runner.loaded.vocab_size

    @property
    def summary(self) -> StartupSummary:
        return self._engine.summary()

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for their turn, and requests for their adapter."""
        return self._engine.num_waiting

    @property
    def is_running(self) -> bool:
        """Whether the engine thread still takes requests."""
        return self._dead is None and not self._is_stopping and self._thread.is_alive()

    @property
    def seconds_in_step(self) -> float:
        """For how long the engine thread has been at one step; 0 while it waits for work."""
        busy_since = self._busy_since
        return 0.0 if busy_since is None else time.monotonic() - busy_since

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        *,
        cache_salt: str | None = None,
        tenant: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yield the request's output each time it has grown; every output is cumulative, the last one is finished.

        Leaving the iterator early, by closing it or by cancellation, aborts the request. Tenants with requests waiting
        take turns; requests share cached prefixes only within one `cache_salt`. Raises RequestInvalid, AdapterInvalid
        or EngineDead.
        """
        stream = _Stream(asyncio.get_running_loop())
        arrival_time = time.monotonic()
        structured_outputs = sampling_params.structured_outputs
        grammar = None
        if structured_outputs is not None:
            grammar = await asyncio.to_thread(self._engine.grammars.compile, structured_outputs)

        def add() -> None:
            self._engine.add_request(
                request_id,
                prompt,
                sampling_params,
                lora_request,
                cache_salt=cache_salt,
                grammar=grammar,
                arrival_time=arrival_time,
                tenant=tenant,
            )
            self._streams[request_id] = stream

        added = self._call(add)
        try:
            await asyncio.wrap_future(added)
            while True:
                output = await stream.get()
                yield output
                if output.finished:
                    return
        finally:
            self._post(lambda: self._leave(request_id, stream))

    async def check_structured_outputs(self, params: StructuredOutputsParams | None) -> None:
        """Compile what an answer is to match, in a thread of its own, so that the next `generate` finds it.

        `generate` does so itself; ask first where a refusal must come before anything else. Raises RequestInvalid.
        """
        if params is not None:
            await asyncio.to_thread(self._engine.grammars.check, params)

    async def abort(self, request_id: str) -> None:
        """End a request now; its reader gets a last output with finish_reason "abort"."""
        await asyncio.wrap_future(self._call(lambda: self._abort(request_id)))

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Bring an adapter into host memory, waiting for room; False when it was there. Raises AdapterInvalid."""
        is_new = lora_request.lora_int_id not in self._engine.list_loras()
        await self.load_adapter(lora_request)
        return is_new

    async def load_adapter(self, lora_request: LoRARequest) -> LoadedAdapter:
        """Like `add_lora`, and say what was loaded."""
        self._check_alive()
        future = self._engine.adapters.acquire(lora_request)
        try:
            adapter = (await asyncio.wrap_future(future)).adapter
        finally:
            give_up(future)  # a lease that came while this task was cancelled, too
        return LoadedAdapter(digest=adapter.digest, nbytes=adapter.nbytes, max_rank=adapter.max_rank)

    async def remove_lora(self, lora_int_id: int) -> bool:
        """Unload an adapter; requests that use it finish first. False when the id is unknown."""
        return await asyncio.wrap_future(self._call(lambda: self._engine.remove_lora(lora_int_id)))

    async def list_loras(self) -> set[int]:
        """Return the ids of the adapters in host memory."""
        return self._engine.list_loras()

    async def pin_lora(self, lora_int_id: int) -> bool:
        """Keep a loaded adapter in host memory and in its slot. False when it is not loaded."""
        return await asyncio.wrap_future(self._call(lambda: self._engine.pin_lora(lora_int_id)))

    async def pin_adapter(self, lora_request: LoRARequest, *, instead_of: int | None = None) -> None:
        """Like `pin_lora`, for one that may have left host memory: it is read again first; see AdapterPool.pin.

        Raises RequestInvalid, AdapterInvalid, or AdapterNotFound when it was unloaded meanwhile.
        """
        self._check_alive()
        pool, lora_int_id = self._engine.adapters, lora_request.lora_int_id
        future = pool.acquire(lora_request)
        try:
            await asyncio.wrap_future(future)
            if not await asyncio.wrap_future(self._call(lambda: pool.pin(lora_int_id, instead_of=instead_of))):
                raise AdapterNotFound(lora_request.lora_name)
        finally:
            give_up(future)

    async def unpin_lora(self, lora_int_id: int) -> bool:
        """Undo `pin_lora`; False when the adapter was not pinned."""
        return await asyncio.wrap_future(self._call(lambda: self._engine.unpin_lora(lora_int_id)))

    def tier_of(self, lora_int_id: int) -> Tier | None:
        """Say where an adapter rests now: in a slot, in host memory alone, or (None) only on disk. From any thread."""
        residency = self.residency(lora_int_id)
        return None if residency is None else residency.tier

    def residency(self, lora_int_id: int) -> Residency | None:
        """Like `tier_of`, and say whether it is pinned. From any thread."""
        return self._engine.adapters.residency(lora_int_id)

    def residencies(self) -> dict[int, Residency]:
        """Return where each adapter in host memory rests, by id. From any thread."""
        return self._engine.adapters.residencies()

    async def check_health(self) -> None:
        """Raise EngineDead when the engine thread has stopped."""
        self._check_alive()

    def counters(self) -> dict[str, int]:
        """What the engine holds right now; see LLMEngine.counters."""
        return self._engine.counters()

    def state(self) -> EngineState:
        """Look at the engine without stopping it; see LLMEngine.state."""
        return self._engine.state()

    def shutdown(self) -> None:
        """Abort what runs, stop the engine thread and wait for it. Idempotent."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join()

    # --- the engine thread

    def _run(self, load: Callable[[], LLMEngine], loaded: Future[None]) -> None:
        """Load and serve in one thread: another that had computed would leave a team behind (see `team.stay_alone`)."""
        try:
            self._engine = load()
        except BaseException as exc:  # the thread's border: whoever waits for the model must hear of it
            loaded.set_exception(exc)
            return
        loaded.set_result(None)
        self._serve()

    def _serve(self) -> None:
        error = EngineDead("the engine has been shut down")
        try:
            while self._wait_for_work():
                self._busy_since = time.monotonic()
                self._empty_inbox()
                self._deliver(self._engine.advance())
                self._busy_since = None
        except Exception as exc:  # the thread's border: every reader must hear of it
            logger.exception("engine thread died")
            error = EngineDead(f"the engine stopped: {exc}")
        finally:  # also when a library calls sys.exit
            self._end(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._is_stopping or self._inbox or self._engine.can_advance())
            return not self._is_stopping

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, RequestOutput]]] = {}
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                by_loop.setdefault(stream.loop, []).append((stream, output))
            if output.finished:
                self._streams.pop(output.request_id, None)
        for loop, pairs in by_loop.items():
            _hop(loop, partial(_put_all, pairs))

    def _end(self, error: EngineDead) -> None:
        with self._wake:
            self._dead = error
            self._is_stopping = True
            streams, self._streams = self._streams, {}
        for stream in streams.values():
            _hop(stream.loop, partial(stream.fail, error))
        self._empty_inbox()
        self._engine.shutdown()

    def _abort(self, request_id: str) -> None:
        output = self._engine.abort_request(request_id)
        if output is not None:
            self._deliver([output])

    def _leave(self, request_id: str, stream: _Stream) -> None:
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            self._engine.abort_request(request_id)

    # --- from the other threads

    def _call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine thread, between two steps."""
        self._check_alive()
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._dead is not None:
                    raise self._dead
                future.set_result(function())
            except Exception as exc:  # handed to the caller as it is
                future.set_exception(exc)

        self._post(run)
        return future

    def _post(self, function: Callable[[], None]) -> None:
        with self._wake:
            if self._dead is None:
                self._inbox.append(function)
                self._wake.notify()
                return
        function()  # the thread has emptied its inbox for the last time; all that is left to do is to say so

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise self._dead
        if self._is_stopping:
            raise EngineDead("the engine is shutting down")


def _put_all(pairs: list[tuple[_Stream, RequestOutput]]) -> None:
    for stream, output in pairs:
        stream.put(output)


def _hop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        logger.debug("the event loop of a reader is closed")
