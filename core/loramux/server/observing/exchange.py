"""Exchange: what is known of one HTTP request while it is answered, for the log, the metrics and the plugins.

It is found through a context variable, so that it reaches every task that works for the request, and nothing on the way
needs to pass it on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aiohttp import web

from loramux.adapters.served_adapter import ServedAdapter
from loramux.lora.hookspecs import FoundIn, RequestRecord
from loramux.metrics.request_series import FinishedCompletion
from loramux.outputs import RequestMetrics, RequestOutput
from loramux.server.observing.traffic import Traffic
from loramux.server.request_id import request_id_of

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for it; no response has it."""


class Exchange:
    """Filled in on the way; belongs to the event loop. `adapter_name` is None until one is known to be valid."""

    def __init__(self, request_id: str, *, traceparent: str | None = None, traffic: Traffic | None = None) -> None:
        self.request_id = request_id
        self.route = "-"
        self.status = 0
        self.error_code = ""
        self.principal_id: str | None = None
        self.has_model = False
        self.tier: FoundIn | None = None
        self._traceparent = traceparent
        self._traffic = traffic or Traffic()
        self._served: ServedAdapter | None = None
        self._started = time.monotonic()
        self._started_ns = time.time_ns()
        self._latest: dict[int, RequestOutput] = {}
        self._inter_token_seconds: list[float] = []

    @classmethod
    def of(cls, request: web.Request, traffic: Traffic) -> Exchange:
        """Begin the exchange of a request; its tokens are counted as they come."""
        exchange = cls(request_id_of(request), traceparent=request.headers.get("traceparent"), traffic=traffic)
        resource = request.match_info.route.resource
        if resource is not None:
            exchange.route = resource.canonical
        return exchange

    @contextmanager
    def as_current(self) -> Iterator[None]:
        """Be what `current_exchange` finds, here and in all tasks that are created meanwhile."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @property
    def adapter_name(self) -> str | None:
        return None if self._served is None else self._served.name

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(output.prompt_token_ids) for output in self._latest.values())

    @property
    def num_completion_tokens(self) -> int:
        return sum(_num_tokens(output) for output in self._latest.values())

    def choose(self, served: ServedAdapter | None, tier: FoundIn | None) -> None:
        """Note which adapter answers, and where it was; None is the base model."""
        self.has_model = True
        self._served = served
        self.tier = tier

    def take(self, prompt_index: int, output: RequestOutput) -> None:
        """Note how far a prompt is; tokens that come together have taken equally long."""
        if not self._latest:
            self._traffic.count_request(self.adapter_name)
        before = self._latest.get(prompt_index)
        self._latest[prompt_index] = output
        num_before = 0 if before is None else _num_tokens(before)
        self._traffic.count_tokens(self.adapter_name, _num_tokens(output) - num_before)
        timing = output.metrics
        if timing is None or timing.first_token_time is None or timing.last_token_time is None:
            return
        earlier, num_timed = timing.first_token_time, 1
        if before is not None and before.metrics is not None and before.metrics.last_token_time is not None:
            earlier, num_timed = before.metrics.last_token_time, len(before.outputs[0].token_ids)
        num_new = len(output.outputs[0].token_ids) - num_timed
        if num_new > 0:
            self._inter_token_seconds += [(timing.last_token_time - earlier) / num_new] * num_new

    def completion(self) -> FinishedCompletion:
        """Say how it went, once it has ended."""
        timings = self._timings()
        queue = [timing.first_scheduled_time - timing.arrival_time for timing in timings if timing.first_scheduled_time]
        first_token = self._first_token_time()
        return FinishedCompletion(
            has_model=self.has_model,
            adapter_name=self.adapter_name,
            finish_reason=self._finish_reason(),
            status=self.status,
            error_code=self.error_code,
            seconds=time.monotonic() - self._started,
            queue_seconds=max(queue, default=None),
            first_token_seconds=None if first_token is None else first_token - self._started,
            inter_token_seconds=self._inter_token_seconds,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=sum(output.num_cached_tokens for output in self._latest.values()),
            num_completion_tokens=self.num_completion_tokens,
        )

    def record(self) -> RequestRecord:
        """Say the same to plugins."""
        served = self._served
        first_token = self._first_token_time()
        return RequestRecord(
            request_id=self.request_id,
            route=self.route,
            status=self.status,
            adapter_name=self.adapter_name,
            lora_int_id=None if served is None else served.id,
            digest=None if served is None else served.digest,
            tier=self.tier,
            principal=self.principal_id,
            started_ns=self._started_ns,
            first_token_ns=None if first_token is None else self._started_ns + int((first_token - self._started) * 1e9),
            ended_ns=self._started_ns + int((time.monotonic() - self._started) * 1e9),
            num_prompt_tokens=self.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens,
            finish_reason=self._finish_reason(),
            error_code=self.error_code or None,
            traceparent=self._traceparent,
        )

    def _finish_reason(self) -> str:
        if self.error_code:
            return "error"
        if self.status == CLIENT_LEFT:
            return "disconnected"
        reasons = [answer.finish_reason for output in self._latest.values() for answer in output.outputs]
        return next((reason for reason in reasons if reason is not None), "")

    def _timings(self) -> list[RequestMetrics]:
        return [output.metrics for output in self._latest.values() if output.metrics is not None]

    def _first_token_time(self) -> float | None:
        times = [timing.first_token_time for timing in self._timings() if timing.first_token_time is not None]
        return min(times, default=None)


def _num_tokens(output: RequestOutput) -> int:
    return sum(len(answer.token_ids) for answer in output.outputs)


EXCHANGE = web.RequestKey("exchange", Exchange)

_CURRENT: ContextVar[Exchange | None] = ContextVar("loramux_exchange", default=None)


def current_exchange() -> Exchange | None:
    """Return the exchange that this task works for; None outside of any."""
    return _CURRENT.get()


def note_principal(principal_id: str | None) -> None:
    """Note who asks."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.principal_id = principal_id


def note_model(served: ServedAdapter | None, tier: FoundIn | None = None) -> None:
    """Note which adapter answers, and where it was; None is the base model."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.choose(served, tier)


def note_output(prompt_index: int, output: RequestOutput) -> None:
    """Note how far a prompt is."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.take(prompt_index, output)


def note_error(code: str) -> None:
    """Note what the client is told of a failure."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.error_code = code


def note_request_id(request: web.Request) -> None:
    """Note that the request goes by another id than it came with."""
    if (exchange := _CURRENT.get()) is not None:
        exchange.request_id = request_id_of(request)
