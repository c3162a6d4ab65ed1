from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from loramux.server.errors import Refused
from loramux.server.in_flight import InFlight

SECOND = 1.0


async def test_draining_waits_for_what_finishes_by_itself() -> None:
    in_flight, may_finish, ended = InFlight(), asyncio.Event(), []

    async def request() -> None:
        async with in_flight.admit():
            await may_finish.wait()
            ended.append("finished")

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    drain = asyncio.create_task(in_flight.drain(grace_seconds=SECOND, farewell_seconds=SECOND))
    await asyncio.sleep(0)
    may_finish.set()
    await asyncio.gather(task, drain)

    assert ended == ["finished"]
    assert len(in_flight) == 0


async def test_after_the_grace_period_requests_end_with_a_refusal() -> None:
    in_flight = InFlight()

    async def request() -> None:
        async with in_flight.admit():
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    await in_flight.drain(grace_seconds=0, farewell_seconds=SECOND)

    with pytest.raises(Refused) as caught:
        await task
    assert caught.value.code == "server_draining"
    assert len(in_flight) == 0


async def test_nobody_is_admitted_once_draining_has_begun() -> None:
    in_flight = InFlight()
    await in_flight.drain(grace_seconds=0, farewell_seconds=0)

    with pytest.raises(Refused):
        async with in_flight.admit():
            pytest.fail("admitted")


async def test_a_timeout_of_the_request_itself_is_not_taken_for_the_end() -> None:
    in_flight = InFlight()

    with pytest.raises(TimeoutError):
        async with in_flight.admit(), asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_a_request_that_does_not_say_farewell_is_not_waited_for_forever() -> None:
    in_flight, may_finish = InFlight(), asyncio.Event()

    async def stubborn() -> None:
        async with in_flight.admit():
            try:
                await asyncio.Event().wait()
            finally:
                await may_finish.wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await in_flight.drain(grace_seconds=0, farewell_seconds=0.01)

    assert not task.done()
    may_finish.set()
    with pytest.raises(Refused):
        await task


async def test_a_request_that_is_late_in_saying_that_it_took_too_long_does_not_stop_the_end_of_others() -> None:
    in_flight, is_ending, may_finish = InFlight(max_seconds=0), asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        async with in_flight.admit():
            try:
                await asyncio.Event().wait()
            finally:
                is_ending.set()
                await may_finish.wait()

    task = asyncio.create_task(slow_to_end())
    await asyncio.wait_for(is_ending.wait(), SECOND)
    await in_flight.drain(grace_seconds=0, farewell_seconds=0)

    may_finish.set()
    with pytest.raises(Refused):
        await task


async def test_a_stream_is_told_that_the_server_stops(client, engine) -> None:
    engine.hold_after = 3
    call = asyncio.create_task(client.complete(stream=True))
    await asyncio.wait_for(engine.reached_gate.wait(), SECOND)

    await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=SECOND)

    events = (await call).events
    assert events[-1]["error"]["code"] == "server_draining"
    assert engine.num_running == 0


async def test_a_whole_answer_that_is_cut_off_is_a_503(client, engine) -> None:
    engine.hold_after = 3
    call = asyncio.create_task(client.complete())
    await asyncio.wait_for(engine.reached_gate.wait(), SECOND)

    await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=SECOND)

    reply = await call
    assert (reply.status, reply.error["code"]) == (503, "server_draining")
    assert reply.headers["Retry-After"] == "1"


async def test_new_requests_are_refused_while_the_server_stops(client) -> None:
    await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=0)

    replies = [await client.complete(), await client.chat(stream=True)]

    assert [(reply.status, reply.error["code"]) for reply in replies] == [(503, "server_draining")] * 2
    assert replies[0].headers["Connection"] == "close"


async def test_no_client_keeps_a_connection_to_a_server_that_stops(client) -> None:
    before = await client.complete()
    client.server.in_flight.stop_being_ready()

    during, ready = await client.complete(), await client.get("/health/ready")

    assert "Connection" not in before.headers
    assert (during.status, during.headers["Connection"]) == (200, "close")
    assert (ready.status, ready.error["code"]) == (503, "server_draining")


async def test_a_server_that_stops_is_alive_but_not_ready(client) -> None:
    await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=0)

    live, ready = await client.get("/health/live"), await client.get("/health/ready")

    assert (live.status, ready.status, ready.error["code"]) == (200, 503, "server_draining")


async def test_a_request_that_takes_too_long_is_told_so(start, engine) -> None:
    client = await start(in_flight=InFlight(max_seconds=0.05))
    engine.hold_after = 3

    whole, stream = await client.complete(), await client.complete(stream=True)

    assert (whole.status, whole.error["code"]) == (504, "request_timeout")
    assert whole.error["message"] == "The request took longer than 0.05 seconds."
    assert stream.events[-1]["error"]["code"] == "request_timeout"
    assert engine.num_running == 0


async def test_a_request_that_is_cut_off_by_the_end_is_not_told_that_it_was_slow(start, engine) -> None:
    client = await start(in_flight=InFlight(max_seconds=60))
    engine.hold_after = 3
    call = asyncio.create_task(client.complete())
    await asyncio.wait_for(engine.reached_gate.wait(), SECOND)

    await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=SECOND)

    assert (await call).error["code"] == "server_draining"


@contextlib.asynccontextmanager
async def half_sent(client) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A request whose body has come as far as its first byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.url.rpartition(":")[2]))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2"
    try:
        writer.write(f"{head}\r\n\r\n{{".encode())
        async with asyncio.timeout(SECOND):
            while not len(client.server.in_flight):  # noqa: ASYNC110 - nobody tells that a body has begun
                await asyncio.sleep(0)
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_is_on_its_way_is_heard_out_and_refused_then(client) -> None:
    async with half_sent(client) as (reader, writer):
        drain = asyncio.create_task(client.server.in_flight.drain(grace_seconds=SECOND, farewell_seconds=SECOND))
        await asyncio.sleep(0)
        assert not drain.done()
        writer.write(b"}")
        answer = await asyncio.wait_for(reader.read(), SECOND)
        await drain

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"server_draining" in answer


async def test_a_body_that_does_not_arrive_within_the_grace_period_is_answered_all_the_same(client) -> None:
    async with half_sent(client) as (reader, _):
        await client.server.in_flight.drain(grace_seconds=0, farewell_seconds=SECOND)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECOND)
        body = await asyncio.wait_for(reader.readuntil(b"}}"), SECOND)

    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"server_draining" in body
