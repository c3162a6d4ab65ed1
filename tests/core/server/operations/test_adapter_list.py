from __future__ import annotations

import asyncio
from pathlib import Path

LIST = "/v1/lora_adapters"


async def rows(client) -> list[dict[str, object]]:
    return (await client.get(LIST)).json["data"]


async def test_everything_is_told_of_an_adapter(start, engine) -> None:
    client = await start(allow_runtime_updates=True)
    await client.complete(model="found/sql")
    await client.complete(model="found/sql")
    engine.in_slots.add(1)
    engine.pinned.add(1)
    await client.post("/v1/move_lora_alias", {"alias": "prod", "target": "found/sql"})

    reply = (await client.get(LIST)).json
    (row,) = reply["data"]

    assert reply["object"] == "list"
    assert abs(row.pop("created") - row.pop("last_used")) < 60
    assert row == {
        "lora_name": "found/sql",
        "lora_int_id": 1,
        "generation": 1,
        "current": True,
        "digest": "digest of /adapters/found/sql",
        "tier": "slot",
        "pinned": True,
        "source": "found",
        "root": "/adapters/found/sql",
        "revision": None,
        "parent": "llama",
        "rank": 1,
        "bytes": 1,
        "hits": 2,
        "active": 0,
        "aliases": ["prod"],
    }


async def test_an_adapter_that_was_loaded_by_hand_says_so_and_was_never_used(start, adapter_folder: Path) -> None:
    client = await start(allow_runtime_updates=True)
    await client.post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": str(adapter_folder)})

    (row,) = await rows(client)

    assert (row["source"], row["tier"], row["hits"], row["last_used"]) == ("api", "host", 0, None)


async def test_what_left_memory_is_on_disk_and_stays_in_the_list(start, engine) -> None:
    client = await start(allow_runtime_updates=True)
    await client.complete(model="found/sql")
    engine.loaded.clear()

    (row,) = await rows(client)

    assert (row["tier"], row["hits"]) == ("disk", 1)


async def test_what_was_unloaded_is_listed_until_its_last_request_ends(start, engine) -> None:
    client = await start(allow_runtime_updates=True)
    engine.hold_after = 1
    asked = asyncio.create_task(client.complete(model="found/sql"))
    await engine.reached_gate.wait()

    await client.post("/v1/unload_lora_adapter", {"lora_name": "found/sql"})
    (row,) = await rows(client)
    engine.gate.set()
    await asked

    assert (row["current"], row["active"], row["aliases"]) == (False, 1, [])
    assert await rows(client) == []
