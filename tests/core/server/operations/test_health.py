from __future__ import annotations

import pytest

from loramux.server.operations.health import LONGEST_STEP_SECONDS, MAX_WAITING_BATCHES

ALIVE = ["/health", "/health/live"]
ALL = [*ALIVE, "/health/ready"]


@pytest.mark.parametrize("path", ALL)
async def test_a_server_that_is_well_says_nothing(client, path: str) -> None:
    reply = await client.get(path)

    assert (reply.status, reply.text) == (200, "")


@pytest.mark.parametrize("path", ALL)
async def test_a_dead_engine_is_told(client, engine, path: str) -> None:
    engine.is_running = False

    reply = await client.get(path)

    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize("path", ALL)
async def test_an_engine_that_is_stuck_in_a_step_is_as_good_as_dead(client, engine, path: str) -> None:
    engine.seconds_in_step = LONGEST_STEP_SECONDS

    reply = await client.get(path)

    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")


async def test_a_long_step_is_no_reason_for_alarm(client, engine) -> None:
    engine.seconds_in_step = LONGEST_STEP_SECONDS - 1

    assert [(await client.get(path)).status for path in ALL] == [200, 200, 200]


async def test_a_server_that_stops_is_alive_but_not_ready(client) -> None:
    client.server.in_flight.stop_admitting()

    reply = await client.get("/health/ready")

    assert (reply.status, reply.error["code"]) == (503, "server_draining")
    assert [(await client.get(path)).status for path in ALIVE] == [200, 200]


async def test_a_server_with_a_long_queue_is_alive_but_not_ready(client, engine) -> None:
    high_water = MAX_WAITING_BATCHES * engine.state().max_num_seqs
    engine.num_waiting = high_water - 1
    assert (await client.get("/health/ready")).status == 200

    engine.num_waiting = high_water
    reply = await client.get("/health/ready")

    assert (reply.status, reply.error["code"]) == (503, "server_overloaded")
    assert [(await client.get(path)).status for path in ALIVE] == [200, 200]


async def test_a_server_that_would_refuse_the_next_request_is_not_ready(start, engine) -> None:
    client = await start(max_waiting=2)
    engine.num_waiting = 1
    assert (await client.get("/health/ready")).status == 200

    engine.num_waiting = 2
    assert (await client.get("/health/ready")).error["code"] == "server_overloaded"


async def test_an_outage_of_a_source_leaves_the_server_ready(client) -> None:
    assert (await client.get("/health/sources")).json == {
        "sources": [{"name": "found", "state": "asked", "retry_after_seconds": 0}]
    }

    for number in range(5):
        await client.complete(model=f"down/{number}")

    (source,) = (await client.get("/health/sources")).json["sources"]
    assert (source["name"], source["state"]) == ("found", "paused")
    assert 0 < source["retry_after_seconds"] <= 60
    assert (await client.get("/health/ready")).status == 200
