from __future__ import annotations

import asyncio

import pytest

from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.limits import Limiter, TokenBucket
from loramux.server.access.principal import ANONYMOUS, KeyLimits, Principal
from loramux.server.errors import Refused


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limited(**limits: int) -> Principal:
    return Principal("team-a", limits=KeyLimits(**limits))


def admit(limiter: Limiter, principal: Principal) -> dict[str, str]:
    with limiter.admit(principal) as headers:
        return headers


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly(clock: Clock) -> None:
    bucket = TokenBucket(6, clock)

    assert [bucket.take() for _ in range(7)] == [True] * 6 + [False]
    assert (bucket.seconds_until(1), bucket.seconds_until(6)) == (10, 60)
    clock.now += 10
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now += 1e6
    assert [bucket.take() for _ in range(7)] == [True] * 6 + [False]


def test_one_request_too_many_a_minute_is_told_when_to_come_back(clock: Clock) -> None:
    limiter, principal = Limiter(clock), limited(requests_per_minute=2)

    first, second = admit(limiter, principal), admit(limiter, principal)
    with pytest.raises(Refused, match=r"^Rate limit reached for requests: limit 2/minute\.$") as caught:
        admit(limiter, principal)

    names = ("limit", "remaining", "reset")
    assert [first[f"x-ratelimit-{name}-requests"] for name in names] == ["2", "1", "30s"]
    assert [second[f"x-ratelimit-{name}-requests"] for name in names] == ["2", "0", "60s"]
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.headers["Retry-After"] == "30"
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 30
    admit(limiter, principal)


@pytest.mark.parametrize("per_minute", [1, 7, 1000])
def test_nobody_is_told_to_wait_for_less_than_a_second_or_more_than_a_minute(clock: Clock, per_minute: int) -> None:
    limiter, principal = Limiter(clock), limited(requests_per_minute=per_minute)
    for _ in range(per_minute):
        admit(limiter, principal)

    with pytest.raises(Refused) as caught:
        admit(limiter, principal)

    assert 1 <= int(caught.value.headers["Retry-After"]) <= 60


def test_requests_at_once_are_bounded_and_cost_nothing_when_refused(clock: Clock) -> None:
    limiter, principal = Limiter(clock), limited(max_concurrent=1, requests_per_minute=2)

    with limiter.admit(principal):
        for _ in range(5):
            with pytest.raises(Refused, match="requests at once: limit 1") as caught:
                admit(limiter, principal)

    assert (caught.value.code, caught.value.headers["Retry-After"]) == ("rate_limit_exceeded", "1")
    admit(limiter, principal)


def test_new_adapters_have_a_limit_of_their_own(clock: Clock) -> None:
    limiter, principal = Limiter(clock), limited(new_adapters_per_minute=1)

    limiter.count_new_adapter(principal)
    with pytest.raises(Refused) as caught:
        limiter.count_new_adapter(principal)

    assert (caught.value.code, caught.value.param) == ("adapter_resolution_rate_limited", "model")
    assert caught.value.headers == {"Retry-After": "60"}
    assert admit(limiter, principal) == {}


@pytest.mark.parametrize("principal", [ANONYMOUS, Principal("key-1")])
def test_who_has_no_limit_leaves_nothing_behind(clock: Clock, principal: Principal) -> None:
    limiter = Limiter(clock)

    for _ in range(100):
        assert admit(limiter, principal) == {}
        limiter.count_new_adapter(principal)

    assert limiter._usages == {}


def test_new_limits_of_a_key_do_not_forget_what_is_under_way(clock: Clock) -> None:
    limiter = Limiter(clock)
    with limiter.admit(limited(max_concurrent=1)):
        with pytest.raises(Refused):
            admit(limiter, limited(max_concurrent=1, requests_per_minute=5))
        with limiter.admit(limited(max_concurrent=2)), pytest.raises(Refused):
            admit(limiter, limited(max_concurrent=2))


async def serve(start, clock: Clock, **limits: int):
    keys = ApiKeys([ApiKey(ApiKey.of("k").digest, limited(**limits))])
    client = await start(api_keys=keys, limiter=Limiter(clock))
    client.session.headers["Authorization"] = "Bearer k"
    return client


async def test_every_response_says_what_is_left(start, clock: Clock) -> None:
    client = await serve(start, clock, requests_per_minute=3)

    replies = [
        await client.get("/v1/models"),
        await client.complete(stream=True),
        await client.get("/nowhere"),
        await client.complete(),
    ]

    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
    assert (replies[-1].status, replies[-1].error["type"]) == (429, "rate_limit_error")
    assert replies[-1].headers["Retry-After"] == "20"
    assert (await client.get("/health")).status == 200


async def test_misses_are_counted_before_anybody_is_asked(start, clock: Clock, monkeypatch) -> None:
    client = await serve(start, clock, new_adapters_per_minute=2)
    statuses = [(await client.complete(model=name)).status for name in ("found/a", "nowhere", "found/a", "llama")]
    monkeypatch.setattr(type(client.server.registry), "lookup", None)

    refused = await client.complete(model="found/b")

    assert statuses == [200, 404, 200, 200]
    assert (refused.status, refused.error["code"]) == (429, "adapter_resolution_rate_limited")


async def test_a_stream_counts_until_its_end(start, clock: Clock, engine) -> None:
    client = await serve(start, clock, max_concurrent=1)
    engine.hold_after = 1
    stream = asyncio.create_task(client.complete(stream=True))
    await asyncio.wait_for(engine.reached_gate.wait(), 1)

    meanwhile = await client.complete()
    engine.gate.set()
    await stream

    assert (meanwhile.status, meanwhile.error["code"]) == (429, "rate_limit_exceeded")
    assert (await client.complete()).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_would_wait_behind_too_many_is_sent_away(start, engine, stream: bool) -> None:
    client = await start(max_waiting=5)
    engine.num_waiting = 4
    assert (await client.complete(stream=stream)).status == 200
    engine.num_waiting = 5

    replies = [await client.complete(stream=stream), await client.chat(stream=stream)]

    assert [(reply.status, reply.error["code"]) for reply in replies] == [(503, "server_overloaded")] * 2
    assert replies[0].headers["Retry-After"] == "1"


def test_what_runs_goes_on_to_count_when_the_limits_change(clock: Clock) -> None:
    limiter = Limiter(clock)
    with limiter.admit(limited(max_concurrent=1)):
        changed = limited(max_concurrent=1, requests_per_minute=60)
        with pytest.raises(Refused, match="requests at once: limit 1") as caught:
            admit(limiter, changed)

    assert caught.value.headers["x-ratelimit-limit-requests"] == "60"
    assert admit(limiter, changed)["x-ratelimit-remaining-requests"] == "59"
