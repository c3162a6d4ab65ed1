from __future__ import annotations

import pytest


def facts(reply) -> dict[str, str]:
    prefix = "X-Loramux-Adapter-"
    return {name.removeprefix(prefix): value for name, value in reply.headers.items() if name.startswith(prefix)}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_tells_which_generation_answered_and_where_it_was(client, engine, stream: bool) -> None:
    first = facts(await client.complete(model="found/sql", stream=stream))
    second = facts(await client.complete(model="found/sql", stream=stream))
    engine.in_slots.add(1)
    third = facts(await client.chat(model="found/sql", stream=stream))

    assert [one["Tier"] for one in (first, second, third)] == ["disk", "host", "slot"]
    assert {one["Generation"] for one in (first, second, third)} == {"1"}
    assert first["Digest"] == "digest of /adapters/found/sql"
    assert float(first["Milliseconds"]) >= 0


async def test_the_base_model_has_no_such_headers(client) -> None:
    assert facts(await client.complete()) == {}
    assert facts(await client.complete(model="llama")) == {}


async def test_an_alias_tells_of_what_it_stands_for(client, registry) -> None:
    registry.move_alias("prod", "found/sql")

    assert facts(await client.complete(model="prod"))["Digest"] == "digest of /adapters/found/sql"


async def test_an_error_after_the_adapter_was_found_tells_of_it_too(client) -> None:
    reply = await client.complete(model="found/sql", prompt="x" * 200)

    assert reply.status == 400
    assert facts(reply)["Generation"] == "1"
